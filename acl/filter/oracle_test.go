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

// oracle reimplements the filter as specified: lists, no compilation, no hashing.
type oracle struct {
	rules  *Ruleset // nil: nothing passes
	number int      // of installs
	now    time.Time
	flows  []*oracleFlow
	cut    []*oracleDatagram
}

type oracleFlow struct {
	peer          proto.NodeID
	local, remote netip.AddrPort
	proto         uint8
	opened        proto.Direction
	judged        int // by which install it was last judged
	life          time.Duration
	last          time.Time
	answered      bool
	finLocal      bool
	finRemote     bool
	closing       bool
	dead          bool
	left          bool // its peer was absent at some install
}

// oracleDatagram is a fragmented packet.
type oracleDatagram struct {
	src, dst netip.Addr
	id       int
	flow     sees
	until    time.Time
	have     map[int]bool // bytes
	end      int          // -1: unknown
	spoiled  bool
}

// sees is what the oracle needs to know about a packet.
type sees struct {
	d             proto.Direction
	from          proto.NodeID
	local, remote netip.AddrPort
	proto         uint8
	flags         uint8
	reply         bool // ICMP echo reply
	about         *sees
	piece         *oraclePiece
	segments      int // 0: one
}

// oraclePiece is the range of bytes that a fragment of packet id holds.
type oraclePiece struct {
	id, first, end int
	more           bool
}

// ends returns the source and destination addresses of the packet.
func (p *sees) ends() (src, dst netip.Addr) {
	if p.d == proto.In {
		return p.remote.Addr(), p.local.Addr()
	}
	return p.local.Addr(), p.remote.Addr()
}

// install puts rules in force; nil lets nothing pass.
func (o *oracle) install(r *Ruleset) {
	o.number++
	o.rules = r
	for _, f := range o.flows {
		f.left = f.left || r == nil || !slices.ContainsFunc(r.Peers, func(p proto.Identity) bool { return p.ID == f.peer })
	}
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
			return Forbidden, id // whatever else permits it
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

// behind returns the node that has an address or, outside the mesh, the node in front of it.
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

// alive finds a flow, ends it if it has expired, and judges it if the policy changed.
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
		f.dead = reason != Permitted || id != f.peer || f.left
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
	switch {
	case p.segments > 1 && (p.piece != nil || p.about != nil || p.proto != proto.ProtoUDP && p.proto != proto.ProtoTCP || p.flags&(syn|rst) != 0):
		return BadSegments
	case p.piece != nil:
		return o.judgePiece(p)
	case p.about != nil:
		return o.judgeError(p)
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

// judgeError passes errors about packets that their receiver sent, if they come from the node that these went to.
func (o *oracle) judgeError(p sees) Reason {
	sent, _ := p.about.ends()
	src, dst := p.ends()
	if sent != dst || p.about.d == p.d {
		return ICMPUnrelated
	}
	f := o.alive(p.about.local, p.about.remote, p.about.proto)
	speaker := proto.NodeID(0)
	if o.rules != nil && p.d == proto.In {
		speaker, _ = o.behind(src)
	}
	switch {
	case o.rules == nil:
		return Closed
	case f == nil:
		return ICMPUnrelated
	case p.from != 0 && p.from != f.peer:
		return Spoofed
	case f.dead:
		return Revoked
	case p.d == proto.In && speaker != f.peer, p.d == proto.Out && !o.rules.Self.Addrs.Has(src):
		return ICMPUnrelated
	}
	return Permitted
}

// judgePiece passes fragments of packets whose first fragment passed, if no byte comes twice.
func (o *oracle) judgePiece(p sees) Reason {
	src, dst := p.ends()
	if p.from != 0 && o.rules != nil {
		if id, _ := o.behind(src); id != p.from {
			return Spoofed
		}
	}
	o.cut = slices.DeleteFunc(o.cut, func(g *oracleDatagram) bool { return !o.now.Before(g.until) })
	at := slices.IndexFunc(o.cut, func(g *oracleDatagram) bool { return g.src == src && g.dst == dst && g.id == p.piece.id })
	forget := func() { o.cut = slices.Delete(o.cut, at, at+1) }
	if at < 0 {
		if p.piece.first > 0 {
			return FragmentUnknown
		}
		at = len(o.cut)
		o.cut = append(o.cut, &oracleDatagram{
			src: src, dst: dst, id: p.piece.id, flow: p, until: o.now.Add(30 * time.Second), have: map[int]bool{}, end: -1,
		})
	}
	g := o.cut[at]
	if !p.piece.more {
		g.spoiled = g.spoiled || g.end >= 0
		g.end = p.piece.end
	}
	for i := p.piece.first; i < p.piece.end; i++ {
		g.spoiled = g.spoiled || g.have[i]
		g.have[i] = true
	}
	for i := range g.have {
		g.spoiled = g.spoiled || g.end >= 0 && i >= g.end
	}
	if g.spoiled {
		return FragmentOverlap
	}
	if g.end >= 0 && len(g.have) == g.end {
		forget()
	}
	if p.piece.first == 0 {
		p.piece = nil
		reason := o.judge(p)
		if reason != Permitted {
			forget()
		}
		return reason
	}
	f := o.alive(g.flow.local, g.flow.remote, g.flow.proto)
	switch {
	case o.rules == nil:
		return Closed
	case f == nil:
		return FragmentUnknown
	case p.from != 0 && p.from != f.peer:
		return Spoofed
	case f.dead:
		return Revoked
	}
	f.last = o.now
	return Permitted
}

// count updates the flow's state and its expiry.
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

// drawRules draws rules over few sets, prefixes and ports, so that they overlap.
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
	if rapid.IntRange(0, 2).Draw(t, "much is allowed") > 0 {
		for i, d := range []proto.Direction{proto.In, proto.Out} {
			r.Rules = append(r.Rules, proto.Rule{
				Origin: proto.Origin{Path: "wide", Line: 100 + i}, Direction: d, Local: ownPrefixes(r.Self), Services: everything,
				Peers: proto.Selector{Sets: []string{"a"}, Prefixes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
			})
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
				return p.Bits() == 0 || !testMesh.Contains(p.Addr()) // these packets are not about what this node serves
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

// beyond holds addresses that may or may not be behind routers.
var beyond = []netip.Addr{
	netip.MustParseAddr("10.33.1.1"), netip.MustParseAddr("10.33.7.1"), netip.MustParseAddr("10.33.7.129"), netip.MustParseAddr("192.0.2.1"),
	netip.MustParseAddr("fd99::1"), netip.MustParseAddr("2001:db8::1"),
}

var (
	drawnPorts     = []uint16{0, 22, 53, 80, 65535}
	drawnProtocols = []uint8{proto.ProtoTCP, proto.ProtoTCP, proto.ProtoUDP, proto.ProtoICMP, proto.ProtoICMPv6, proto.ProtoSCTP, proto.ProtoGRE}
)

// talk holds what packets are drawn from: earlier conversations.
type talk struct{ before []sees }

// ends draws the ends of a flow, often those of an earlier one.
func (k *talk) ends(t *rapid.T, p *sees) {
	if len(k.before) > 0 && rapid.IntRange(0, 3).Draw(t, "again") > 0 {
		q := rapid.SampledFrom(k.before[max(0, len(k.before)-8):]).Draw(t, "of before")
		p.local, p.remote, p.proto = q.local, q.remote, q.proto
		return
	}
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
	switch p.proto = rapid.SampledFrom(drawnProtocols).Draw(t, "protocol"); p.proto {
	case proto.ProtoGRE:
		lport, rport = 0, 0
	case proto.ProtoICMP, proto.ProtoICMPv6:
		p.proto = proto.ProtoICMP
		if us.Is6() {
			p.proto = proto.ProtoICMPv6
		}
		if lport, rport = uint16(rapid.IntRange(0, 1).Draw(t, "identifier")), echo; rapid.Bool().Draw(t, "they ask") {
			lport, rport = rport, lport
		}
	}
	p.local, p.remote = netip.AddrPortFrom(us, lport), netip.AddrPortFrom(them, rport)
	k.before = append(k.before, *p)
}

// packet draws a packet between this node's addresses and others', usually a sensible one.
func (k *talk) packet(t *rapid.T, d proto.Direction, from proto.NodeID) ([]byte, sees) {
	p := sees{d: d, from: from}
	k.ends(t, &p)
	src, dst := p.ends()
	sport, dport := p.local.Port(), p.remote.Port()
	if d == proto.In {
		sport, dport = dport, sport
	}
	if d == proto.Out && rapid.IntRange(0, 5).Draw(t, "segments") == 0 {
		p.segments = 3
	}
	switch p.proto {
	case proto.ProtoTCP:
		p.flags = rapid.SampledFrom([]uint8{syn, syn, synAck, ack, ack, fin, rst, 0}).Draw(t, "flags")
		return tcp(src, sport, dst, dport, p.flags), p
	case proto.ProtoUDP:
		b := udp(src, sport, dst, dport, 8)
		if rapid.IntRange(0, 2).Draw(t, "in pieces") == 0 {
			q := &oraclePiece{id: rapid.IntRange(1, 2).Draw(t, "identification"), first: 8 * rapid.IntRange(0, 5).Draw(t, "offset")}
			q.end = q.first + 8*rapid.IntRange(1, 2).Draw(t, "length")
			q.more = q.first == 0 || rapid.IntRange(0, 2).Draw(t, "more") > 0
			header := len(b) - 16
			b = piece(b[:header:header], proto.ProtoUDP, uint32(q.id), q.first, b[header:][:q.end-q.first], q.more)
			p.piece = q
		}
		return b, p
	case proto.ProtoICMP, proto.ProtoICMPv6:
		if p.reply = sport == echo; p.reply {
			return pong(src, dst, dport), p
		}
		return ping(src, dst, sport), p
	}
	return ported(p.proto, src, sport, dst, dport), p
}

// failure draws an ICMP error, usually about a packet that its receiver sent.
func (k *talk) failure(t *rapid.T, d proto.Direction, from proto.NodeID) ([]byte, sees) {
	quote, about := k.packet(t, opposite(d), 0)
	for about.reply || about.piece != nil && about.piece.first > 0 { // nobody reports errors about these
		quote, about = k.packet(t, opposite(d), 0)
	}
	p := about
	p.about, p.d, p.from, p.piece, p.segments = &about, d, from, nil, 0
	other := map[bool][]netip.Addr{
		true:  {v4(1), v4(2), v4(3), v4(7), beyond[0], beyond[3]},
		false: {v6(1), v6(2), v6(3), v6(7), beyond[4]},
	}[p.remote.Addr().Is4()]
	switch rapid.IntRange(0, 7).Draw(t, "lie") {
	case 0:
		p.remote = netip.AddrPortFrom(rapid.SampledFrom(other).Draw(t, "other side"), 0)
	case 1:
		p.local = netip.AddrPortFrom(rapid.SampledFrom(other).Draw(t, "our side"), 0)
	}
	src, dst := p.ends()
	return unreachable(src, dst, quote), p
}

// TestFilterAgreesWithOracle sends random packets in both directions through changing rules: alone, in batches, in fragments and
// as several segments.
func TestFilterAgreesWithOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &oracle{now: time.Unix(1_800_000_000, 0)}
		clock := o.now
		f := New(Config{Now: func() time.Time { return clock }})
		batched := New(Config{Now: func() time.Time { return clock }})
		pass := func(d time.Duration) {
			clock = clock.Add(d)
			if clock.After(o.now) { // a clock that was set back stands still until then
				o.now = clock
			}
			f.tick()
			batched.tick()
		}
		install := func() {
			var rules *Ruleset
			var p *Program
			if rapid.IntRange(0, 9).Draw(t, "closed") > 0 {
				r := drawRules(t)
				r.Version.N = uint64(o.number)
				var err error
				if p, err = Compile(r); err != nil {
					t.Fatal(err)
				}
				rules = &r
			}
			o.install(rules)
			f.Install(p)
			batched.Install(p)
		}
		install()
		var k talk
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch rapid.IntRange(0, 15).Draw(t, "step") {
			case 0:
				install()
			case 1:
				pass(time.Duration(rapid.IntRange(1, 120).Draw(t, "seconds")) * time.Second)
			case 2: // the clock is set, or the machine was suspended
				pass(rapid.SampledFrom([]time.Duration{-10 * time.Minute, -time.Second, time.Hour, 4 * time.Hour, 30 * 24 * time.Hour}).Draw(t, "jump"))
			case 3:
				if !f.Sweep(0, func(Reset) {}) || !batched.Sweep(0, func(Reset) {}) {
					t.Fatal("not done")
				}
				o.sweep()
			default:
				packetsAgree(t, &k, o, f, batched)
			}
		}
		if alone, rows := f.Counters(), batched.Counters(); alone != rows {
			t.Fatalf("one by one %+v, in rows %+v", alone, rows)
		}
	})
}

// packetsAgree gives both filters and the oracle some packets of one direction and sender.
func packetsAgree(t *rapid.T, k *talk, o *oracle, f, batched *Filter) {
	d := rapid.SampledFrom([]proto.Direction{proto.In, proto.Out}).Draw(t, "direction")
	from := proto.NodeID(0)
	if d == proto.In {
		from = rapid.SampledFrom([]proto.NodeID{0, 0, 0, 2, 3, 102}).Draw(t, "from")
	}
	row := oracleRow{f: batched, d: d, from: from}
	for range rapid.IntRange(1, 3).Draw(t, "packets") {
		draw := k.packet
		if rapid.IntRange(0, 7).Draw(t, "an error") == 0 {
			draw = k.failure
		}
		b, p := draw(t, d, from)
		for range rapid.IntRange(1, 3).Draw(t, "times") {
			reason := o.judge(p)
			got := alone(f, b, p)
			if got.Reason != reason || got.Pass != (reason == Permitted) {
				t.Fatalf("%s %v from %v: %q, the oracle says %q", describe(b), d, from, got.Reason, reason)
			}
			if p.segments > 1 {
				row.judge(t)
				alone(batched, b, p)
				continue
			}
			row.bufs, row.sizes, row.want = append(row.bufs, b), append(row.sizes, len(b)), append(row.want, reason)
		}
	}
	row.judge(t)
}

// alone lets the filter judge a packet that is not part of a batch.
func alone(f *Filter, b []byte, p sees) Verdict {
	switch {
	case p.segments > 1:
		return f.OutSegments(b, p.segments)
	case p.d == proto.Out:
		return f.Out(b)
	case p.from == 0:
		return f.In(b)
	}
	return inFrom(f, p.from, b)
}

// oracleRow is a batch of packets, and the oracle's verdicts about them.
type oracleRow struct {
	f     *Filter
	d     proto.Direction
	from  proto.NodeID
	bufs  [][]byte
	sizes []int
	want  []Reason
}

// judge lets the filter judge the batch, compares the verdicts, and empties the batch.
func (r *oracleRow) judge(t *rapid.T) {
	verdicts := make([]Verdict, len(r.bufs))
	if r.d == proto.In {
		r.f.InBatch(r.from, r.bufs, 0, verdicts)
	} else {
		r.f.OutBatch(r.bufs, r.sizes, 0, verdicts)
	}
	for i, v := range verdicts {
		if v.Reason != r.want[i] || v.Pass != (v.Reason == Permitted) {
			t.Fatalf("%s %v from %v as number %d of a row: %q, the oracle says %q", describe(r.bufs[i]), r.d, r.from, i, v.Reason, r.want[i])
		}
	}
	r.bufs, r.sizes, r.want = nil, nil, nil
}
