package path_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// puncher is a Finder with some peers that no ping reaches, and everything it does.
type puncher struct {
	finder  *path.Finder
	now     time.Time
	own     pathmsg.Offer
	route   map[proto.NodeID]path.Route
	open    map[uint32]bool
	opened  int
	asked   []path.Send
	guesses []guess
	sent    []path.Send // since this was last emptied
}

// guess is a Ping to an address that nobody announced.
type guess struct {
	at time.Time
	to netip.AddrPort
}

const mapped = "198.51.100.1:41641" // this node's address outside its NAT

// newPuncher returns a node behind a NAT, with peers 1, 2 and so on behind others, each at 192.0.2.n.
func newPuncher(own pathmsg.NATClass, peers ...pathmsg.NATClass) *puncher {
	p := &puncher{
		finder: path.NewFinder(bounds, local, rand.Reader), now: time.Unix(1_000_000, 0),
		own:  pathmsg.Offer{NAT: own, Candidates: addrs(mapped, "192.168.1.7:41641")},
		open: map[uint32]bool{}, route: map[proto.NodeID]path.Route{},
	}
	p.step(path.Offering{Offer: p.own})
	for i, class := range peers {
		id := proto.NodeID(i + 1)
		p.step(path.Known{ID: id, Relay: home})
		p.offer(id, class, fmt.Sprintf("192.0.2.%d", id))
	}
	return p
}

func (p *puncher) offer(id proto.NodeID, class pathmsg.NATClass, host string) {
	p.got(id, pathmsg.Offer{NAT: class, Candidates: addrs(host+":41641", "10.0.0.9:41641")})
}

func (p *puncher) got(id proto.NodeID, m pathmsg.Message) {
	p.step(path.Got{ID: id, From: path.Way{Relay: home}, Message: m})
}

func (p *puncher) step(e path.Event) {
	for _, f := range p.finder.Step(p.now, e) {
		switch f := f.(type) {
		case path.Use:
			p.route[f.ID] = f.Route
		case path.Open:
			p.open[f.Socket] = true
			p.opened++
		case path.Shut:
			if !p.open[f.Socket] {
				panic("closes a socket that is not open")
			}
			delete(p.open, f.Socket)
		case path.Send:
			p.sends(f)
		}
	}
}

func (p *puncher) sends(f path.Send) {
	p.sent = append(p.sent, f)
	if _, ok := f.Message.(pathmsg.Punch); ok {
		p.asked = append(p.asked, f)
	}
	_, ping := f.Message.(pathmsg.Ping)
	if ping && f.To.Direct() && f.To.Socket == 0 && f.To.Addr.Port() != 41641 {
		p.guesses = append(p.guesses, guess{p.now, f.To.Addr})
	}
	if f.To.Socket != 0 && !p.open[f.To.Socket] {
		panic("sends by a socket that is not open")
	}
}

// live lets time pass. Packets go out to the given peers.
func (p *puncher) live(d time.Duration, to ...proto.NodeID) {
	for _, id := range to {
		p.step(path.Wanted{ID: id})
	}
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(5 * time.Millisecond)
		for next := p.finder.Next(); !next.IsZero() && !next.After(p.now); next = p.finder.Next() {
			p.step(path.Tick{})
		}
		for id := range proto.NodeID(3) {
			used := slices.Contains(to, id+1)
			p.step(path.Used{ID: id + 1, Sent: used, Heard: used})
		}
	}
}

// pass lets time pass in which nothing is sent or received.
func (p *puncher) pass(d time.Duration) {
	end := p.now.Add(d)
	for next := p.finder.Next(); !next.IsZero() && !next.After(end); next = p.finder.Next() {
		p.now = next
		p.step(path.Tick{})
	}
	p.now = end
}

var classes = []pathmsg.NATClass{pathmsg.NATUnknown, pathmsg.NATNone, pathmsg.NATEasy, pathmsg.NATHard, pathmsg.NATBlocked}

// Sockets are opened, and ports guessed, only if one NAT is hard and the other easy.
func TestWhoPunches(t *testing.T) {
	for _, own := range classes {
		for _, other := range classes {
			p := newPuncher(own, other)
			p.live(2*time.Second, 1)
			opens, guesses := own == pathmsg.NATHard && other == pathmsg.NATEasy, own == pathmsg.NATEasy && other == pathmsg.NATHard
			if len(p.asked) > 0 != opens || p.opened > 0 || len(p.guesses) > 0 {
				t.Errorf("%s with %s: asked %d times, %d sockets, %d guesses", own, other, len(p.asked), p.opened, len(p.guesses))
			}
			p.got(1, pathmsg.Punch{Toward: at(mapped)}) // a request, whatever the NATs are
			p.got(1, pathmsg.Punch{Toward: at("192.0.2.1:41641")})
			p.live(time.Second, 1)
			if p.opened > 0 != opens || len(p.guesses) > 0 != guesses {
				t.Errorf("%s with %s, asked: %d sockets, %d guesses", own, other, p.opened, len(p.guesses))
			}
		}
	}
}

// Nothing is guessed for an unknown peer, one that names an address which is not ours, or one without a relay.
func TestWhoseWishesAreNotFollowed(t *testing.T) {
	p := newPuncher(pathmsg.NATEasy, pathmsg.NATHard)
	p.got(1, pathmsg.Punch{Toward: at("192.0.2.77:1")})
	p.got(9, pathmsg.Punch{Toward: at(mapped)})
	p.step(path.Known{ID: 1})
	p.got(1, pathmsg.Punch{Toward: at(mapped)})
	p.live(2 * time.Second)
	if len(p.guesses)+len(p.asked) > 0 {
		t.Errorf("%d guesses, %d answers", len(p.guesses), len(p.asked))
	}
}

// answers has a peer agree to the punches that it was asked for.
func (p *puncher) answers(id proto.NodeID) {
	asked := p.asked
	p.asked = nil
	for _, f := range asked {
		if f.ID == id {
			p.got(id, f.Message)
		}
	}
}

// A punch that hits nothing opens exactly MaxSockets sockets, not all at once, and closes them all. The pause before the next
// one grows.
func TestOpenerThatMisses(t *testing.T) {
	p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy)
	p.live(time.Second, 1)
	pause := time.Minute
	for range 7 {
		p.opened, p.sent = 0, nil
		p.answers(1)
		if p.opened == 0 || p.opened > 64 {
			t.Fatalf("%d sockets at once", p.opened)
		}
		p.live(500*time.Millisecond, 1)
		pinged := map[uint32]bool{}
		for _, s := range p.sent {
			if s.To.Socket != 0 && s.To.Addr == at("192.0.2.1:41641") {
				pinged[s.To.Socket] = true
			}
		}
		if p.opened != path.MaxSockets || len(pinged) != path.MaxSockets {
			t.Errorf("%d sockets, %d of them pinged from", p.opened, len(pinged))
		}
		p.live(11*time.Second, 1)
		ended := p.now
		if len(p.open) > 0 || p.opened != path.MaxSockets {
			t.Errorf("%d sockets are open in the end, of %d", len(p.open), p.opened)
		}
		p.asked = nil
		for len(p.asked) == 0 && p.now.Sub(ended) < time.Hour {
			p.step(path.Used{ID: 1, Sent: true, Heard: true})
			p.pass(time.Second)
		}
		if took := p.now.Sub(ended); took < pause-time.Second || took > pause+10*time.Second {
			t.Errorf("asks again after %s, want %s", took, pause)
		}
		pause = min(2*pause, 32*time.Minute)
	}
}

// A peer that does not answer costs a few messages, and no sockets.
func TestOpenerWithoutAnswer(t *testing.T) {
	p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy)
	p.live(time.Minute, 1)
	if p.opened > 0 || len(p.asked) > 24 {
		t.Errorf("%d sockets, asked %d times in a minute", p.opened, len(p.asked))
	}
}

// Guesses are a bounded number of different ports of one address, at a bounded pace, and no other peer has any made meanwhile.
// After a miss, neither the peer nor others that name the address get more, with growing pauses.
func TestGuesserThatMisses(t *testing.T) {
	p := newPuncher(pathmsg.NATEasy, pathmsg.NATHard, pathmsg.NATHard, pathmsg.NATHard)
	p.offer(2, pathmsg.NATHard, "192.0.2.1")
	ask := func() {
		for id := range proto.NodeID(3) {
			p.got(id+1, pathmsg.Punch{Toward: at(mapped)})
		}
	}
	ask()
	for range 12 * 20 {
		p.live(50 * time.Millisecond)
		if p.now.Sub(p.guesses[0].at) < 11*time.Second {
			ask()
		}
	}
	ports := map[uint16]bool{}
	for i, g := range p.guesses {
		ports[g.to.Port()] = true
		if g.to.Addr() != at("192.0.2.1:1").Addr() || g.to.Port() < 1024 {
			t.Fatalf("guessed %s", g.to)
		}
		if i >= 105 && g.at.Sub(p.guesses[i-105].at) < time.Second {
			t.Fatal("more than 105 in a second")
		}
	}
	if len(ports) != path.MaxGuesses || len(p.guesses) != path.MaxGuesses {
		t.Errorf("%d guesses of %d ports", len(p.guesses), len(ports))
	}
	// Asked all day long, by three peers of which two name the same address:
	p.guesses = nil
	hosts := map[netip.Addr]int{}
	for range 24 * 3600 / 5 {
		ask()
		p.pass(5 * time.Second)
		for _, g := range p.guesses {
			hosts[g.to.Addr()]++
		}
		p.guesses, p.sent, p.asked = nil, nil, nil
	}
	for host, n := range hosts {
		if most := path.MaxGuesses * (6 + 24*60/32 + 2); n > most {
			t.Errorf("%d guesses at %s in a day, want at most %d", n, host, most)
		}
	}
}

// hit has a Ping of the peer arrive on a socket, and answers all pings sent from it.
func (p *puncher) hit(socket uint32) {
	way := path.Way{Addr: at("192.0.2.1:41641"), Socket: socket}
	p.sent = nil
	p.step(path.Got{ID: 1, From: way, Message: pathmsg.Ping{TxID: pathmsg.TxID{1}}})
	for _, s := range p.sent {
		if m, ok := s.Message.(pathmsg.Ping); ok && s.To == way {
			p.step(path.Got{ID: 1, From: way, Message: pathmsg.Pong{TxID: m.TxID}})
		}
	}
}

// Of two peers that a punch may reach, one waits for the other.
func TestOnePunchAtATime(t *testing.T) {
	p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy, pathmsg.NATEasy)
	p.live(time.Second, 1, 2)
	first := p.asked[0].ID
	p.answers(first)
	for range 10 {
		p.live(time.Second, 1, 2)
		if len(p.asked) > 0 || len(p.open) > path.MaxSockets {
			t.Fatalf("asks for %d more, %d sockets", len(p.asked), len(p.open))
		}
	}
	p.live(3*time.Second, 1, 2)
	if len(p.asked) == 0 || p.asked[0].ID == first {
		t.Errorf("the other one is not asked: %v", p.asked)
	}
}

// The socket that is hit is kept open for as long as the path through it is used.
func TestOpenerThatIsHit(t *testing.T) {
	for name, leave := range map[string]func(*puncher){
		"lost":   func(p *puncher) { p.live(5*time.Second, 1) },
		"gone":   func(p *puncher) { p.step(path.Gone{ID: 1}) },
		"silent": func(p *puncher) { p.live(10 * time.Minute) },
		"better": func(p *puncher) {
			p.sent = nil
			near := path.Way{Addr: at("192.168.1.9:41641")}
			p.step(path.Got{ID: 1, From: near, Message: pathmsg.Ping{}})
			p.live(400*time.Millisecond, 1) // pings from the socket go unanswered as well
			for _, s := range p.sent {
				if m, ok := s.Message.(pathmsg.Ping); ok && s.To == near {
					p.step(path.Got{ID: 1, From: near, Message: pathmsg.Pong{TxID: m.TxID}})
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy)
			p.live(time.Second, 1)
			p.answers(1)
			p.live(time.Second, 1)
			p.hit(77)
			want := path.Way{Addr: at("192.0.2.1:41641"), Socket: 77}
			if r := p.route[1]; r.Main != want || !r.Copy.IsZero() || len(p.open) != 1 || !p.open[77] {
				t.Fatalf("hit: %+v, %d sockets", r, len(p.open))
			}
			if v, _ := p.finder.View(1); !v.Punched || v.Way != want {
				t.Errorf("hit: %+v", v)
			}
			leave(p)
			if len(p.open) > 0 || p.route[1].Main == want && name != "gone" {
				t.Errorf("%s: %d sockets, %+v", name, len(p.open), p.route[1])
			}
		})
	}
}

// A Pong to a guess makes the path; a Pong to a Ping that was never sent does not.
func TestGuesserThatHits(t *testing.T) {
	p := newPuncher(pathmsg.NATEasy, pathmsg.NATHard)
	p.got(1, pathmsg.Punch{Toward: at(mapped)})
	p.live(time.Second, 1)
	p.got(1, pathmsg.Pong{TxID: pathmsg.TxID{1, 2, 3}})
	if p.route[1].Main.Direct() {
		t.Fatalf("forged: %+v", p.route[1])
	}
	last := p.sent[len(p.sent)-1]
	for _, s := range p.sent {
		if _, ok := s.Message.(pathmsg.Ping); ok && s.To.Direct() && s.To.Addr.Port() != 41641 {
			last = s
		}
	}
	p.got(1, pathmsg.Pong{TxID: last.Message.(pathmsg.Ping).TxID})
	p.guesses = nil
	p.live(60*time.Millisecond, 1)
	others := slices.ContainsFunc(p.guesses, func(g guess) bool { return g.to != last.To.Addr })
	if v, _ := p.finder.View(1); p.route[1].Main != last.To || !v.Punched || others {
		t.Errorf("%+v, %+v, guesses afterwards: %v", p.route[1], v, p.guesses)
	}
}

// The opener pings a punched path for some minutes after its last packet, and then stops.
func TestPunchedWayIsKeptOpen(t *testing.T) {
	p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy)
	p.live(time.Second, 1)
	p.answers(1)
	p.live(time.Second, 1)
	p.hit(5)
	p.sent = nil
	var pings []time.Time
	for begun := p.now; p.now.Sub(begun) < 20*time.Minute; {
		p.live(20 * time.Millisecond)
		for _, s := range p.sent {
			if m, ok := s.Message.(pathmsg.Ping); ok {
				pings = append(pings, p.now)
				p.step(path.Got{ID: 1, From: s.To, Message: pathmsg.Pong{TxID: m.TxID}})
			}
		}
		p.sent = nil
	}
	if len(pings) < 14 || len(pings) > 19 || !p.open[5] || !p.finder.Next().IsZero() {
		t.Errorf("%d pings in 20 minutes at rest, socket open: %t, next %s", len(pings), p.open[5], p.finder.Next())
	}
}

// Whatever peers send: there are never more sockets than promised, and all are closed in the end; there are never more guesses
// than promised, and only at usable addresses that a peer announced.
func TestPunchKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		own := rapid.SampledFrom(classes[2:4]).Draw(t, "own")
		p := newPuncher(own, pathmsg.NATEasy, pathmsg.NATHard, pathmsg.NATHard)
		host := rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2", "203.0.113.9", "224.0.0.1", "127.0.0.1", "100.64.0.9", "255.255.255.255"})
		begun := p.now
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			id := proto.NodeID(rapid.IntRange(1, 3).Draw(t, "peer"))
			switch rapid.IntRange(0, 7).Draw(t, "event") {
			case 0:
				p.offer(id, rapid.SampledFrom(classes).Draw(t, "class"), host.Draw(t, "host"))
			case 1:
				p.got(id, pathmsg.Punch{Toward: at(mapped)})
			case 2:
				p.answers(id)
			case 3:
				p.live(time.Duration(rapid.IntRange(1, 3000).Draw(t, "ms"))*time.Millisecond, id)
			case 4:
				way := path.Way{Addr: at(host.Draw(t, "from") + ":41641"), Socket: uint32(rapid.IntRange(0, 600).Draw(t, "socket"))}
				p.sent = nil
				if way.Socket == 0 || p.open[way.Socket] {
					p.step(path.Got{ID: id, From: way, Message: pathmsg.Ping{}})
				}
				for _, s := range p.sent {
					if m, ok := s.Message.(pathmsg.Ping); ok && rapid.Bool().Draw(t, "answered") {
						p.got(id, pathmsg.Pong{TxID: m.TxID})
					}
				}
			case 5:
				p.step(path.Moved{Local: local})
			case 6:
				p.step(path.Offering{Offer: p.own})
			case 7:
				p.step(path.Gone{ID: id})
				p.step(path.Known{ID: id, Relay: home})
			}
			if len(p.open) > path.MaxSockets+3 {
				t.Fatalf("%d sockets", len(p.open))
			}
		}
		if most := int(p.now.Sub(begun)/(50*time.Millisecond)+1)*5 + 5; len(p.guesses) > most {
			t.Fatalf("%d guesses in %s", len(p.guesses), p.now.Sub(begun))
		}
		for _, g := range p.guesses {
			if bounds.Check(g.to) != nil {
				t.Fatalf("guessed %s", g.to)
			}
		}
		p.live(time.Minute)
		for id := range proto.NodeID(3) {
			p.step(path.Gone{ID: id + 1})
		}
		if len(p.open) > 0 {
			t.Fatalf("%d sockets are left", len(p.open))
		}
	})
}
