package path_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

const (
	was = "192.0.2.1:1"
	now = "192.0.2.1:2"
)

// says holds the ways of announcing where the peer is: by the peer itself, or by the netmap.
var says = map[string]func(c *course, addrs ...string){
	"Offer": func(c *course, list ...string) {
		c.step(path.Got{ID: peer, From: path.Way{Relay: home}, Message: pathmsg.Offer{Candidates: addrs(list...)}})
	},
	"netmap": func(c *course, list ...string) {
		c.step(path.Known{ID: peer, Endpoints: endpoints(1, list...), Relay: home})
	},
}

// Packets go through the relay as well from the moment when a peer is announced to be elsewhere, until an address answers.
func TestPeerIsElsewhere(t *testing.T) {
	for from, say := range says {
		for _, c := range []struct {
			name   string
			list   []string
			doubts bool
		}{
			{"another address", []string{now}, true},
			{"one more", []string{was, now}, false},
			{"the same", []string{was}, false},
		} {
			t.Run(from+" of "+c.name, func(t *testing.T) {
				x := newCourse(home, was)
				x.step(path.Wanted{ID: peer})
				x.live(2*time.Second, false, only(was))
				x.now = x.now.Add(time.Millisecond)
				say(x, c.list...)
				if doubts := x.route.Copy == (path.Way{Relay: home}); doubts != c.doubts || x.route.Main.Addr != at(was) {
					t.Fatalf("at once: %+v", x.route)
				}
				x.live(200*time.Millisecond, false, only(now))
				if c.doubts && (x.route.Main.Addr != at(now) || !x.route.Copy.IsZero()) {
					t.Errorf("once it answers there: %+v", x.route)
				}
			})
		}
	}
}

// An answer to a ping sent before the peer moved proves nothing.
func TestOldPongEndsNoDoubt(t *testing.T) {
	x := newCourse(home, was)
	x.step(path.Wanted{ID: peer})
	x.live(2*time.Second, true, only(was))
	for before := len(x.pings); len(x.pings) == before; {
		x.live(path.UsedEvery, false, nowhere)
	}
	if !x.route.Copy.IsZero() {
		t.Fatalf("in doubt already: %+v", x.route)
	}
	asked := maps.Clone(x.pings)
	x.now = x.now.Add(time.Millisecond)
	says["Offer"](x, now)
	for id, to := range asked {
		if to.Addr == at(was) {
			x.pong(id)
		}
	}
	if x.route.Copy.IsZero() {
		t.Errorf("a late Pong counts: %+v", x.route)
	}
	x.live(100*time.Millisecond, false, only(was))
	if !x.route.Copy.IsZero() {
		t.Errorf("a new Pong does not count: %+v", x.route)
	}
}

// A node announces its addresses to the peers that it was just talking with, once for all changes of one moment.
func TestTellsWhoTalks(t *testing.T) {
	for name, c := range map[string]struct {
		silence time.Duration
		offers  int
	}{
		"just now":     {time.Second, 1},
		"a minute ago": {time.Minute, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCourse(home, was)
			x.step(path.Offering{Offer: pathmsg.Offer{Candidates: addrs("198.51.100.9:1")}})
			x.step(path.Got{ID: peer, From: path.Way{Addr: at(was)}, Message: pathmsg.Ping{}})
			x.answer(only(was))
			x.elapse(c.silence, only(was))
			for _, a := range []string{"198.51.100.9:2", "198.51.100.9:3", "198.51.100.9:3"} {
				x.step(path.Offering{Offer: pathmsg.Offer{Candidates: addrs(a)}})
			}
			sent, _ := x.elapse(time.Minute, only(was))
			offers := 0
			for _, s := range sent {
				if o, ok := s.Message.(pathmsg.Offer); ok {
					if offers++; s.To != (path.Way{Relay: home}) || !slices.Equal(o.Candidates, addrs("198.51.100.9:3")) {
						t.Errorf("told by %+v: %v", s.To, o.Candidates)
					}
				}
			}
			if offers != c.offers {
				t.Errorf("told %d times, want %d", offers, c.offers)
			}
		})
	}
}

// Of the addresses that a peer announces, the first ones are tried: it names the most reliable ones first.
func TestFirstAddressesOfAnOffer(t *testing.T) {
	const outside = "203.0.113.77:1"
	list := []string{outside}
	for i := range pathmsg.MaxCandidates - 1 {
		list = append(list, fmt.Sprintf("10.0.%d.1:1", i)) // bridges of containers
	}
	x := newCourse(home)
	for range 3 {
		x.now = x.now.Add(time.Second)
		says["Offer"](x, list...)
		x.pings = map[pathmsg.TxID]path.Way{}
		x.step(path.Wanted{ID: peer})
		x.live(6*time.Second, false, nowhere)
		tried := slices.Collect(maps.Values(x.pings))
		for i, a := range list {
			if want := i < 8; slices.Contains(tried, path.Way{Addr: at(a)}) != want {
				t.Errorf("address %d, %s: tried: %t", i, a, !want)
			}
		}
	}
	x.live(6*time.Second, false, only(outside))
	if x.route.Main != (path.Way{Addr: at(outside)}) {
		t.Errorf("in the end: %+v", x.route)
	}
}

// A peer that announces more addresses than are kept, and always the same ones, has not moved.
func TestManyAddressesAreNoMove(t *testing.T) {
	var list []string
	for i := range pathmsg.MaxCandidates {
		list = append(list, fmt.Sprintf("10.0.%d.1:1", i))
	}
	x := newCourse(home, was)
	x.step(path.Wanted{ID: peer})
	x.live(2*time.Second, true, only(was))
	says["Offer"](x, list...)
	x.live(2*time.Second, true, only(was))
	x.now = x.now.Add(time.Millisecond)
	says["Offer"](x, list...)
	if !x.route.Copy.IsZero() {
		t.Errorf("in doubt: %+v", x.route)
	}
}
