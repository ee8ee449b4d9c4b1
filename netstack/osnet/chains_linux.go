package osnet

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// duty is what a guard permits and does besides guarding the host. The zero duty does nothing more.
type duty struct {
	serve []netip.Prefix // outermost, sorted
	snat  bool
	mtu   int  // of the tunnel; forwarded TCP is clamped to it
	mark  bool // replies to underlay sockets carry their mark
	// notes are the previous values of the host's settings, for whoever restores them.
	notes []setting
}

// chain is a chain of our table, with its rules.
type chain struct {
	name     string
	kind     nftables.ChainType
	at       *nftables.ChainHook // nil for a chain that is jumped to, or never run
	priority nftables.ChainPriority
	rules    []rule
}

func (c chain) in(t *nftables.Table) *nftables.Chain {
	if c.at == nil {
		return &nftables.Chain{Name: c.name, Table: t}
	}
	accept, priority, kind := nftables.ChainPolicyAccept, c.priority, c.kind
	if kind == "" {
		kind = nftables.ChainTypeFilter
	}
	return &nftables.Chain{Name: c.name, Table: t, Type: kind, Hooknum: c.at, Priority: &priority, Policy: &accept}
}

// is reports whether a chain from the kernel is attached as this one should be.
func (c chain) is(got *nftables.Chain) bool {
	want := c.in(got.Table)
	if want.Name != got.Name || (want.Hooknum == nil) != (got.Hooknum == nil) {
		return false
	}
	return want.Hooknum == nil || *want.Hooknum == *got.Hooknum && got.Priority != nil && *want.Priority == *got.Priority &&
		want.Type == got.Type
}

// rule is an nftables rule and its purpose, which `nft list` shows as a comment.
type rule struct {
	why   string
	exprs []expr.Any
}

func (r rule) comment() []byte { return userdata.AppendString(nil, userdata.TypeComment, r.why) }

// namedSet is a set of our table.
type namedSet struct {
	name     string
	v4       bool
	prefixes []netip.Prefix
}

func setsOf(i instance, d duty) []namedSet {
	sets := []namedSet{{set4, true, []netip.Prefix{i.v4}}, {set6, false, []netip.Prefix{i.v6}}, {served4, true, nil}, {served6, false, nil}}
	for _, p := range d.serve {
		at := 3
		if p.Addr().Is4() {
			at = 2
		}
		sets[at].prefixes = append(sets[at].prefixes, p)
	}
	return sets
}

func (n namedSet) elements() (out []nftables.SetElement) {
	for _, p := range n.prefixes {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if after := last(p).Next(); after.IsValid() {
			out = append(out, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// Priorities: defragmentation is at -400, connection tracking at -200, packet mangling at -150, destination NAT at -100 and
// source NAT at 100; users' own chains are mostly between -300 and 300.
const (
	first, latest = -450, 450
	changes       = -150
	translation   = 100
)

// chainsOf returns all chains of an instance's table.
func chainsOf(i instance, d duty) []chain {
	outside := func(keys ...expr.MetaKey) []rule {
		exprs := []expr.Any{}
		for _, key := range keys {
			exprs = append(exprs, isNot(key, i.device)...)
			if len(keys) == 1 {
				// On lo the host talks to itself, which is not ours to judge; nothing is forwarded from or to lo.
				exprs = append(exprs, isNot(key, "lo")...)
			}
		}
		return []rule{{"only " + i.device + " carries the mesh", append(exprs, &expr.Verdict{Kind: expr.VerdictJump, Chain: drops})}}
	}
	iif, oif := expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME
	leaving := outside(oif)
	if !d.snat {
		leaving = append(pass("to a served network", set4, set6, served4, served6), leaving...)
	}
	out := []chain{
		{name: drops, rules: dropRules()},
		{name: "prerouting", at: nftables.ChainHookPrerouting, priority: first, rules: append(
			pass("from a served network", served4, served6, set4, set6), outside(iif)...)},
		{name: "input", at: nftables.ChainHookInput, priority: latest, rules: outside(iif)},
		{name: "forward", at: nftables.ChainHookForward, priority: latest, rules: append(outside(iif, oif), forwardRules(i.device)...)},
		{name: "output", at: nftables.ChainHookOutput, priority: latest, rules: outside(oif)},
		{name: "postrouting", at: nftables.ChainHookPostrouting, priority: first, rules: append(
			pass("to a served network", set4, set6, served4, served6), outside(oif)...)},
		{name: "leaving", at: nftables.ChainHookPostrouting, priority: latest, rules: leaving},
	}
	if len(d.serve) > 0 {
		out = append(out, chain{name: "clamp", at: nftables.ChainHookForward, priority: changes, rules: clampRules(i.device, d.mtu)})
		if d.snat {
			out = append(out, chain{
				name: "translate", kind: nftables.ChainTypeNAT, at: nftables.ChainHookPostrouting, priority: translation,
				rules: []rule{{"the mesh behind this host's address", slices.Concat(
					is(iif, i.device), isNot(oif, i.device), isNot(oif, "lo"), []expr.Any{&expr.Masq{}})}},
			})
		}
	}
	if d.mark {
		out = append(out, markChains()...)
	}
	if len(d.notes) > 0 {
		c := chain{name: noted}
		for _, s := range d.notes {
			c.rules = append(c.rules, rule{s.String(), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}})
		}
		out = append(out, c)
	}
	return out
}

// field is the offset and length of an address in the IP header.
type field struct{ offset, length uint32 }

var (
	srcField = map[bool]field{true: {12, 4}, false: {8, 16}} // key: whether it is IPv4
	dstField = map[bool]field{true: {16, 4}, false: {24, 16}}
)

func isFamily(v4 bool) []expr.Any {
	f := byte(unix.NFPROTO_IPV6)
	if v4 {
		f = unix.NFPROTO_IPV4
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

// in matches packets whose address in field f is in the set.
func in(set string, f field) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: f.length},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

// dropIn counts and drops packets with an address of the set at an offset of the network header.
func dropIn(set string, offset, length uint32) []expr.Any {
	return append(in(set, field{offset, length}), drop()...)
}

func drop() []expr.Any { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

// dropRules returns the rules of the chain that all hooks jump to.
func dropRules() (out []rule) {
	for _, x := range []struct {
		v4  bool
		set string
	}{{true, set4}, {false, set6}} {
		from, to := srcField[x.v4], dstField[x.v4]
		out = append(out,
			rule{"overlay source outside the tunnel", append(isFamily(x.v4), dropIn(x.set, from.offset, from.length)...)},
			rule{"overlay destination outside the tunnel", append(isFamily(x.v4), dropIn(x.set, to.offset, to.length)...)})
	}
	return out
}

// arpRules returns the rules of each chain for ARP. In a message for Ethernet and IPv4 the addresses are at offsets 14 and 24.
func arpRules() []rule {
	return []rule{
		{"overlay source outside the tunnel", dropIn(set4, 14, 4)},
		{"overlay destination outside the tunnel", dropIn(set4, 24, 4)},
	}
}

// pass permits packets from one set to another, for each family.
func pass(why, from4, from6, to4, to6 string) []rule {
	let := func(v4 bool, from, to string) rule {
		return rule{why, slices.Concat(isFamily(v4), in(from, srcField[v4]), in(to, dstField[v4]), letGo())}
	}
	return []rule{let(true, from4, to4), let(false, from6, to6)}
}

// letGo ends the chain without a final verdict: no other chain is overruled.
func letGo() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

// forwardRules permit forwarding between the tunnel and served networks, and nothing else from or to the tunnel. Which of it may
// pass is up to the filter, which has judged it or will.
func forwardRules(device string) (out []rule) {
	iif, oif := expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME
	for _, v4 := range []bool{true, false} {
		set := served6
		if v4 {
			set = served4
		}
		out = append(out,
			rule{"to a served network", slices.Concat(is(iif, device), isNot(oif, device), isFamily(v4), in(set, dstField[v4]), letGo())},
			rule{"from a served network", slices.Concat(is(oif, device), isNot(iif, device), isFamily(v4), in(set, srcField[v4]), letGo())})
	}
	return append(out,
		rule{"nothing else is led on from " + device, append(is(iif, device), drop()...)},
		rule{"nothing else is led into " + device, append(is(oif, device), drop()...)})
}

// clampRules lower the MSS of forwarded TCP so that segments fit the tunnel. The kernel never raises it.
func clampRules(device string, mtu int) (out []rule) {
	const maxSegment, tcpFlags, syn, rst = 2, 13, 0x02, 0x04
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		for _, v4 := range []bool{true, false} {
			size := mtu - 60
			if v4 {
				size = mtu - 40
			}
			out = append(out, rule{"segments fit into " + device, slices.Concat(is(key, device), isFamily(v4), []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
				&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(size))},
				&expr.Exthdr{SourceRegister: 1, Type: maxSegment, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
			})})
		}
	}
	return out
}

// markChains give replies to underlay sockets the mark of the socket: without it a host that verifies source addresses
// (rp_filter) considers them spoofed, since all unmarked packets go through the exit node.
func markChains() []chain {
	isMark := func() expr.Any {
		return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(Mark)}
	}
	return []chain{
		{name: "recall", at: nftables.ChainHookPrerouting, priority: changes, rules: []rule{{"an answer to an underlay socket", []expr.Any{
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, isMark(), &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		}}}},
		{name: "remember", at: nftables.ChainHookPostrouting, priority: changes, rules: []rule{{"from an underlay socket", []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, isMark(), &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
		}}}},
	}
}

// is and isNot match the name of the packet's device. Names stay valid when the device goes and comes back.
func is(key expr.MetaKey, device string) []expr.Any { return named16(key, expr.CmpOpEq, device) }

func isNot(key expr.MetaKey, device string) []expr.Any { return named16(key, expr.CmpOpNeq, device) }

func named16(key expr.MetaKey, op expr.CmpOp, device string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: name},
	}
}
