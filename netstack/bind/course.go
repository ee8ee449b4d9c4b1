package bind

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Watcher follows courses. It must not block.
type Watcher interface {
	// Wanted says that something was sent to a peer at rest.
	Wanted(id proto.NodeID, c *Course)
	// Heard says that an authentic packet of a peer came another way than packets to it go mainly.
	Heard(id proto.NodeID, from *Endpoint)
}

// Course is the endpoint of a peer whose way others choose, at any time, while the engine sends: packets go where its Route
// says. The engine keeps it as it is wherever the peer's packets come from.
type Course struct {
	bind    *Bind
	id      proto.NodeID
	watcher Watcher
	leg     atomic.Pointer[leg]
	seen    atomic.Pointer[sight]
	awake   atomic.Bool
	sent    atomic.Uint64 // calls that sent something which wants an answer
	heard   atomic.Uint64 // times that authentic packets came by the main way
	limit   atomic.Int64
}

// leg is a route as endpoints.
type leg struct {
	route       path.Route
	main, aside *Endpoint // nil: none
	spray       []*Endpoint
}

// sight is where a packet came from, and what that means as long as the leg is the same.
type sight struct {
	from *Endpoint
	leg  *leg
	main bool
}

var _ conn.Endpoint = (*Course)(nil)

// NewCourse makes the course of a peer, without a route.
func (b *Bind) NewCourse(id proto.NodeID, w Watcher) *Course {
	c := &Course{bind: b, id: id, watcher: w}
	c.leg.Store(&leg{})
	return c
}

// SetRoute says where packets go from now on. One goroutine calls it.
func (c *Course) SetRoute(r path.Route) {
	l := &leg{route: r, main: c.endpoint(r.Main), aside: c.endpoint(r.Copy)}
	for _, a := range r.Spray {
		if w := (path.Way{Addr: a}); w != r.Main && w != r.Copy {
			l.spray = append(l.spray, c.endpoint(w))
		}
	}
	old := c.leg.Load()
	if l.main == nil && r.Roams {
		l.main = old.main // it was found by roaming, or worked once
	}
	c.leg.Store(l)
}

// SetLimit says how large packets may be inside the tunnel; 0: there is no limit but the device's.
func (c *Course) SetLimit(mtu int) { c.limit.Store(int64(mtu)) }

// Limit is how large they may be.
func (c *Course) Limit() int { return int(c.limit.Load()) }

func (c *Course) endpoint(w path.Way) *Endpoint {
	switch {
	case w.IsZero():
		return nil
	case w.Socket != 0:
		return c.bind.extraEndpoint(w.Socket, w.Addr)
	case w.Direct():
		return &Endpoint{bind: c.bind, dst: w.Addr}
	}
	return c.bind.RelayEndpoint(Via{Relay: w.Relay, Peer: c.id})
}

// Sleep has the next packet reported to the Watcher.
func (c *Course) Sleep() { c.awake.Store(false) }

// Counts say how often something was sent that wants an answer, and something authentic came by the main way.
func (c *Course) Counts() (sent, heard uint64) { return c.sent.Load(), c.heard.Load() }

// Heard notes where an authentic packet of the peer came from.
func (c *Course) Heard(from conn.Endpoint) {
	e, ok := from.(*Endpoint)
	if !ok {
		return
	}
	l := c.leg.Load()
	s := c.seen.Load()
	if s == nil || s.from != e || s.leg != l {
		s = &sight{from: e, leg: l, main: l.main != nil && same(l.main, e)}
		if !s.main {
			c.roam(l, e)
			c.watcher.Heard(c.id, e)
		}
		c.seen.Store(s)
	}
	if s.main {
		c.heard.Add(1)
	}
}

// roam follows the peer where the route is not proved: what it says next has to get back to it.
func (c *Course) roam(l *leg, e *Endpoint) {
	if !l.route.Roams || e.via != (Via{}) && l.main != nil {
		return
	}
	next := *l
	if l.main == nil {
		next.main = e
	} else {
		next.aside = e
	}
	c.leg.CompareAndSwap(l, &next) // else there is a newer route, which knows better
}

func same(a, b *Endpoint) bool { return a.via == b.via && a.dst == b.dst && a.extra == b.extra }

// send sends messages where the route says.
func (c *Course) send(bufs [][]byte) error {
	all := len(bufs) == 1 && forAll(bufs[0])
	c.note(len(bufs) > 1 || len(bufs[0]) != sizeKeepalive)
	l := c.leg.Load()
	return c.each(l, all, func(e *Endpoint) error { return c.bind.sendTo(bufs, e) })
}

func (c *Course) sendRun(run []byte, size int) error {
	c.note(true)
	return c.each(c.leg.Load(), false, func(e *Endpoint) error { return c.bind.sendRunTo(run, size, e) })
}

// note counts what is sent, and wakes the Watcher.
func (c *Course) note(wants bool) {
	if !wants {
		return
	}
	c.sent.Add(1)
	if !c.awake.Load() && c.awake.CompareAndSwap(false, true) {
		c.watcher.Wanted(c.id, c)
	}
}

// each sends by all the ways of a leg; that one takes it is enough.
func (c *Course) each(l *leg, spray bool, send func(*Endpoint) error) error {
	var failed error
	ok := false
	try := func(e *Endpoint) {
		if e == nil {
			return
		}
		if err := send(e); err != nil {
			failed = err
		} else {
			ok = true
		}
	}
	try(l.main)
	try(l.aside)
	if spray {
		for _, e := range l.spray {
			try(e)
		}
	}
	switch {
	case ok:
		return nil
	case failed != nil:
		return failed
	}
	return fmt.Errorf("no way to node %s is known yet", c.id)
}

// Known is the address that packets go to, where that is proved.
func (c *Course) Known() netip.AddrPort {
	if l := c.leg.Load(); !l.route.Roams && l.main != nil && l.main.via == (Via{}) {
		return l.main.dst
	}
	return netip.AddrPort{}
}

// ClearSrc implements conn.Endpoint: the system chooses where packets leave from.
func (c *Course) ClearSrc() {
	l := c.leg.Load()
	for _, e := range []*Endpoint{l.main, l.aside} {
		if e != nil {
			e.ClearSrc()
		}
	}
}

// SrcIP implements conn.Endpoint.
func (c *Course) SrcIP() netip.Addr {
	if l := c.leg.Load(); l.main != nil {
		return l.main.SrcIP()
	}
	return netip.Addr{}
}

// SrcToString implements conn.Endpoint.
func (c *Course) SrcToString() string {
	if src := c.SrcIP(); src.IsValid() {
		return src.String()
	}
	return ""
}

// addr is where packets go mainly.
func (c *Course) addr() netip.AddrPort {
	switch l := c.leg.Load(); {
	case l.main != nil:
		return l.main.dst
	case len(l.spray) > 0:
		return l.spray[0].dst
	}
	return netip.AddrPort{}
}

// DstIP implements conn.Endpoint.
func (c *Course) DstIP() netip.Addr { return c.addr().Addr() }

// DstToString implements conn.Endpoint.
func (c *Course) DstToString() string {
	if a := c.addr(); a.IsValid() {
		return a.String()
	}
	return ""
}

// DstToBytes implements conn.Endpoint.
func (c *Course) DstToBytes() []byte {
	b, _ := c.addr().MarshalBinary() // has no errors
	return slices.Clip(b)
}
