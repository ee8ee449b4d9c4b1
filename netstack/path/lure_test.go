package path_test

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

const (
	victim = "203.0.113.9:41641" // the address outside its NAT that a lying peer claims
	honest = "192.0.2.200:7"     // where it answers
)

// at counts what was sent to an address, and forgets everything that was sent.
func (p *puncher) at(host netip.Addr) (n int) {
	for _, s := range p.sent {
		if s.To.Addr.Addr() == host {
			n++
		}
	}
	p.sent, p.guesses = nil, nil
	return n
}

// stays lets time pass in which packets go to a peer and come from it, and the peer agrees to every punch.
func (p *puncher) stays(d time.Duration, id proto.NodeID) {
	p.step(path.Wanted{ID: id})
	for end := p.now.Add(d); p.now.Before(end); {
		p.pass(path.UsedEvery)
		p.step(path.Used{ID: id, Sent: true, Heard: true})
		p.answers(id)
	}
}

// shows has a peer announce another address, and answer there.
func (p *puncher) shows(id proto.NodeID, a string) {
	p.got(id, pathmsg.Offer{NAT: pathmsg.NATEasy, Candidates: addrs(a)})
	p.stays(time.Second, id)
	for _, s := range p.sent {
		if m, ok := s.Message.(pathmsg.Ping); ok && s.ID == id && s.To == (path.Way{Addr: at(a)}) {
			p.got(id, pathmsg.Pong{TxID: m.TxID})
		}
	}
}

// A peer claims a third party's address, has this node send there, and shows itself elsewhere before the punch has failed, so
// that it may ask again. The pauses still grow, both for the peer and for its victim.
func TestVictimOfAPunch(t *testing.T) {
	for _, c := range []struct {
		name        string
		own, claims pathmsg.NATClass
	}{
		{"guesser", pathmsg.NATEasy, pathmsg.NATHard},
		{"opener", pathmsg.NATHard, pathmsg.NATEasy},
	} {
		for _, liars := range []int{1, 3} {
			t.Run(fmt.Sprint(c.name, " of ", liars), func(t *testing.T) {
				p := newPuncher(c.own, pathmsg.NATUnknown, pathmsg.NATUnknown, pathmsg.NATUnknown)
				borne, turns := 0, 0
				for begun := p.now; p.now.Sub(begun) < 30*time.Minute; turns++ {
					id := proto.NodeID(turns%liars + 1)
					p.got(id, pathmsg.Offer{NAT: c.claims, Candidates: addrs(victim)})
					if c.claims == pathmsg.NATHard {
						p.got(id, pathmsg.Punch{Toward: at(mapped)})
					}
					p.stays(9*time.Second, id)
					borne += p.at(at(victim).Addr())
					p.shows(id, honest)
					if v, _ := p.finder.View(id); v.Way.Addr != at(honest) {
						t.Fatalf("it is not found where it shows itself: %+v", v)
					}
					p.stays(3*time.Second, id) // it no longer answers
					borne += p.at(at(victim).Addr())
				}
				// Six punches, with the pauses after them; besides, candidates are tried now and then, as everyone's are.
				if most := 6*4*path.MaxSockets + 60*turns; borne > most || borne < path.MaxGuesses/2 {
					t.Errorf("%d packets to the victim in half an hour, want at most %d", borne, most)
				}
			})
		}
	}
}

// A peer that is found by a punch, falls silent and wants to be found again must not have sockets opened all the time.
func TestOpenerIsNotKeptBusy(t *testing.T) {
	p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy)
	for begun := p.now; p.now.Sub(begun) < 20*time.Minute; {
		p.stays(time.Second, 1)
		p.offer(1, pathmsg.NATEasy, "192.0.2.1")
		if _, ok := p.route[1]; ok && len(p.open) == path.MaxSockets {
			p.hit(slices.Max(slices.Collect(maps.Keys(p.open))))
		}
		p.sent = nil
	}
	if most := 24 * path.MaxSockets; p.opened > most || p.opened < 10*path.MaxSockets {
		t.Errorf("%d sockets in 20 minutes, want at most %d, and some", p.opened, most)
	}
}

// A peer that keeps announcing other addresses has a few pings sent to each, and no more if it announces more often.
func TestOffersDoNotAmplify(t *testing.T) {
	p := newPuncher(pathmsg.NATEasy, pathmsg.NATEasy)
	host := at(victim).Addr()
	said, borne := 0, 0
	for begun := p.now; p.now.Sub(begun) < time.Minute; said++ {
		var o pathmsg.Offer
		for i := range uint16(pathmsg.MaxCandidates) {
			o.Candidates = append(o.Candidates, netip.AddrPortFrom(host, 1024+uint16(said)%2000*pathmsg.MaxCandidates+i))
		}
		p.got(1, o)
		p.pass(60 * time.Millisecond)
		borne += p.at(host)
	}
	if most := 6 * 4 * 5 * 8; borne > most || borne < most/2 { // searches of ten seconds, rounds of each, addresses that are kept
		t.Errorf("%d pings for %d Offers, want at most %d", borne, said, most)
	}
}
