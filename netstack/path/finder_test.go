package path_test

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

const home = proto.NodeID(99)

// course is a Finder with one peer, and what came of its events.
type course struct {
	finder *path.Finder
	now    time.Time
	route  path.Route
	rests  bool
	sent   []path.Send // not answered yet
	pings  map[pathmsg.TxID]path.Way
	proved map[netip.AddrPort]bool // by a Pong to a Ping of ours
	count  int
}

func newCourse(relay proto.NodeID, addrs ...string) *course {
	c := &course{
		finder: path.NewFinder(bounds, local, rand.Reader), now: time.Unix(1_000_000, 0), rests: true,
		pings: map[pathmsg.TxID]path.Way{}, proved: map[netip.AddrPort]bool{},
	}
	c.step(path.Known{ID: peer, Endpoints: endpoints(proto.EndpointInterface, addrs...), Relay: relay})
	return c
}

func (c *course) step(e path.Event) {
	effects := c.finder.Step(c.now, e)
	c.count += len(effects)
	for _, f := range effects {
		switch f := f.(type) {
		case path.Use:
			c.route = f.Route
		case path.Rest:
			c.rests = true
		case path.Send:
			c.sent = append(c.sent, f)
			if p, ok := f.Message.(pathmsg.Ping); ok {
				c.pings[p.TxID] = f.To
			}
		}
	}
}

// answer sends Pongs for all pings on paths that work.
func (c *course) answer(works func(path.Way) bool) {
	list := c.sent
	c.sent = nil
	for _, s := range list {
		if p, ok := s.Message.(pathmsg.Ping); ok && works(s.To) {
			c.pong(p.TxID)
		}
	}
}

func (c *course) pong(id pathmsg.TxID) {
	if to, ours := c.pings[id]; ours {
		c.proved[to.Addr] = true
	}
	c.step(path.Got{ID: peer, From: path.Way{Relay: home}, Message: pathmsg.Pong{TxID: id}})
}

// live lets time pass in which packets go out, and come back if heard is true.
func (c *course) live(d time.Duration, heard bool, works func(path.Way) bool) {
	for end := c.now.Add(d); c.now.Before(end); {
		c.now = c.now.Add(path.UsedEvery)
		for next := c.finder.Next(); !next.IsZero() && !next.After(c.now); next = c.finder.Next() {
			c.step(path.Tick{})
		}
		c.step(path.Used{ID: peer, Sent: true, Heard: heard})
		c.answer(works)
	}
}

// idle lets time pass in which nothing is sent.
func (c *course) idle(d time.Duration, works func(path.Way) bool) {
	for end := c.now.Add(d); c.now.Before(end); {
		c.now = c.now.Add(path.UsedEvery)
		c.step(path.Used{ID: peer})
		c.answer(works)
		for next := c.finder.Next(); !next.IsZero() && !next.After(c.now); next = c.finder.Next() {
			c.step(path.Tick{})
		}
	}
}

func only(a string) func(path.Way) bool {
	return func(w path.Way) bool { return w.Addr == at(a) }
}

func nowhere(path.Way) bool { return false }

func TestFirstPacketGoesThroughTheRelay(t *testing.T) {
	c := newCourse(home, "192.0.2.1:1", "192.0.2.2:1")
	if c.route.Main != (path.Way{Relay: home}) || len(c.route.Spray) != 2 || !c.finder.Next().IsZero() {
		t.Fatalf("at rest: %+v, next at %s", c.route, c.finder.Next())
	}
	c.step(path.Wanted{ID: peer})
	if len(c.pings) != 3 {
		t.Errorf("%d pings at once, want one for each candidate and one through the relay", len(c.pings))
	}
	c.live(100*time.Millisecond, false, only("192.0.2.2:1"))
	if want := (path.Route{Main: path.Way{Addr: at("192.0.2.2:1")}}); c.route.Main != want.Main || !c.route.Copy.IsZero() || c.route.Roams {
		t.Errorf("once it answers: %+v", c.route)
	}
}

// TestLostWayIsFelt checks that packets take both paths a few hundred milliseconds after live traffic goes unanswered, and that
// the direct path is given up later.
func TestLostWayIsFelt(t *testing.T) {
	c := newCourse(home, "192.0.2.1:1")
	c.step(path.Wanted{ID: peer})
	c.live(2*time.Second, true, only("192.0.2.1:1"))
	lost := c.now
	for c.route.Copy.IsZero() {
		c.live(path.UsedEvery, false, nowhere)
		if c.now.Sub(lost) > 300*time.Millisecond {
			t.Fatalf("still %+v after %s", c.route, c.now.Sub(lost))
		}
	}
	c.live(2*time.Second, false, nowhere)
	if c.route.Main != (path.Way{Relay: home}) || c.route.Roams != true {
		t.Errorf("in the end: %+v", c.route)
	}
	c.live(6*time.Second, true, only("192.0.2.1:1"))
	if c.route.Main != (path.Way{Addr: at("192.0.2.1:1")}) {
		t.Errorf("healed: %+v", c.route)
	}
}

func TestIdlePeerCostsNothing(t *testing.T) {
	c := newCourse(home, "192.0.2.1:1")
	c.step(path.Wanted{ID: peer})
	c.live(time.Second, true, only("192.0.2.1:1"))
	c.idle(50*time.Second, only("192.0.2.1:1"))
	if next := c.finder.Next(); !c.rests || !next.IsZero() {
		t.Errorf("rests: %t, next at %s", c.rests, next)
	}
}

// The packet that ends an idle time goes through the relay as well: a NAT may have dropped its mapping for the direct path
// meanwhile.
func TestRestEndsOnBothWays(t *testing.T) {
	c := newCourse(home, "192.0.2.1:1")
	works := only("192.0.2.1:1")
	c.step(path.Wanted{ID: peer})
	c.live(time.Second, true, works)
	c.idle(10*time.Second, works)
	if want := (path.Way{Relay: home}); !c.rests || c.route.Main.Addr != at("192.0.2.1:1") || c.route.Copy != want {
		t.Errorf("at rest: %t, %+v", c.rests, c.route)
	}
	c.step(path.Wanted{ID: peer})
	c.live(time.Second, true, works)
	if c.route.Main.Addr != at("192.0.2.1:1") || !c.route.Copy.IsZero() {
		t.Errorf("afterwards: %+v", c.route)
	}
}

// Whatever peers, netmaps and the network do: packets go only to addresses that answered a Ping of ours, except handshakes and
// copies of packets that roamed; nothing is sent to forbidden addresses; the work is bounded; and an address that works is used.
func TestFinderKeepsItsPromises(t *testing.T) {
	candidates := []string{"192.0.2.1:1", "192.168.1.7:1", "[2001:db8::1]:1", "198.51.100.1:9"}
	rapid.Check(t, func(t *rapid.T) {
		c := newCourse(rapid.SampledFrom([]proto.NodeID{0, home}).Draw(t, "relay"), candidates[:2]...)
		anyAddr := rapid.SampledFrom([]string{candidates[0], candidates[1], candidates[2], candidates[3], "224.0.0.1:1", "127.0.0.1:1", "100.64.0.9:1"})
		copies := map[netip.AddrPort]bool{} // where the peer was seen
		for i := range rapid.IntRange(1, 60).Draw(t, "events") {
			before := c.count
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * time.Millisecond)
			from := path.Way{Addr: at(anyAddr.Draw(t, "from"))}
			switch rapid.IntRange(0, 8).Draw(t, "event") {
			case 0:
				c.step(path.Wanted{ID: peer})
			case 1:
				c.step(path.Used{ID: peer, Sent: rapid.Bool().Draw(t, "sent"), Heard: rapid.Bool().Draw(t, "heard")})
			case 2:
				copies[from.Addr] = true
				c.step(path.Heard{ID: peer, From: from})
			case 3:
				c.step(path.Got{ID: peer, From: from, Message: pathmsg.Ping{TxID: pathmsg.TxID{byte(i)}}})
			case 4:
				var o pathmsg.Offer
				for range rapid.IntRange(0, pathmsg.MaxCandidates).Draw(t, "offered") {
					o.Candidates = append(o.Candidates, at(anyAddr.Draw(t, "candidate")))
				}
				c.step(path.Got{ID: peer, From: path.Way{Relay: home}, Message: o})
			case 5:
				c.pong(pathmsg.TxID{byte(i), 1, 2}) // answers no ping
			case 6:
				for _, id := range slices.SortedFunc(maps.Keys(c.pings), func(a, b pathmsg.TxID) int { return cmp.Compare(string(a[:]), string(b[:])) }) {
					if rapid.Bool().Draw(t, "answered") {
						c.pong(id)
					}
				}
			case 7:
				c.step(path.Moved{Local: local})
			case 8:
				c.step(path.Tick{})
			}
			if n := c.count - before; n > 400 {
				t.Fatalf("%d effects of one event", n)
			}
			if err := c.sane(copies); err != nil {
				t.Fatal(err)
			}
			c.sent = nil
		}
		c.step(path.Wanted{ID: peer})
		c.live(20*time.Second, false, only(candidates[0]))
		if !c.rests && c.route.Main != (path.Way{Addr: at(candidates[0])}) {
			t.Fatalf("the only address that works is not used: %+v", c.route)
		}
	})
}

func (c *course) sane(seen map[netip.AddrPort]bool) error {
	if a := c.route.Main.Addr; a.IsValid() && !c.proved[a] {
		return fmt.Errorf("packets go to %s, which was never proved", a)
	}
	if a := c.route.Copy.Addr; a.IsValid() && !c.proved[a] && !seen[a] {
		return fmt.Errorf("copies go to %s, where the peer never was", a)
	}
	if len(c.route.Spray) > path.MaxCandidates {
		return fmt.Errorf("%d addresses are sprayed", len(c.route.Spray))
	}
	for _, s := range c.sent {
		if _, answer := s.Message.(pathmsg.Pong); !answer && s.To.Direct() && bounds.Check(s.To.Addr) != nil {
			return fmt.Errorf("sent to %s", s.To.Addr)
		}
	}
	return nil
}

// Between two NATs that use a new port for each destination, the peer's packets come from another port than ours go to, and count
// as answers. If ours no longer arrive, that is found by the ping of each second, or at once if the peer's port changes, too.
func TestAnswersFromAnotherPort(t *testing.T) {
	port := func(n int) path.Way { return path.Way{Addr: at(fmt.Sprintf("192.0.2.1:%d", n))} }
	ports := func(w path.Way) bool { return w.Direct() }
	c := newCourse(home, "192.0.2.1:1")
	live := func(d time.Duration, works func(path.Way) bool) {
		for end := c.now.Add(d); c.now.Before(end); {
			c.now = c.now.Add(path.UsedEvery)
			for next := c.finder.Next(); !next.IsZero() && !next.After(c.now); next = c.finder.Next() {
				c.step(path.Tick{})
			}
			c.step(path.Used{ID: peer, Sent: true, Beside: true})
			c.answer(works)
		}
	}
	doubts := func(within time.Duration) {
		t.Helper()
		for begun := c.now; c.route.Copy.IsZero(); live(path.UsedEvery, nowhere) {
			if c.now.Sub(begun) > within {
				t.Fatalf("still %+v after %s", c.route, within)
			}
		}
	}
	c.step(path.Wanted{ID: peer})
	for n := range 4 { // it seems to move from one to the next, until packets stop following it
		c.step(path.Heard{ID: peer, From: port(n + 2)})
		live(time.Second, ports)
	}
	pings := len(c.pings)
	live(10*time.Second, ports)
	if n := len(c.pings) - pings; n > 13 {
		t.Errorf("%d pings in ten seconds", n)
	}
	doubts(1300 * time.Millisecond)
	live(2*time.Second, ports)
	if !c.route.Copy.IsZero() {
		t.Fatalf("healed: %+v", c.route)
	}
	for before := len(c.pings); len(c.pings) == before; { // so that the next ping is not due soon
		live(path.UsedEvery, ports)
	}
	c.now = c.now.Add(time.Millisecond)
	c.step(path.Heard{ID: peer, From: port(9)})
	doubts(300 * time.Millisecond)
}
