package agenttest

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// words formats an event with its numbers.
func words(format string) func(event) string {
	return func(e event) string { return fmt.Sprintf(format, e.x, e.y) }
}

// deeds are the events that may happen. Numbers of nodes and other things are taken modulo how many there are.
var deeds = []deed{
	{'o', words("nobody may reach anybody%.0[1]d%.0[2]d"), (*trial).nothing},
	{'O', words("everybody may reach everybody by the services in %[2]d%.0[1]d"), (*trial).everything},
	{'p', words("what node %d may do to the node %d after it is turned round"), (*trial).toggle},
	{'w', words("node %d begins, or stops, to talk to the node %d after it"), (*trial).talks},
	{'W', words("node %d and the node %d after it begin, or stop, to talk to each other"), (*trial).talkBoth},
	{'c', words("node %d opens a connection to the node %d after it"), (*trial).opens},
	{'r', words("node %d is revoked%.0[2]d"), (*trial).revoke},
	{'l', words("node %d is locked, or unlocked%.0[2]d"), (*trial).lock},
	{'n', words("the NAT of node %d starts again%.0[2]d"), (*trial).reboot},
	{'a', words("node %d gets another address, %d: behind another NAT of the same kind"), (*trial).readdress},
	{'m', words("node %d moves to a network of kind %d"), (*trial).moves},
	{'x', words("the path from node %d to %d (nodes, relays, coordinator) is cut, or healed"), (*trial).sever},
	{'h', words("all paths heal%.0[1]d%.0[2]d"), (*trial).heal},
	{'s', words("node %d falls asleep, or wakes%.0[2]d"), (*trial).sleep},
	{'k', words("relay %d dies, or starts again%.0[2]d"), (*trial).kill},
	{'d', words("relay %d stops, or starts again%.0[2]d"), (*trial).drain},
	{'C', words("the coordinator stops, or starts again%.0[1]d%.0[2]d"), (*trial).coordinator},
	{'R', words("the agent of node %d starts again%.0[2]d"), (*trial).restarts},
	{'t', words("keys change while all talk, for six minutes%.0[1]d%.0[2]d"), (*trial).rotate},
	{'j', words("the clock of node %d is set to be wrong by %d"), (*trial).jump},
	{'f', words("node %d says that it is the node %d after it"), (*trial).forge},
	{'i', words("an attacker on the way does %d with %d packets"), (*trial).attack},
	{'q', words("all settles%.0[1]d%.0[2]d"), func(t *trial, _ event) { t.settle() }},
}

// who returns the node that an event is about.
func (t *trial) who(e event) (int, *party) {
	i := e.x % len(t.parties)
	return i, t.parties[i]
}

// two returns the nodes that an event is about, which are never the same.
func (t *trial) two(e event) (i, j int) {
	i = e.x % len(t.parties)
	return i, (i + 1 + max(e.y-1, 0)%(len(t.parties)-1)) % len(t.parties)
}

func (t *trial) nothing(event) {
	if !t.away {
		t.policy = law{}
		t.apply()
	}
}

func (t *trial) everything(e event) {
	if t.away {
		return
	}
	what := service(e.y) & anything
	if what == 0 {
		what = anything
	}
	for i := range t.parties {
		for j := range t.parties {
			if t.policy[i][j] = what; i == j {
				t.policy[i][j] = 0
			}
		}
	}
	t.apply()
}

func (t *trial) toggle(e event) {
	if !t.away {
		i, j := t.two(e)
		t.policy[i][j] ^= anything
		t.apply()
	}
}

// maxStreams is the most pairs that talk continuously.
const maxStreams = 6

func (t *trial) talks(e event) {
	i, j := t.two(e)
	t.stream(i, j)
}

func (t *trial) talkBoth(e event) {
	i, j := t.two(e)
	t.stream(i, j)
	t.stream(j, i)
}

func (t *trial) stream(i, j int) {
	s := [2]int{i, j}
	if at := slices.Index(t.streams, s); at >= 0 {
		t.streams = slices.Delete(t.streams, at, at+1)
	} else if len(t.streams) < maxStreams {
		t.streams = append(t.streams, s)
	}
}

func (t *trial) opens(e event) {
	i, j := t.two(e)
	if t.law()[i][j]&tcp == 0 || !t.newest(i) || !t.newest(j) || !t.possible(i, j) || !t.calm {
		return
	}
	var err error
	for range 4 {
		var conn *sim.TCPConn
		if conn, err = t.parties[i].Connect(t.addrs[j][e.y%2], echoPort); err == nil {
			t.flows = append(t.flows, &tried{from: i, to: j, conn: conn})
			return
		}
	}
	t.Errorf("a connection from n%d to n%d, which is allowed and possible: %v", i, j, err)
}

func (t *trial) revoke(e event) {
	_, p := t.who(e)
	if t.away || p.revoked {
		return
	}
	p.revoked = true
	t.enact()
	must(t.center.admin().RevokeNode(t.Context(), &redoubtv1.RevokeNodeRequest{Node: p.name}))(t.T)
}

func (t *trial) lock(e event) {
	_, p := t.who(e)
	switch admin := t.center.admin; {
	case t.away || p.revoked:
	case p.locked == "":
		p.locked = "to be"
		t.enact()
		p.locked = must(admin().CreateLock(t.Context(), &redoubtv1.CreateLockRequest{Kind: "node", Subject: p.name}))(t.T).GetLock().GetId()
	default:
		id := p.locked
		p.locked = ""
		t.enact()
		must(admin().DeleteLock(t.Context(), &redoubtv1.DeleteLockRequest{Id: id}))(t.T)
		t.disturb() // the node has to come back
	}
}

// shake is a disturbance that moves something which others must learn about.
func (t *trial) shake() {
	t.disturb()
	for _, p := range t.parties {
		t.uprooted = t.uprooted || !t.hears(p)
	}
}

func (t *trial) reboot(e event) {
	if _, p := t.who(e); p.nat != nil {
		t.shake()
		p.nat.Reboot()
	}
}

func (t *trial) readdress(e event) {
	i, p := t.who(e)
	t.shake()
	if p.nat != nil && e.y%2 == 0 && !p.carrier {
		t.used++
		p.nat.SetAddrs(netip.AddrFrom4([4]byte{198, 51, 100, byte(t.used)}))
		return
	}
	t.place(i, p.attachment)
}

func (t *trial) moves(e event) {
	i, _ := t.who(e)
	t.shake()
	t.place(i, attachments[e.y%len(attachments)])
}

// target returns the machine that a number stands for: nodes, relays, the coordinator.
func (t *trial) target(n int) *sim.Host {
	var all []*sim.Host
	for _, p := range t.parties {
		all = append(all, p.host)
	}
	for _, c := range t.carries {
		all = append(all, c.host)
	}
	all = append(all, t.center.host)
	return all[n%len(all)]
}

func (t *trial) sever(e event) {
	_, p := t.who(e)
	other := t.target(e.y)
	if other == p.host {
		return
	}
	if other != t.center.host {
		t.disturb()
	}
	if key := pairOf(p.host, other); t.cuts[key] {
		delete(t.cuts, key)
		t.net.Heal(p.host, other)
	} else {
		t.cuts[key] = true
		t.net.Cut(p.host, other)
	}
}

func (t *trial) heal(event) {
	t.disturb()
	for key := range t.cuts {
		t.net.Heal(key[0], key[1])
	}
	clear(t.cuts)
}

func (t *trial) sleep(e event) {
	_, p := t.who(e)
	t.shake()
	if p.asleep = !p.asleep; p.asleep {
		p.host.Sleep()
	} else {
		p.host.Wake()
	}
}

func (t *trial) kill(e event) {
	c := t.carries[e.x%len(t.carries)]
	t.shake()
	if c.cancel == nil {
		t.serve(c, nil)
		return
	}
	c.host.Sleep() // so that its farewell is not heard
	t.stop(c)
	c.host.Wake()
}

func (t *trial) drain(e event) {
	c := t.carries[e.x%len(t.carries)]
	t.shake()
	if c.cancel == nil {
		t.serve(c, nil)
		return
	}
	t.stop(c)
}

func (t *trial) coordinator(event) {
	if t.away = !t.away; t.away {
		t.center.stop()
	} else {
		t.center.start()
	}
}

func (t *trial) restarts(e event) {
	i, p := t.who(e)
	t.shake()
	t.flows = slices.DeleteFunc(t.flows, func(f *tried) bool { return f.from == i }) // their programs are gone as well
	for _, f := range t.flows {
		f.ended = f.ended || f.to == i
	}
	p.restart()
}

func (t *trial) rotate(event) {
	t.settle()
	before := t.streams
	t.streams = nil
	l := t.law()
	for i := range t.parties {
		for j := range t.parties {
			if l[i][j]&udp != 0 && t.possible(i, j) && len(t.streams) < maxStreams {
				t.streams = append(t.streams, [2]int{i, j})
			}
		}
	}
	for range 12 {
		t.pass(30 * time.Second)
	}
	t.streams = before
	time.Sleep(flight)
	t.settleDebts()
}

// jumps are the amounts by which a clock may be wrong.
var jumps = []time.Duration{0, time.Second, -time.Second, 30 * time.Second, -30 * time.Second, 2 * time.Minute, -2 * time.Minute, time.Hour, -time.Hour}

func (t *trial) jump(e event) {
	_, p := t.who(e)
	wrong := jumps[e.y%len(jumps)]
	if !t.hears(p) && wrong.Abs() > time.Minute {
		wrong /= 60 // nobody tells it the time
	}
	p.clock.jump(wrong)
}

// forge has a node's programs send packets with other source addresses than their own.
func (t *trial) forge(e event) {
	i, j := t.two(e)
	for _, src := range append(slices.Clone(t.addrs[j]), netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("127.0.0.1")) {
		for k := range t.parties {
			if k != i {
				t.send(saying{from: i, to: k, what: udp, src: src, forged: true}, 0)
				t.send(saying{from: i, to: k, what: ping, src: src, forged: true}, 0)
			}
		}
	}
}

// counts are the numbers of packets that an attack may consist of.
var counts = []int{1, 4, 16, 64}

// attack injects packets made from captured ones.
func (t *trial) attack(e event) {
	seen := t.captured()
	for range counts[e.y%len(counts)] {
		if len(seen) == 0 {
			return
		}
		s := seen[t.rnd.IntN(len(seen))]
		s.Data = slices.Clone(s.Data)
		attacks[e.x%len(attacks)](t, &s)
		t.net.Inject(s)
	}
}

var attacks = []func(*trial, *sim.Seen){
	func(*trial, *sim.Seen) {}, // replayed unchanged
	func(t *trial, s *sim.Seen) { // with one bit changed
		if len(s.Data) > 0 {
			s.Data[t.rnd.IntN(len(s.Data))] ^= 1 << t.rnd.IntN(8)
		}
	},
	func(t *trial, s *sim.Seen) { // from another address
		if s.Public() {
			s.From = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 66}), uint16(1024+t.rnd.IntN(60000)))
		}
	},
	func(t *trial, s *sim.Seen) { // truncated, or padded
		if n := t.rnd.IntN(len(s.Data) + 40); n < len(s.Data) {
			s.Data = s.Data[:n]
		} else {
			s.Data = append(s.Data, make([]byte, n-len(s.Data))...)
		}
	},
	func(t *trial, s *sim.Seen) { // a path message with an unused counter
		if len(s.Data) >= 24 && s.Data[0] == 0xd0 {
			binary.BigEndian.PutUint64(s.Data[16:], binary.BigEndian.Uint64(s.Data[16:])+uint64(1+t.rnd.IntN(1000)))
		}
	},
	func(t *trial, s *sim.Seen) { // WireGuard's message types with random content
		if len(s.Data) >= 4 {
			for i := range s.Data {
				s.Data[i] = byte(t.rnd.Uint32())
			}
			copy(s.Data, []byte{byte(1 + t.rnd.IntN(4)), 0, 0, 0})
		}
	},
	func(t *trial, s *sim.Seen) { // to another destination
		s.To = t.captured()[t.rnd.IntN(len(t.captured()))].To
	},
}
