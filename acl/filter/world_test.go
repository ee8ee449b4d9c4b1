package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// The small world of these tests: this node is number 1, its peers are numbered from 2 on, node n has the addresses
// 100.64.x.y and fd00:1234:5678::xxyy where xy is n, and all peers are in the set "all".
var testMesh = proto.Mesh{
	ID: "m00000000000000000000000000", Domain: "mesh.internal",
	V4: netip.MustParsePrefix("100.64.0.0/16"), V6: netip.MustParsePrefix("fd00:1234:5678::/48"),
}

func testNode(n int) proto.Identity {
	id := proto.Identity{ID: proto.NodeID(n), Name: fmt.Sprintf("node%d", n), Tags: []string{fmt.Sprintf("tag:t%d", n)}}
	id.Addrs.V4 = netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)})
	v6 := testMesh.V6.Addr().As16()
	v6[14], v6[15] = byte(n>>8), byte(n)
	id.Addrs.V6 = netip.AddrFrom16(v6)
	return id
}

// someday is when monitor rules end in tests where it does not matter.
var someday = time.Unix(1_900_000_000, 0)

func v4(n int) netip.Addr { return testNode(n).Addrs.V4 }
func v6(n int) netip.Addr { return testNode(n).Addrs.V6 }

func testRuleset(peers int) Ruleset {
	r := Ruleset{Version: proto.Version{Epoch: 1, N: 1}, Mesh: testMesh, Self: testNode(1)}
	all := proto.Set{Name: "all"}
	for i := range peers {
		r.Peers = append(r.Peers, testNode(2+i))
		all.Members = append(all.Members, proto.NodeID(2+i))
	}
	r.Sets = []proto.Set{all}
	return r
}

func ownPrefixes(id proto.Identity) (out []netip.Prefix) {
	for _, a := range id.Addrs.Slice() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}

// rule adds a rule that permits services between this node's own addresses and the peers in the set "all". Its path is "in" or
// "out" and its number.
func (r *Ruleset) rule(d proto.Direction, services ...proto.Service) *proto.Rule {
	r.Rules = append(r.Rules, proto.Rule{
		Origin: proto.Origin{Path: fmt.Sprintf("%v[%d]", d, len(r.Rules)), Line: len(r.Rules) + 1}, Direction: d,
		Peers: proto.Selector{Sets: []string{"all"}}, Local: ownPrefixes(r.Self), Services: services,
	})
	return &r.Rules[len(r.Rules)-1]
}

func tcpPorts(first, last uint16) proto.Service {
	return proto.Service{Proto: proto.ProtoTCP, First: first, Last: last}
}

func udpPorts(first, last uint16) proto.Service {
	return proto.Service{Proto: proto.ProtoUDP, First: first, Last: last}
}
func whole(protocol uint8) proto.Service { return proto.Service{Proto: protocol, Last: 65535} }

// everything is all ports of each protocol that the tests use.
var everything = []proto.Service{
	whole(proto.ProtoTCP), whole(proto.ProtoUDP), whole(proto.ProtoSCTP), whole(proto.ProtoICMP), whole(proto.ProtoICMPv6),
}

// world is a filter with its clock and ruleset.
type world struct {
	*Filter
	testing.TB
	now   time.Time
	rules Ruleset
}

// newWorld returns a world with three peers. edit sets up the rules.
func newWorld(tb testing.TB, edit func(*Ruleset)) *world {
	tb.Helper()
	return newWorldOf(tb, Config{}, 3, edit)
}

func newWorldOf(tb testing.TB, c Config, peers int, edit func(*Ruleset)) *world {
	tb.Helper()
	w := &world{TB: tb, now: time.Unix(1_800_000_000, 0), rules: testRuleset(peers)}
	c.Now = func() time.Time { return w.now }
	w.Filter = New(c)
	edit(&w.rules)
	w.install()
	return w
}

// install puts the world's rules in force under the next version.
func (w *world) install() {
	w.Helper()
	w.rules.Version.N++
	p, err := Compile(w.rules)
	if err != nil {
		w.Fatal(err)
	}
	w.Install(p)
}

// reinstall clears the rules, lets edit write others, and installs them.
func (w *world) reinstall(edit func(*Ruleset)) {
	w.Helper()
	w.rules.Rules = nil
	edit(&w.rules)
	w.install()
}

// pass advances the clock and sweeps.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	w.Sweep(0, func(Reset) {})
}

// sweep sweeps the whole table and returns the resets sent to the ends of dead flows.
func (w *world) sweep() (toLocal, toPeer [][]byte) {
	w.Helper()
	done := w.Sweep(0, func(r Reset) {
		if r.ToLocal != nil {
			toLocal = append(toLocal, append([]byte(nil), r.ToLocal...))
		}
		if r.ToPeer != nil {
			toPeer = append(toPeer, append([]byte(nil), r.ToPeer...))
		}
	})
	if !done {
		w.Error("a whole sweep was not done")
	}
	return toLocal, toPeer
}

func (w *world) wantOut(want Reason, pkt []byte) Verdict {
	w.Helper()
	return w.want(want, w.Out(pkt), pkt)
}

func (w *world) wantIn(want Reason, pkt []byte) Verdict {
	w.Helper()
	return w.want(want, w.In(pkt), pkt)
}

// inFrom judges a packet from a peer, which may use its own addresses only.
func inFrom(f *Filter, from proto.NodeID, pkt []byte) Verdict {
	verdicts := make([]Verdict, 1)
	f.InBatch(from, [][]byte{pkt}, 0, verdicts)
	return verdicts[0]
}

func (w *world) want(want Reason, v Verdict, pkt []byte) Verdict {
	w.Helper()
	if v.Pass != (want == Permitted) || v.Reason != want {
		w.Fatalf("%s: got %q (pass %v), want %q", describe(pkt), v.Reason, v.Pass, want)
	}
	return v
}

// records drains the records.
func (w *world) records() (out []Record) {
	w.Drain(func(r Record) { out = append(out, r) })
	return out
}

func describe(pkt []byte) string {
	var p packet.Packet
	if fault := packet.Parse(pkt, &p); fault != packet.OK {
		return fmt.Sprintf("%x (%v)", pkt, fault)
	}
	return fmt.Sprintf("protocol %d %v:%d > %v:%d flags %#x type %d offset %d", p.Proto, p.Src, p.SrcPort, p.Dst, p.DstPort,
		p.Flags, p.Type, p.FragOffset)
}

// Flags of TCP segments in the tests.
const (
	syn    = packet.SYN
	synAck = packet.SYN | packet.ACK
	ack    = packet.ACK
	fin    = packet.FIN | packet.ACK
	rst    = packet.RST
)

func tcp(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, flags uint8) []byte {
	return segment(src, sport, dst, dport, flags, 1000, 2000, 0)
}

func segment(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, flags uint8, seq, ack uint32, payload int) []byte {
	b := packet.AppendSegment(nil, packet.Segment{
		Src: packet.AddrOf(src), Dst: packet.AddrOf(dst), SrcPort: sport, DstPort: dport, Seq: seq, Ack: ack, Flags: flags,
	})
	return lengthen(b, payload)
}

// lengthen appends n zeros to the packet and corrects its length.
func lengthen(b []byte, n int) []byte {
	b = append(b, make([]byte, n)...)
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
	return b
}

func udp(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, payload int) []byte {
	b := lengthen(ported(proto.ProtoUDP, src, sport, dst, dport), payload)
	binary.BigEndian.PutUint16(b[len(b)-payload-4:], uint16(8+payload))
	return b
}

// ported returns a packet of any protocol with ports, or with data in their place.
func ported(protocol uint8, src netip.Addr, sport uint16, dst netip.Addr, dport uint16) []byte {
	b := packet.AppendQuote(nil, packet.AddrOf(src), packet.AddrOf(dst), protocol, sport, dport)
	if protocol == proto.ProtoSCTP {
		b = lengthen(b, 4)
	}
	return b
}

// icmp returns an ICMP message of the addresses' family.
func icmp(src, dst netip.Addr, kind, code uint8, id uint16, body []byte) []byte {
	protocol := uint8(proto.ProtoICMP)
	if src.Is6() {
		protocol = proto.ProtoICMPv6
	}
	b := packet.AppendQuote(nil, packet.AddrOf(src), packet.AddrOf(dst), protocol, id, 0)
	b[len(b)-8], b[len(b)-7] = kind, code
	return lengthen(append(b, body...), 0)
}

func ping(src, dst netip.Addr, id uint16) []byte {
	if src.Is6() {
		return icmp(src, dst, 128, 0, id, nil)
	}
	return icmp(src, dst, 8, 0, id, nil)
}

func pong(src, dst netip.Addr, id uint16) []byte {
	if src.Is6() {
		return icmp(src, dst, 129, 0, id, nil)
	}
	return icmp(src, dst, 0, 0, id, nil)
}

// unreachable returns an ICMP error about quote.
func unreachable(src, dst netip.Addr, quote []byte) []byte {
	return packet.AppendProhibited(nil, packet.AddrOf(src), packet.AddrOf(dst), quote)
}

// cut splits a packet into fragments of at most size bytes of payload, a multiple of eight.
func cut(pkt []byte, size int, id uint32) (out [][]byte) {
	header, first := 20, pkt[9]
	if pkt[0]>>4 == 6 {
		header, first = 40, pkt[6]
	}
	body := pkt[header:]
	for at := 0; at < len(body); at += size {
		out = append(out, piece(pkt[:header], first, id, at, body[at:min(at+size, len(body))], at+size < len(body)))
	}
	return out
}

// piece returns one fragment.
func piece(header []byte, protocol uint8, id uint32, offset int, body []byte, more bool) []byte {
	b := append([]byte(nil), header...)
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[4:], uint16(id))
		flags := uint16(offset / 8)
		if more {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], flags)
	} else {
		b[6] = 44
		flags := uint16(offset)
		if more {
			flags |= 1
		}
		b = append(b, protocol, 0)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return lengthen(append(b, body...), 0)
}
