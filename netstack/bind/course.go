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

// Watcher is notified of events on courses. It must not block.
type Watcher interface {
	// Wanted reports that something was sent to a peer at rest.
	Wanted(id proto.NodeID, c *Course)
	// Heard reports that an authentic packet of a peer came over a path other than the main one.
	Heard(id proto.NodeID, from *Endpoint)
}

// Course is the endpoint of a peer whose path is chosen outside the engine and may change at any time while the engine sends:
// packets go where its Route says. The engine keeps it, wherever the peer's packets come from.
type Course struct {
	bind    *Bind
	id      proto.NodeID
	watcher Watcher
	leg     atomic.Pointer[leg]
	seen    atomic.Pointer[sight]
	awake   atomic.Bool
	sent    atomic.Uint64 // sends that expect an answer
	heard   atomic.Uint64 // batches of authentic packets that came over the main path
	beside  atomic.Uint64 // or from another port of its address
	limit   atomic.Int64
}

// leg is a route resolved to endpoints.
type leg struct {
	route       path.Route
	main, aside *Endpoint // nil if there is none
	spray       []*Endpoint
}

// sight is where a packet came from, and what that means for as long as the leg is unchanged.
type sight struct {
	from   *Endpoint
	leg    *leg
	main   bool
	beside bool // another port of main's address
}

var _ conn.Endpoint = (*Course)(nil)

// NewCourse returns the course of a peer, without a route.
func (b *Bind) NewCourse(id proto.NodeID, w Watcher) *Course {
	c := &Course{bind: b, id: id, watcher: w}
	c.leg.Store(&leg{})
	return c
}

// SetRoute sets where packets go. It must be called by one goroutine at a time.
func (c *Course) SetRoute(r path.Route) {
	l := &leg{route: r, main: c.endpoint(r.Main), aside: c.endpoint(r.Copy)}
	for _, a := range r.Spray {
		if w := (path.Way{Addr: a}); w != r.Main && w != r.Copy {
			l.spray = append(l.spray, c.endpoint(w))
		}
	}
	old := c.leg.Load()
	if l.main == nil && r.Roams {
		l.main = old.main // found by roaming, or has worked before
	}
	c.leg.Store(l)
}

// SetLimit limits the size of packets inside the tunnel; 0 means there is no limit but the device's.
func (c *Course) SetLimit(mtu int) { c.limit.Store(int64(mtu)) }

// Limit returns the limit set by SetLimit.
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

// Sleep makes the next packet be reported to the Watcher.
func (c *Course) Sleep() { c.awake.Store(false) }

// Counts returns how often something was sent that expects an answer, and something authentic came over the main path, or from
// another port of its address.
func (c *Course) Counts() (sent, heard, beside uint64) {
	return c.sent.Load(), c.heard.Load(), c.beside.Load()
}

// Heard records where an authentic packet of the peer came from.
func (c *Course) Heard(from conn.Endpoint) {
	e, ok := from.(*Endpoint)
	if !ok {
		return
	}
	l := c.leg.Load()
	s := c.seen.Load()
	if s == nil || s.from != e || s.leg != l {
		s = &sight{from: e, leg: l, main: l.main != nil && same(l.main, e)}
		s.beside = !s.main && l.main != nil && besides(l.main, e)
		if !s.main {
			c.roam(l, e)
			c.watcher.Heard(c.id, e)
		}
		c.seen.Store(s)
	}
	switch {
	case s.main:
		c.heard.Add(1)
	case s.beside:
		c.beside.Add(1)
	}
}

// roam follows the peer if the route is unproven: whatever it sends next must be answered where it is.
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
	c.leg.CompareAndSwap(l, &next) // otherwise there is a newer route, which knows better
}

func same(a, b *Endpoint) bool { return a.via == b.via && a.dst == b.dst && a.extra == b.extra }

// besides reports whether two endpoints are of one address, both reached from the shared socket.
func besides(a, b *Endpoint) bool {
	return a.via == b.via && a.via == (Via{}) && a.extra == nil && b.extra == nil && a.dst.Addr() == b.dst.Addr()
}

// send sends messages along the route.
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

// note counts a send, and wakes the Watcher.
func (c *Course) note(wants bool) {
	if !wants {
		return
	}
	c.sent.Add(1)
	if !c.awake.Load() && c.awake.CompareAndSwap(false, true) {
		c.watcher.Wanted(c.id, c)
	}
}

// each sends over all paths of a leg; it succeeds if one of them does.
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

// Known returns the address that packets go to, if it is proven.
func (c *Course) Known() netip.AddrPort {
	if l := c.leg.Load(); !l.route.Roams && l.main != nil && l.main.via == (Via{}) {
		return l.main.dst
	}
	return netip.AddrPort{}
}

// ClearSrc implements conn.Endpoint: the system chooses the source address.
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

// addr returns the main destination of packets.
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
	b, _ := c.addr().MarshalBinary() // never fails
	return slices.Clip(b)
}
