package path_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// elapse lets time pass in which nothing happens except what is due, and returns what was sent to the peer, and how many Stirs
// were requested.
func (c *course) elapse(d time.Duration, works func(path.Way) bool) (sent []path.Send, stirs int) {
	for end := c.now.Add(d); ; {
		next := c.finder.Next()
		if next.IsZero() || next.After(end) {
			c.now = end
			return sent, stirs
		}
		c.now = next
		for _, f := range c.finder.Step(c.now, path.Tick{}) {
			switch f := f.(type) {
			case path.Send:
				sent = append(sent, f)
				if p, ok := f.Message.(pathmsg.Ping); ok {
					c.pings[p.TxID] = f.To
					if works(f.To) {
						c.pong(p.TxID)
					}
				}
			case path.Stir:
				stirs++
			}
		}
	}
}

// asked has the peer send pings by a path at an interval.
func (c *course) asked(from path.Way, every time.Duration, times int, works func(path.Way) bool) {
	for range times {
		c.step(path.Got{ID: peer, From: from, Message: pathmsg.Ping{}})
		c.answer(works)
		c.elapse(every, works)
	}
}

// A peer that sends and hears no answers keeps pinging. When the pings stop, this node sends something to the peer and to its
// relays: the NAT in between may have forgotten this node.
func TestSilenceAfterPings(t *testing.T) {
	const addr = "192.0.2.1:1"
	for name, c := range map[string]struct {
		from         path.Way
		every        time.Duration
		works        func(path.Way) bool
		pings, stirs int
	}{
		"the way is there": {path.Way{Addr: at(addr)}, 150 * time.Millisecond, only(addr), 1, 1},
		"through a relay":  {path.Way{Relay: home}, 150 * time.Millisecond, nowhere, 0, 3},
		"seldom":           {path.Way{Addr: at(addr)}, time.Second, only(addr), 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourse(home, addr)
			x.asked(c.from, c.every, 10, c.works)
			sent, stirs := x.elapse(0, c.works)
			more, n := x.elapse(time.Minute, c.works)
			pings := 0
			for _, s := range append(sent, more...) {
				if s.To.Direct() {
					pings++
				}
			}
			if pings != c.pings || stirs+n != c.stirs {
				t.Errorf("%d pings and %d stirs, want %d and %d", pings, stirs+n, c.pings, c.stirs)
			}
			if next := x.finder.Next(); !next.IsZero() {
				t.Errorf("it goes on, at %s", next.Sub(x.now))
			}
		})
	}
}

// TestKeeping checks that a node whose current paths are the only way in keeps open those to the peers that it heard last, and
// no others: with one datagram each, which nobody answers, more often than any NAT mapping expires.
func TestKeeping(t *testing.T) {
	const peers = 100
	f := path.NewFinder(bounds, local, rand.Reader)
	now := time.Unix(1_000_000, 0)
	count, asked := map[proto.NodeID]int{}, 0
	step := func(e path.Event) {
		for _, x := range f.Step(now, e) {
			s, ok := x.(path.Send)
			if !ok {
				continue
			}
			switch m := s.Message.(type) {
			case pathmsg.Ping:
				asked++
				now = now.Add(10 * time.Millisecond)
				f.Step(now, path.Got{ID: s.ID, From: s.To, Message: pathmsg.Pong{TxID: m.TxID}})
			case pathmsg.Pong:
				count[s.ID]++
			}
		}
	}
	pass := func(d time.Duration) {
		for end := now.Add(d); ; {
			next := f.Next()
			if next.IsZero() || next.After(end) {
				now = end
				return
			}
			now = next
			step(path.Tick{})
		}
	}
	for n := range peers {
		id := proto.NodeID(n + 1)
		a := netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:1", n+1))
		step(path.Known{ID: id, Endpoints: []proto.Endpoint{{Addr: a}}})
		step(path.Wanted{ID: id})
		now = now.Add(10 * time.Second)
		step(path.Used{ID: id}) // idle again
	}
	near := proto.NodeID(peers + 1) // heard last of all, but with no NAT in between
	step(path.Known{ID: near, Endpoints: endpoints(proto.EndpointInterface, "192.168.1.7:1")})
	step(path.Wanted{ID: near})
	now = now.Add(10 * time.Second)
	step(path.Used{ID: near})
	pass(time.Minute)
	asked = 0
	clear(count)
	pass(time.Hour)
	if len(count) != 0 || asked != 0 {
		t.Errorf("without being told to: %v and %d pings", count, asked)
	}
	for range 3 {
		step(path.Keeping{On: true})
	}
	pass(time.Hour)
	if len(count) != 2 || count[peers] != 144 || count[peers-1] != 144 || asked != 0 {
		t.Errorf("in an hour: %v and %d pings", count, asked)
	}
	step(path.Keeping{})
	clear(count)
	pass(time.Hour)
	if len(count) != 0 || !f.Next().IsZero() {
		t.Errorf("it does not end: %v", count)
	}
}
