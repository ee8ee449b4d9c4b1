package agenttest

import (
	"fmt"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// program is what FuzzMesh parses its bytes as: a world, and the events in it. People write letters and digits; every other
// byte has a meaning as well.
//
//	3 o p s 2 0   p 1 0 4  W 0 1 5  ...
//	│ └─┬─┘ │ │   └──┬──┘
//	│   │   │ │      └─ events: what happens, two details, and the wait after it
//	│   │   │ └─ what links do to packets
//	│   │   └─ relays
//	│   └─ how each node is attached
//	└─ nodes
//
// Spaces are ignored.
type program struct {
	kinds  []attachment
	relays int
	air    air
	events []event
	seed   uint64 // decides what is left to chance
}

const (
	maxNodes  = 4
	maxRelays = 2
	maxEvents = 24
)

// attachment is a way of attaching a node to the Internet.
type attachment struct {
	letter  byte
	words   string
	cfg     *sim.NATConfig // nil if it has addresses of its own
	v4, v6  bool
	carrier bool // there is another NAT in front of its own
	shared  bool // it shares the NAT of the previous node, if that has one
}

var (
	symmetric   = sim.NATConfig{Mapping: sim.AddressAndPortDependent, Filtering: sim.AddressAndPortDependent, Ports: sim.Random}
	restricted  = sim.NATConfig{Filtering: sim.AddressAndPortDependent, Timeout: 30 * time.Second}
	attachments = []attachment{
		{letter: 'o', words: "on the Internet itself", v4: true},
		{letter: 'O', words: "on the Internet itself, over IPv4 and IPv6", v4: true, v6: true},
		{letter: 'v', words: "on the Internet itself, over IPv6 alone", v6: true},
		{letter: 'f', words: "behind a full cone NAT", v4: true, cfg: &sim.NATConfig{Ports: sim.Sequential}},
		{letter: 'a', words: "behind an address restricted NAT", v4: true, cfg: &sim.NATConfig{Filtering: sim.AddressDependent}},
		{letter: 'p', words: "behind a port restricted NAT that forgets after 30 s", v4: true, cfg: &restricted},
		{letter: 's', words: "behind a symmetric NAT", v4: true, cfg: &symmetric},
		{letter: '6', words: "behind a symmetric NAT that is a firewall for IPv6", v4: true, v6: true, cfg: &symmetric},
		{letter: 'c', words: "behind a port restricted NAT behind a carrier's symmetric one", v4: true, cfg: &restricted, carrier: true},
		{letter: 'h', words: "behind a full cone NAT that hairpins, with the node before it", v4: true, cfg: &sim.NATConfig{Hairpin: true}, shared: true},
		{letter: 'b', words: "behind a NAT that lets no UDP out", v4: true, cfg: &sim.NATConfig{BlockUDP: true}},
		{letter: 't', words: "behind a NAT that lets out TCP 443 alone", v4: true, cfg: &sim.NATConfig{BlockUDP: true, TCPPorts: []uint16{443}}},
	}
)

// air is what links do to packets.
type air struct {
	words string
	sim.Link
}

// lossless reports whether everything that is sent arrives.
func (a air) lossless() bool { return a.Loss == 0 }

var airs = []air{
	{"5 ms", sim.Link{Latency: latency}},
	{"40 ms", sim.Link{Latency: 40 * time.Millisecond}},
	{"20 ms, and up to 20 ms more", sim.Link{Latency: 20 * time.Millisecond, Jitter: 20 * time.Millisecond}},
	{"one of 20 packets lost", sim.Link{Latency: latency, Loss: 0.05}},
	{"one of five packets overtaken", sim.Link{Latency: 20 * time.Millisecond, Reorder: 0.2}},
	{"one of five packets doubled", sim.Link{Latency: latency, Duplicate: 0.2}},
	{"no packets above 1400 bytes, and nobody says so", sim.Link{Latency: latency, MTU: 1400, NoFragments: true, NoICMP: true}},
	{"all of it at once", sim.Link{Latency: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.03, Reorder: 0.1, Duplicate: 0.1, MTU: 1400, NoFragments: true, NoICMP: true}},
}

// event is something that happens.
type event struct {
	what deed
	x, y int
	wait time.Duration // until the next one
}

// deed is a kind of event.
type deed struct {
	letter byte
	words  func(e event) string
	do     func(t *trial, e event)
}

var waits = []time.Duration{
	0, 20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second,
	90 * time.Second, 5 * time.Minute,
}

// reader reads a program from its bytes.
type reader []byte

func (r *reader) next() (b byte, ok bool) {
	for len(*r) > 0 {
		b, *r = (*r)[0], (*r)[1:]
		if b != ' ' && b != '\n' {
			return b, true
		}
	}
	return 0, false
}

// number returns the value of a digit, or of any other byte.
func (r *reader) number() int {
	b, _ := r.next()
	if b >= '0' && b <= '9' {
		return int(b - '0')
	}
	return int(b)
}

// choose returns the item with the letter, or, for other bytes, any item.
func choose[T any](b byte, from []T, letter func(T) byte) T {
	for _, x := range from {
		if letter(x) == b {
			return x
		}
	}
	return from[int(b)%len(from)]
}

func parseProgram(data []byte) program {
	var p program
	for _, b := range data {
		p.seed = p.seed*31 + uint64(b)
	}
	r := reader(data)
	for range 2 + (r.number()+1)%(maxNodes-1) {
		b, _ := r.next()
		p.kinds = append(p.kinds, choose(b, attachments, func(a attachment) byte { return a.letter }))
	}
	p.relays = 1 + (r.number()+1)%maxRelays
	p.air = airs[r.number()%len(airs)]
	for len(p.events) < maxEvents {
		b, ok := r.next()
		if !ok {
			break
		}
		e := event{what: choose(b, deeds, func(d deed) byte { return d.letter })}
		e.x, e.y = r.number(), r.number()
		e.wait = waits[r.number()%len(waits)]
		p.events = append(p.events, e)
	}
	return p
}

// String describes the program in words.
func (p program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes, %d relays; links: %s\n", len(p.kinds), p.relays, p.air.words)
	for i, k := range p.kinds {
		fmt.Fprintf(&b, "  n%d is %s\n", i, k.words)
	}
	for i, e := range p.events {
		fmt.Fprintf(&b, "  %2d. %s; %v pass\n", i+1, e.what.words(e), e.wait)
	}
	return b.String()
}
