package agenttest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
)

// service is something that a rule may let through; several form a set.
type service uint8

const (
	ping service = 1 << iota
	udp
	tcp

	anything = ping | udp | tcp
)

func (s service) String() string {
	var list []string
	for i, name := range []string{"ping", "UDP", "TCP"} {
		if s&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	if len(list) == 0 {
		return "nothing"
	}
	return fmt.Sprint(list)
}

// law is who may reach whom by which service: what a policy and the trust in nodes amount to.
type law [maxNodes][maxNodes]service

// marker is in everything that programs send each other. It must not be seen on the wire, where all is encrypted.
var marker = []byte("nobody-reads-this")

// Ports of the packets that programs send. Nobody listens on the first.
const (
	askPort  = 40000
	echoPort = 53
)

// saying is a packet of a node's programs, which the other node's programs send back.
type saying struct {
	from, to int
	what     service
	at       time.Time
	src, dst netip.Addr
	held     []law // laws that the sender may have held then
	taken    []law // laws that the receiver may have held when it arrived
	forged   bool  // it has another node's source address
	owed     bool  // it must arrive, and so must its answer
	came     int
	back     int
}

func (s *saying) String() string {
	return fmt.Sprintf("%v from n%d to n%d, sent at %s", s.what, s.from, s.to, clockTime(s.at))
}

// clockTime formats a time for the log of a trial. The clocks of a bubble begin at midnight.
func clockTime(t time.Time) string { return t.UTC().Format("15:04:05.000") }

// witness sees every packet that programs receive and everything on the wire, and knows what is permitted.
type witness struct {
	fail func(format string, args ...any)

	mu      sync.Mutex
	addrs   [maxNodes][]netip.Addr // in the mesh
	held    [maxNodes][]law        // laws that a node may hold, newest last
	sayings []*saying
	opened  map[[2]netip.AddrPort]bool // TCP connections that were requested
	wire    []sim.Seen                 // the datagrams seen last
	turn    int
	got     int
	clear   bool
}

// maxWire is how many datagrams an attacker keeps.
const maxWire = 256

// pronounce makes a law the newest one, which nodes may hold from then on. What it takes away is no longer owed.
func (w *witness) pronounce(l law) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.held {
		w.held[i] = append(slices.Clip(w.held[i]), l)
	}
	for _, s := range w.sayings {
		s.owed = s.owed && s.settled(time.Now()) || s.owed && l[s.from][s.to]&s.what != 0
	}
}

// settled reports whether a saying has had its time.
func (s *saying) settled(now time.Time) bool { return now.Sub(s.at) >= flight }

// flight is how long a packet and its answer take at most, if nothing is wrong.
const flight = 2 * time.Second

// holds records that a node enforces the newest law, and has acknowledged it.
func (w *witness) holds(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[i] = w.held[i][len(w.held[i])-1:]
}

// newest reports whether a node is known to enforce the newest law.
func (w *witness) newest(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.held[i]) == 1
}

// excuse cancels what is owed of packets in flight: something disturbs them.
func (w *witness) excuse() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.sayings {
		s.owed = s.owed && s.settled(time.Now())
	}
}

func allow(laws []law, from, to int, what service) bool {
	return slices.ContainsFunc(laws, func(l law) bool { return l[from][to]&what != 0 })
}

func allAllow(laws []law, from, to int, what service) bool {
	return !slices.ContainsFunc(laws, func(l law) bool { return l[from][to]&what == 0 })
}

// say makes a packet, and records it.
func (w *witness) say(s saying, size int) (*saying, []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.at = time.Now()
	s.held = w.held[s.from]
	s.owed = s.owed && allAllow(w.held[s.from], s.from, s.to, s.what) && allAllow(w.held[s.to], s.from, s.to, s.what)
	payload := binary.BigEndian.AppendUint64(bytes.Clone(marker), uint64(len(w.sayings)))
	payload = append(payload, make([]byte, max(0, size-len(payload)))...)
	w.sayings = append(w.sayings, &s)
	var p sim.Packet
	if s.what == ping {
		p = sim.Echo(s.src, s.dst, uint16(s.from)+1, uint16(len(w.sayings)), payload)
	} else {
		p = sim.UDP(netip.AddrPortFrom(s.src, askPort), netip.AddrPortFrom(s.dst, echoPort), payload)
	}
	return &s, p.Bytes()
}

// answered reports whether the answer to a saying has come.
func (w *witness) answered(s *saying) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.back > 0
}

// owner returns the node that has an address in the mesh.
func (w *witness) owner(a netip.Addr) int {
	return slices.IndexFunc(w.addrs[:], func(all []netip.Addr) bool { return slices.Contains(all, a) })
}

// given checks a packet that the programs of node number i receive.
func (w *witness) given(i int, p sim.Packet) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got++
	icmp := p.Proto == proto.ProtoICMP || p.Proto == proto.ProtoICMPv6
	switch {
	case icmp && p.Type == sim.Unreachable:
		// The node's own filter refuses its programs.
	case p.Proto == proto.ProtoTCP:
		w.segment(i, p)
	case p.Proto == proto.ProtoUDP, icmp && (p.Type == sim.EchoRequest || p.Type == sim.EchoReply):
		w.heard(i, p)
	default:
		w.fail("n%d was given what nobody sends: %+v", i, p)
	}
}

func (w *witness) segment(i int, p sim.Packet) {
	from := w.owner(p.Src.Addr())
	switch {
	case p.Flags&sim.RST != 0:
		return // from the filters, which end connections that are no longer allowed
	case from < 0 || w.owner(p.Dst.Addr()) != i:
		w.fail("n%d was given a segment of others: %v to %v", i, p.Src, p.Dst)
		return
	}
	if allow(w.held[i], from, i, tcp) {
		w.opened[[2]netip.AddrPort{p.Src, p.Dst}] = true
		return
	}
	if !allow(w.held[i], i, from, tcp) || !w.opened[[2]netip.AddrPort{p.Dst, p.Src}] {
		w.fail("n%d was given a segment of n%d that no law allows: %v to %v", i, from, p.Src, p.Dst)
	}
}

// heard checks a saying, or the answer to one.
func (w *witness) heard(i int, p sim.Packet) {
	n := len(marker)
	if len(p.Payload) < n+8 || !bytes.Equal(p.Payload[:n], marker) || binary.BigEndian.Uint64(p.Payload[n:]) >= uint64(len(w.sayings)) {
		w.fail("n%d was given what nobody said: %+v", i, p)
		return
	}
	s := w.sayings[binary.BigEndian.Uint64(p.Payload[n:])]
	answer := p.Dst.Port() == askPort || p.Type == sim.EchoReply && p.Proto != proto.ProtoUDP
	src, dst, to := s.src, s.dst, s.to
	if answer {
		src, dst, to = s.dst, s.src, s.from
	}
	switch {
	case s.forged:
		w.fail("n%d was given a packet of n%d that says it comes from %v: %v", i, s.from, p.Src, s)
	case p.Src.Addr() != src || p.Dst.Addr() != dst || i != to:
		w.fail("n%d was given a packet from %v to %v: %v", i, p.Src, p.Dst, s)
	case answer:
		if s.back++; s.back > 1 {
			w.fail("n%d was given an answer twice: %v", i, s)
		}
		if s.came == 0 || !allow(w.held[i], s.from, s.to, s.what) || !allow(s.taken, s.from, s.to, s.what) {
			w.fail("n%d was given an answer that no law allows: %v", i, s)
		}
	default:
		if s.came++; s.came > 1 {
			w.fail("n%d was given a packet twice: %v", i, s)
		}
		s.taken = w.held[i]
		if !allow(s.taken, s.from, s.to, s.what) || !allow(s.held, s.from, s.to, s.what) {
			w.fail("n%d was given a packet that no law allows: %v", i, s)
		}
	}
}

// sees checks and captures what is on the wire.
func (w *witness) sees(s sim.Seen) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.clear && bytes.Contains(s.Data, marker) {
		w.clear = true
		w.fail("what programs say can be read on the wire, from %v to %v", s.From, s.To)
	}
	if !s.Datagram() {
		return
	}
	if len(w.wire) < maxWire {
		w.wire = append(w.wire, s)
		return
	}
	w.wire[w.turn%maxWire] = s
	w.turn++
}

// captured returns the datagrams seen last.
func (w *witness) captured() []sim.Seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.wire)
}

// settleDebts checks that everything owed has arrived.
func (w *witness) settleDebts() {
	w.mu.Lock()
	defer w.mu.Unlock()
	lost, owed := 0, 0
	var first *saying
	for _, s := range w.sayings {
		if !s.owed || !s.settled(time.Now()) {
			continue
		}
		owed++
		if s.owed = false; s.came == 0 || s.back == 0 {
			if lost++; first == nil {
				first = s
			}
		}
	}
	if lost > 0 {
		w.fail("%d of %d packets or their answers are lost, though nothing disturbed them; the first: %v, which came %d times, and its answer %d times",
			lost, owed, first, first.came, first.back)
	}
}
