package wgtest

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// routed is a world in which node a knows two routers.
type routed struct {
	*world
	c *Node
}

func newRouted(t *testing.T, w *world) *routed {
	t.Helper()
	r := &routed{world: w, c: NewNode(t, w.make, w.net.Host("c", addr("192.0.2.3"), addr("2001:db8::3")), 3)}
	w.set(w.a, r.c.Config())
	w.set(r.c, w.a.Config())
	w.mustPing(w.a, w.b)
	w.mustPing(w.a, r.c)
	return r
}

func (r *routed) close() {
	r.t.Helper()
	if err := r.c.Engine.Close(); err != nil {
		r.t.Error(err)
	}
}

// serve sets the routes that node a knows behind a router.
func (r *routed) serve(router *Node, list ...string) {
	r.t.Helper()
	cfg := router.Config()
	cfg.Routes = prefixes(list...)
	r.set(r.a, cfg)
}

// leads checks that an address is routed to want, and accepted as a source from want alone; nil means neither router.
func (r *routed) leads(to string, want *Node) {
	r.t.Helper()
	before := map[*Node]int{}
	for _, n := range []*Node{r.b, r.c} {
		before[n], _ = n.Stack.Received()
	}
	if err := r.a.Ping(addr(to)); (err == nil) != (want != nil) {
		r.t.Errorf("to %s: %v", to, err)
	}
	for _, n := range []*Node{r.b, r.c} {
		if now, _ := n.Stack.Received(); (now != before[n]) != (n == want) {
			r.t.Errorf("to %s: %d packets came to node %d", to, now-before[n], n.ID)
		}
		if r.comes(n, to) != (n == want) {
			r.t.Errorf("from %s by node %d: passes is %t", to, n.ID, n != want)
		}
	}
}

// comes reports whether a packet with the given source gets through a router to node a.
func (r *routed) comes(router *Node, src string) bool {
	before, _ := r.a.Stack.Received()
	dst := r.a.Addrs.V4
	if addr(src).Is6() {
		dst = r.a.Addrs.V6
	}
	router.TUN.Send(sim.Echo(addr(src), dst, 1, 1, nil).Bytes())
	time.Sleep(time.Second)
	now, _ := r.a.Stack.Received()
	return now != before
}

// handshakes returns the times of the last handshakes.
func (r *routed) handshakes() (list []time.Time) {
	r.t.Helper()
	all, err := r.a.Engine.Peers()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range all {
		list = append(list, p.LastHandshake)
	}
	return list
}

func routes(t *testing.T, w *world) {
	r := newRouted(t, w)
	defer r.close()
	begun := r.handshakes()
	r.leads("10.1.0.1", nil)
	r.leads("fd10:1::1", nil)
	r.serve(r.b, "10.1.0.0/16", "fd10:1::/48")
	r.leads("10.1.0.1", r.b)
	r.leads("10.1.255.255", r.b)
	r.leads("10.2.0.0", nil)
	r.leads("fd10:1::1", r.b)
	r.leads("fd10:2::1", nil)
	r.serve(r.b, "10.2.0.0/16")
	r.leads("10.1.0.1", nil)
	r.leads("10.2.0.1", r.b)
	r.leads("fd10:1::1", nil)
	cfg := r.b.Config() // the engine must have its own copy of the list
	cfg.Routes = prefixes("10.3.0.0/16")
	w.set(w.a, cfg)
	r.leads("10.3.0.1", r.b)
	cfg.Routes[0] = prefixes("10.4.0.0/16")[0]
	w.set(w.a, cfg)
	r.leads("10.3.0.1", nil)
	r.leads("10.4.0.1", r.b)
	r.serve(r.b)
	r.leads("10.4.0.1", nil)
	w.mustPing(w.a, w.b)
	w.mustPing(w.b, w.a)
	if !slices.Equal(r.handshakes(), begun) {
		t.Error("routes: a new handshake")
	}
	// A removed peer's routes go with it, and do not come back unless configured again.
	r.serve(r.b, "10.1.0.0/16")
	r.leads("10.1.0.1", r.b)
	if err := w.a.Engine.RemovePeer(w.b.ID); err != nil {
		t.Fatal(err)
	}
	r.leads("10.1.0.1", nil)
	r.serve(r.b)
	time.Sleep(10 * time.Second)
	w.mustPing(w.a, w.b)
	r.leads("10.1.0.1", nil)
}

func longestRoute(t *testing.T, w *world) {
	r := newRouted(t, w)
	defer r.close()
	r.serve(r.b, "0.0.0.0/0", "10.1.2.128/25", "fd10::/16", "fd10:1:2:3::4/128")
	r.serve(r.c, "10.1.0.0/16", "10.1.2.3/32", "fd10:1:2::/48")
	r.leads("198.18.0.1", r.b)
	r.leads("10.1.2.127", r.c)
	r.leads("10.1.2.128", r.b)
	r.leads("10.1.2.3", r.c)
	r.leads("fd10:2::1", r.b)
	r.leads("fd10:1:2:3::3", r.c)
	r.leads("fd10:1:2:3::4", r.b)
	r.serve(r.b, "0.0.0.0/0")
	r.leads("10.1.2.128", r.c)
	r.leads("fd10:2::1", nil)
	r.leads("fd10:1:2:3::4", r.c)
	if err := w.a.Engine.RemovePeer(r.c.ID); err != nil {
		t.Fatal(err)
	}
	r.leads("10.1.2.3", r.b)
}

func movedRoute(t *testing.T, w *world) {
	r := newRouted(t, w)
	defer r.close()
	begun := r.handshakes()
	// One router gives the route up before the other has it.
	r.serve(r.b, "10.1.0.0/16", "10.2.0.0/16")
	r.serve(r.b, "10.2.0.0/16")
	r.serve(r.c, "10.1.0.0/16")
	r.leads("10.1.0.1", r.c)
	r.leads("10.2.0.1", r.b)
	// The other has it before the first gives it up.
	r.serve(r.b, "10.1.0.0/16", "10.2.0.0/16")
	r.leads("10.1.0.1", r.b)
	r.serve(r.c)
	r.leads("10.1.0.1", r.b)
	// They swap.
	r.serve(r.b, "10.1.0.0/16")
	r.serve(r.c, "10.2.0.0/16")
	r.serve(r.b, "10.2.0.0/16")
	r.serve(r.c, "10.1.0.0/16")
	r.leads("10.1.0.1", r.c)
	r.leads("10.2.0.1", r.b)
	// Removing a peer whose route was taken over does not remove the route.
	r.serve(r.b, "10.1.0.0/16", "10.2.0.0/16")
	if err := w.a.Engine.RemovePeer(r.c.ID); err != nil {
		t.Fatal(err)
	}
	r.leads("10.1.0.1", r.b)
	r.set(r.a, r.c.Config())
	r.leads("10.1.0.1", r.b)
	if now := r.handshakes(); !now[0].Equal(begun[0]) {
		t.Error("moving routes took a new handshake")
	}
}

func ownBeforeRoute(t *testing.T, w *world) {
	r := newRouted(t, w)
	defer r.close()
	r.serve(r.b, "0.0.0.0/0", "100.64.0.0/10", "::/0", "fd00:1::/64")
	for _, own := range r.c.Addrs.Slice() {
		r.leads(own.String(), r.c)
	}
	for _, own := range r.b.Addrs.Slice() {
		r.leads(own.String(), r.b)
	}
	r.leads("198.18.0.1", r.b)
	r.leads("2001:db8:99::1", r.b)
}
