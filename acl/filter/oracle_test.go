package filter

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// oracle is the filter again, as its specification says it: lists, no compilation, no hashing.
type oracle struct {
	rules  *Ruleset // nil: nothing passes
	number int      // of installs
	now    time.Time
	flows  []*oracleFlow
}

type oracleFlow struct {
	peer          proto.NodeID
	local, remote netip.AddrPort
	proto         uint8
	opened        proto.Direction
	judged        int // under which install
	life          time.Duration
	last          time.Time
	answered      bool
	finLocal      bool
	finRemote     bool
	closing       bool
	dead          bool
}

// sees is what the oracle wants to know about a packet.
type sees struct {
	d             proto.Direction
	from          proto.NodeID
	local, remote netip.AddrPort
	proto         uint8
	flags         uint8
	reply         bool // ICMP echo reply
	about         *sees
}

func (o *oracle) permitted(d proto.Direction, local, remote netip.AddrPort, protocol uint8) (Reason, proto.NodeID) {
	if o.rules == nil {
		return Closed, 0
	}
	id, routed := o.behind(remote.Addr())
	if id == 0 {
		return UnknownPeer, 0
	}
	if !o.rules.Self.Addrs.Has(local.Addr()) {
		if d == proto.In {
			return ForeignDestination, id
		}
		return ForeignSource, id
	}
	port := remote.Port()
	if d == proto.In {
		port = local.Port()
	}
	reason, watched := NoRule, false
	for _, r := range o.rules.Rules {
		if r.Direction != d || !o.selects(r.Peers, id, routed, remote.Addr()) || len(r.Services) == 0 ||
			!slices.ContainsFunc(r.Local, func(p netip.Prefix) bool { return p.Contains(local.Addr()) }) {
			continue
		}
		meant := slices.ContainsFunc(r.Services, func(s proto.Service) bool {
			return s.Proto == protocol && (!proto.HasPorts(protocol) || s.First <= port && port <= s.Last)
		})
		switch {
		case r.Action == proto.Deny && meant:
			return Forbidden, id // whatever else there is
		case r.Action == proto.Monitor:
			watched = watched || meant
		case r.Action == proto.Allow && meant:
			reason = Permitted
		case r.Action == proto.Allow && reason == NoRule:
			reason = NoService
		}
	}
	if watched {
		return Permitted, id
	}
	return reason, id
}

// behind finds the node whose address it is or, outside of the mesh, behind which it is.
func (o *oracle) behind(addr netip.Addr) (id proto.NodeID, routed bool) {
	for _, p := range o.rules.Peers {
		if p.Addrs.Has(addr) {
			return p.ID, false
		}
	}
	longest := -1
	for _, r := range o.rules.Routes {
		if r.Prefix.Contains(addr) && r.Prefix.Bits() > longest && !testMesh.Contains(addr) {
			id, longest = r.Node, r.Prefix.Bits()
		}
	}
	if !slices.ContainsFunc(o.rules.Peers, func(p proto.Identity) bool { return p.ID == id }) {
		return 0, false
	}
	return id, true
}

func (o *oracle) selects(s proto.Selector, id proto.NodeID, routed bool, addr netip.Addr) bool {
	for _, p := range s.Prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	for _, set := range o.rules.Sets {
		if !routed && slices.Contains(s.Sets, set.Name) && slices.Contains(set.Members, id) {
			return true
		}
	}
	return false
}

// alive finds the flow, ends it if its time is over, and judges it if the policy changed.
func (o *oracle) alive(local, remote netip.AddrPort, protocol uint8) *oracleFlow {
	for i, f := range o.flows {
		if f.local != local || f.remote != remote || f.proto != protocol {
			continue
		}
		if !f.dead && !o.now.Before(f.last.Add(f.life)) {
			o.flows = slices.Delete(o.flows, i, i+1)
			return nil
		}
		o.review(f)
		return f
	}
	return nil
}

func (o *oracle) review(f *oracleFlow) {
	if !f.dead && f.judged != o.number {
		reason, id := o.permitted(f.opened, f.local, f.remote, f.proto)
		f.dead = reason != Permitted || id != f.peer
		f.judged = o.number
	}
}

func (o *oracle) sweep() {
	o.flows = slices.DeleteFunc(o.flows, func(f *oracleFlow) bool {
		if !f.dead && !o.now.Before(f.last.Add(f.life)) {
			return true
		}
		o.review(f)
		return f.dead
	})
}

func (o *oracle) judge(p sees) Reason {
	if p.about != nil {
		f := o.alive(p.about.local, p.about.remote, p.about.proto)
		switch {
		case p.about.local.Addr() != p.local.Addr() || p.about.remote.Addr() != p.remote.Addr() || p.about.d == p.d:
			return ICMPUnrelated
		case o.rules == nil:
			return Closed
		case f == nil:
			return ICMPUnrelated
		case p.from != 0 && p.from != f.peer:
			return Spoofed
		case f.dead:
			return Revoked
		}
		return Permitted
	}
	f := o.alive(p.local, p.remote, p.proto)
	opening := p.proto == proto.ProtoTCP && p.flags&(syn|packet.ACK|rst|packet.FIN) == syn
	switch {
	case f == nil:
	case f.dead:
		return Revoked
	case p.from != 0 && p.from != f.peer:
		return Spoofed
	case opening && (f.closing || p.d != f.opened):
	default:
		o.count(f, p)
		return Permitted
	}
	reason, id := o.permitted(p.d, p.local, p.remote, p.proto)
	switch {
	case reason == Closed:
		return Closed
	case p.d == proto.In && p.from != 0 && id != p.from:
		return Spoofed
	case p.d == proto.Out && o.rules != nil && !o.rules.Self.Addrs.Has(p.local.Addr()):
		return ForeignSource
	case reason == UnknownPeer || reason == ForeignDestination:
		return reason
	case p.proto == proto.ProtoTCP && !opening || p.reply:
		return NoFlow
	case reason != Permitted:
		return reason
	case f != nil && !f.closing:
		o.count(f, p)
		return Permitted
	}
	o.flows = slices.DeleteFunc(o.flows, func(g *oracleFlow) bool { return g == f })
	f = &oracleFlow{peer: id, local: p.local, remote: p.remote, proto: p.proto, opened: p.d, judged: o.number}
	o.flows = append(o.flows, f)
	o.count(f, p)
	return Permitted
}

// count moves the flow's state and its time.
func (o *oracle) count(f *oracleFlow, p sees) {
	answer := p.d != f.opened
	if p.proto == proto.ProtoTCP {
		f.answered = f.answered || answer && p.flags&synAck == synAck
		f.finLocal = f.finLocal || p.d == proto.Out && p.flags&packet.FIN != 0
		f.finRemote = f.finRemote || p.d == proto.In && p.flags&packet.FIN != 0
		f.closing = f.closing || p.flags&rst != 0 || f.finLocal && f.finRemote
	} else {
		f.answered = f.answered || answer
	}
	f.last = o.now
	switch {
	case p.proto == proto.ProtoTCP && f.answered && !f.closing:
		f.life = 3 * time.Hour
	case p.proto == proto.ProtoTCP:
		f.life = time.Minute
	case p.proto == proto.ProtoUDP && f.answered:
		f.life = 3 * time.Minute
	case f.answered:
		f.life = time.Minute
	default:
		f.life = 30 * time.Second
	}
}

// drawRules makes rules of few sets, prefixes and ports, so that they meet.
func drawRules(t *rapid.T) Ruleset {
	r := Ruleset{Mesh: testMesh, Self: testNode(1)}
	for n := 2; n <= 5; n++ {
		if rapid.IntRange(0, 4).Draw(t, "there") > 0 {
			r.Peers = append(r.Peers, testNode(n))
		}
	}
	if rapid.IntRange(0, 5).Draw(t, "an address changes hands") == 0 && len(r.Peers) > 0 {
		r.Peers[0].ID += 100
	}
	for _, name := range []string{"a", "b", "c"} {
		r.Sets = append(r.Sets, proto.Set{Name: name, Members: rapid.SliceOfNDistinct(
			rapid.SampledFrom([]proto.NodeID{2, 3, 4, 5, 102, 103}), 0, 4, rapid.ID).Draw(t, "members")})
	}
	for _, p := range drawnRoutes {
		if node := rapid.SampledFrom([]proto.NodeID{0, 0, 2, 3, 9}).Draw(t, "router"); node > 0 {
			r.Routes = append(r.Routes, Route{p, node})
		}
	}
	prefixes := []netip.Prefix{
		netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("10.33.7.0/24"), netip.MustParsePrefix("fd99::/32"),
		testMesh.V4, testMesh.V6, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("100.64.0.2/31"),
		netip.MustParsePrefix("100.64.0.4/32"), netip.PrefixFrom(v6(3), 128), netip.PrefixFrom(v4(1), 32), netip.PrefixFrom(v6(1), 128),
	}
	for i := range rapid.IntRange(0, 6).Draw(t, "rules") {
		rule := proto.Rule{
			Origin:    proto.Origin{Path: fmt.Sprintf("grants[%d]", i), Line: i + 1},
			Direction: rapid.SampledFrom([]proto.Direction{proto.In, proto.Out}).Draw(t, "direction"),
			Peers: proto.Selector{
				Sets:     rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 2).Draw(t, "sets"),
				Prefixes: rapid.SliceOfN(rapid.SampledFrom(prefixes), 0, 1).Draw(t, "prefixes"),
			},
			Local: rapid.SliceOfN(rapid.SampledFrom(slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool {
				return p.Bits() == 0 || !testMesh.Contains(p.Addr()) // what this node serves is not what these packets are about
			})), 0, 3).Draw(t, "local"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "services") {
			protocol := rapid.SampledFrom(drawnProtocols).Draw(t, "protocol")
			if !proto.HasPorts(protocol) {
				rule.Services = append(rule.Services, whole(protocol))
				continue
			}
			first := rapid.SampledFrom(drawnPorts).Draw(t, "first")
			last := max(first, rapid.SampledFrom(drawnPorts).Draw(t, "last"))
			rule.Services = append(rule.Services, proto.Service{Proto: protocol, First: first, Last: last})
		}
		switch rapid.IntRange(0, 7).Draw(t, "action") {
		case 0, 1:
			rule.Action = proto.Deny
		case 2:
			rule.Action, rule.Until = proto.Monitor, someday
		}
		r.Rules = append(r.Rules, rule)
	}
	return r
}

var drawnRoutes = []netip.Prefix{
	netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("10.33.7.128/25"), netip.MustParsePrefix("0.0.0.0/0"),
	netip.MustParsePrefix("fd99::/48"), netip.MustParsePrefix("::/0"),
}

// beyond are addresses that are, or are not, behind routers.
var beyond = []netip.Addr{
	netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("10.33.7.1"), netip.MustParseAddr("10.33.7.129"), netip.MustParseAddr("192.0.2.1"),
	netip.MustParseAddr("fd99::1"), netip.MustParseAddr("2001:db8::1"),
}

var (
	drawnPorts     = []uint16{0, 22, 53, 80, 65535}
	drawnProtocols = []uint8{proto.ProtoTCP, proto.ProtoTCP, proto.ProtoUDP, proto.ProtoICMP, proto.ProtoICMPv6, proto.ProtoSCTP, proto.ProtoGRE}
)

// drawPacket makes a packet between this node's addresses and others', mostly sensible ones.
func drawPacket(t *rapid.T) ([]byte, sees) {
	p := sees{d: rapid.SampledFrom([]proto.Direction{proto.In, proto.Out}).Draw(t, "direction")}
	node := v4
	if rapid.IntRange(0, 2).Draw(t, "IPv6") == 0 {
		node = v6
	}
	us, them := node(1), node(rapid.IntRange(2, 6).Draw(t, "peer"))
	if rapid.IntRange(0, 3).Draw(t, "beyond") == 0 {
		if them = rapid.SampledFrom(beyond).Draw(t, "address beyond"); them.Is4() != us.Is4() {
			us = testNode(1).Addrs.Slice()[map[bool]int{true: 0, false: 1}[them.Is4()]]
		}
	}
	if them.Is4() == node(7).Is4() && rapid.IntRange(0, 9).Draw(t, "not us") == 0 {
		us = node(7)
	}
	lport, rport := rapid.SampledFrom(drawnPorts).Draw(t, "our port"), rapid.SampledFrom(drawnPorts).Draw(t, "their port")
	src, dst, sport, dport := us, them, lport, rport
	if p.d == proto.In {
		src, dst, sport, dport = them, us, rport, lport
		p.from = rapid.SampledFrom([]proto.NodeID{0, 0, 0, 2, 3, 102}).Draw(t, "from")
	}
	p.proto = rapid.SampledFrom(drawnProtocols).Draw(t, "protocol")
	var b []byte
	switch p.proto {
	case proto.ProtoTCP:
		p.flags = rapid.SampledFrom([]uint8{syn, syn, synAck, ack, ack, fin, rst, 0}).Draw(t, "flags")
		b = tcp(src, sport, dst, dport, p.flags)
	case proto.ProtoUDP:
		b = udp(src, sport, dst, dport, 8)
	case proto.ProtoICMP, proto.ProtoICMPv6:
		p.proto = proto.ProtoICMP
		if src.Is6() {
			p.proto = proto.ProtoICMPv6
		}
		id := uint16(rapid.IntRange(0, 1).Draw(t, "identifier"))
		b = ping(src, dst, id)
		lport, rport = id, echo
		if p.reply = rapid.Bool().Draw(t, "reply"); p.reply {
			b = pong(src, dst, id)
			lport, rport = echo, id
		}
		if p.d == proto.In {
			lport, rport = rport, lport
		}
	default:
		b = ported(p.proto, src, sport, dst, dport)
		if p.proto == proto.ProtoGRE {
			lport, rport = 0, 0
		}
	}
	p.local, p.remote = netip.AddrPortFrom(us, lport), netip.AddrPortFrom(them, rport)
	return b, p
}

// drawError makes an ICMP error, mostly about a packet that its receiver sent.
func drawError(t *rapid.T) ([]byte, sees) {
	quote, about := drawPacket(t)
	for about.reply { // which nobody reports about
		quote, about = drawPacket(t)
	}
	about.from = 0
	p := about
	p.about = &about
	p.d = opposite(about.d)
	if rapid.IntRange(0, 5).Draw(t, "other peer") == 0 {
		other := v4(2)
		if p.remote.Addr().Is6() {
			other = v6(2)
		}
		p.remote = netip.AddrPortFrom(other, 0)
	}
	src, dst := p.local.Addr(), p.remote.Addr()
	if p.d == proto.In {
		src, dst = dst, src
		p.from = rapid.SampledFrom([]proto.NodeID{0, 0, 2, 3}).Draw(t, "from")
	}
	return unreachable(src, dst, quote), p
}

// TestFilterAgreesWithOracle runs random packets in both directions through changing rules.
func TestFilterAgreesWithOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &oracle{now: time.Unix(1_800_000_000, 0)}
		f := New(Config{Now: func() time.Time { return o.now }})
		batched := New(Config{Now: func() time.Time { return o.now }})
		install := func() {
			o.number++
			o.rules = nil
			var p *Program
			if rapid.IntRange(0, 9).Draw(t, "closed") > 0 {
				r := drawRules(t)
				r.Version.N = uint64(o.number)
				var err error
				if p, err = Compile(r); err != nil {
					t.Fatal(err)
				}
				o.rules = &r
			}
			f.Install(p)
			batched.Install(p)
		}
		install()
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 15).Draw(t, "step") {
			case 0:
				install()
			case 1:
				o.now = o.now.Add(time.Duration(rapid.IntRange(1, 120).Draw(t, "seconds")) * time.Second)
				f.tick()
				batched.tick()
			case 2:
				if !f.Sweep(0, func(Reset) {}) || !batched.Sweep(0, func(Reset) {}) {
					t.Fatal("not done")
				}
				o.sweep()
			default:
				draw := drawPacket
				if rapid.IntRange(0, 7).Draw(t, "an error") == 0 {
					draw = drawError
				}
				b, p := draw(t)
				want := o.judge(p)
				again := o.judge(p)
				bufs, sizes, verdicts := [][]byte{b, b}, []int{len(b), len(b)}, make([]Verdict, 2)
				var got Verdict
				switch {
				case p.from != 0:
					got = f.InFrom(p.from, b)
					verdicts[0], verdicts[1] = batched.InFrom(p.from, b), batched.InFrom(p.from, b)
					f.InFrom(p.from, b)
				case p.d == proto.In:
					got = f.In(b)
					batched.InBatch(0, bufs, 0, verdicts)
					f.In(b)
				default:
					got = f.Out(b)
					batched.OutBatch(bufs, sizes, 0, verdicts)
					f.Out(b)
				}
				if got.Reason != want || got.Pass != (want == Permitted) {
					t.Fatalf("%s %v from %v: %q, the oracle says %q", describe(b), p.d, p.from, got.Reason, want)
				}
				if verdicts[0].Reason != want || verdicts[1].Reason != again {
					t.Fatalf("%s %v from %v in a batch: %q, %q; the oracle says %q, %q", describe(b), p.d, p.from,
						verdicts[0].Reason, verdicts[1].Reason, want, again)
				}
			}
		}
	})
}
