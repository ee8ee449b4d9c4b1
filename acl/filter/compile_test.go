package filter

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
)

func TestRulesetsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Ruleset)
		want string
	}{
		"unknown set":          {func(r *Ruleset) { r.Rules[0].Peers.Sets = []string{"none"} }, `no set "none"`},
		"a set twice":          {func(r *Ruleset) { r.Sets = append(r.Sets, r.Sets[0]) }, `set "all"`},
		"a peer twice":         {func(r *Ruleset) { r.Peers[1].ID = r.Peers[0].ID }, "twice"},
		"itself as a peer":     {func(r *Ruleset) { r.Peers[1].ID = r.Self.ID }, "twice"},
		"an address twice":     {func(r *Ruleset) { r.Peers[1].Addrs.V6 = r.Peers[0].Addrs.V6 }, "another node's"},
		"its own address":      {func(r *Ruleset) { r.Peers[1].Addrs.V4 = r.Self.Addrs.V4 }, "another node's"},
		"no IPv4":              {func(r *Ruleset) { r.Peers[1].Addrs.V4 = netip.Addr{} }, "one address of each family"},
		"families swapped":     {func(r *Ruleset) { r.Self.Addrs.V4 = r.Self.Addrs.V6 }, "one address of each family"},
		"a mapped address":     {func(r *Ruleset) { r.Self.Addrs.V6 = netip.MustParseAddr("::ffff:100.64.0.9") }, "one address of each family"},
		"no node id":           {func(r *Ruleset) { r.Peers[0].ID = 0 }, "want an id"},
		"no mesh":              {func(r *Ruleset) { r.Mesh = proto.Mesh{} }, "the mesh's ranges"},
		"no direction":         {func(r *Ruleset) { r.Rules[0].Direction = 0 }, "direction"},
		"ports upside down":    {func(r *Ruleset) { r.Rules[0].Services = []proto.Service{tcpPorts(9, 8)} }, "upside down"},
		"ICMP with ports":      {func(r *Ruleset) { r.Rules[0].Services = []proto.Service{{Proto: proto.ProtoICMP, First: 8, Last: 8}} }, "no ports"},
		"prefix with host":     {func(r *Ruleset) { r.Rules[0].Local = []netip.Prefix{netip.PrefixFrom(v4(1), 16)} }, "not a prefix"},
		"an unknown action":    {func(r *Ruleset) { r.Rules[0].Action = 3 }, "action"},
		"watching without end": {func(r *Ruleset) { r.Rules[0].Action = proto.Monitor }, "have an end"},
		"an end of a denial":   {func(r *Ruleset) { r.Rules[0].Action, r.Rules[0].Until = proto.Deny, someday }, "have an end"},
		"no prefix":            {func(r *Ruleset) { r.Rules[0].Peers.Prefixes = []netip.Prefix{{}} }, "not a prefix"},
		"IPv4 in IPv6 prefix":  {func(r *Ruleset) { r.Rules[0].Local = []netip.Prefix{netip.MustParsePrefix("::ffff:0.0.0.0/96")} }, "not a prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			r := testRuleset(3)
			r.rule(proto.In, tcpPorts(22, 22))
			if _, err := Compile(r); err != nil {
				t.Fatal(err)
			}
			c.edit(&r)
			p, err := Compile(r)
			if p != nil || !errors.Is(err, ErrRuleset) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want something with %q", err, c.want)
			}
		})
	}
}

func TestMembersThatAreNotPeersAreNotThere(t *testing.T) {
	r := testRuleset(2)
	r.Sets[0].Members = append(r.Sets[0].Members, 500, r.Self.ID)
	r.rule(proto.In, tcpPorts(22, 22))
	p, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, reason := p.Why(proto.In, v4(2), proto.ProtoTCP, 22); reason != Permitted {
		t.Error(reason)
	}
}

func TestRulesWithoutLocalPermitNothing(t *testing.T) {
	r := testRuleset(1)
	r.rule(proto.In, everything...).Local = nil
	p, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	if rule, reason := p.Why(proto.In, v4(2), proto.ProtoTCP, 22); reason != NoRule || rule != (proto.Origin{}) {
		t.Errorf("%v by %v", reason, rule)
	}
}

func TestWhy(t *testing.T) {
	r := testRuleset(3)
	r.Sets = append(r.Sets, proto.Set{Name: "db", Members: []proto.NodeID{2}})
	r.rule(proto.In, tcpPorts(22, 22), tcpPorts(80, 90))
	r.rule(proto.In, tcpPorts(85, 100), udpPorts(53, 53)).Peers.Sets = []string{"db"}
	r.rule(proto.Out, whole(proto.ProtoICMP)).Peers = proto.Selector{Prefixes: []netip.Prefix{netip.MustParsePrefix("100.64.0.2/31")}}
	p, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir      proto.Direction
		peer     netip.Addr
		protocol uint8
		port     uint16
		reason   Reason
		rule     string
	}{
		{proto.In, v4(2), proto.ProtoTCP, 22, Permitted, "in[0]"},
		{proto.In, v6(2), proto.ProtoTCP, 85, Permitted, "in[0]"}, // both rules permit it; the first is named
		{proto.In, v6(2), proto.ProtoTCP, 91, Permitted, "in[1]"},
		{proto.In, v6(3), proto.ProtoTCP, 91, NoService, "in[0]"},
		{proto.In, v4(3), proto.ProtoTCP, 23, NoService, "in[0]"},
		{proto.In, v4(2), proto.ProtoTCP, 101, NoService, "in[1]"},
		{proto.In, v4(2), proto.ProtoTCP, 1, NoService, "in[0]"},
		{proto.In, v4(2), proto.ProtoUDP, 54, NoService, "in[1]"},
		{proto.Out, v4(2), proto.ProtoICMP, 8, Permitted, "out[2]"},
		{proto.Out, v4(3), proto.ProtoICMP, 0, Permitted, "out[2]"},
		{proto.Out, v4(4), proto.ProtoICMP, 0, NoRule, ""},
		{proto.Out, v6(2), proto.ProtoICMPv6, 0, NoRule, ""}, // the prefix holds no IPv6 address
		{proto.In, v4(99), proto.ProtoTCP, 22, UnknownPeer, ""},
		{proto.In, netip.Addr{}, proto.ProtoTCP, 22, UnknownPeer, ""},
	} {
		rule, reason := p.Why(c.dir, c.peer, c.protocol, c.port)
		if reason != c.reason || rule.Path != c.rule {
			t.Errorf("%v %v %d/%d: %q by %q, want %q by %q", c.dir, c.peer, c.protocol, c.port, reason, rule.Path, c.reason, c.rule)
		}
	}
	if _, reason := (*Program)(nil).Why(proto.In, v4(2), 6, 22); reason != Closed || !(*Program)(nil).Version().IsZero() {
		t.Error("no program permits something")
	}
	if p.Version() != r.Version {
		t.Error(p.Version())
	}
}

// TestServicesAreShared compiles many peers of few kinds.
func TestServicesAreShared(t *testing.T) {
	r := testRuleset(2000)
	r.Sets = append(r.Sets, proto.Set{Name: "odd"}, proto.Set{Name: "same"})
	for i := 1; i < len(r.Peers); i += 2 {
		r.Sets[1].Members = append(r.Sets[1].Members, r.Peers[i].ID)
	}
	r.Sets[2].Members = r.Sets[0].Members
	for i := range uint16(500) {
		r.rule(proto.In, tcpPorts(2*i, 2*i))
	}
	r.rule(proto.In, udpPorts(1, 9)).Peers.Sets = []string{"odd"}
	r.rule(proto.In, udpPorts(3, 3)).Peers.Sets = []string{"same"}
	p, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	distinct := map[*services]int{}
	for _, s := range p.rows[proto.In] {
		distinct[s]++
	}
	if len(distinct) != 2 {
		t.Errorf("%d services for two kinds of peers", len(distinct))
	}
}

// TestFlatten compares the disjoint ranges with a search through all claims.
func TestFlatten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var claims []span
		for n := range rapid.IntRange(1, 12).Draw(t, "claims") {
			first := uint32(rapid.IntRange(0, 40).Draw(t, "first"))
			claims = append(claims, span{first, first + uint32(rapid.IntRange(0, 15).Draw(t, "length")), rank(n / 2 * 7 % 3), n / 2})
		}
		all := slices.Clone(claims)
		flat := flatten(claims)
		for i := 1; i < len(flat); i++ {
			if flat[i].first <= flat[i-1].last || flat[i].rule == flat[i-1].rule && flat[i].first == flat[i-1].last+1 {
				t.Fatalf("%v overlap, or should be one", flat)
			}
		}
		for at := range uint32(60) {
			want, got, best := -1, -1, rank(0)
			for _, c := range all {
				if c.first <= at && at <= c.last && (want < 0 || c.rank < best || c.rank == best && c.rule < want) {
					want, best = c.rule, c.rank
				}
			}
			for _, c := range flat {
				if c.first <= at && at <= c.last {
					got = c.rule
				}
			}
			if got != want {
				t.Fatalf("%d belongs to %d, want %d", at, got, want)
			}
		}
	})
}

// TestWidestServices checks claims up to the last protocol and port.
func TestWidestServices(t *testing.T) {
	r := testRuleset(1)
	for i := range 256 {
		r.rule(proto.In, whole(uint8(i)))
	}
	p, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 256 {
		for _, port := range []uint16{0, 65535} {
			if rule, reason := p.Why(proto.In, v4(2), uint8(i), port); reason != Permitted || rule.Line != i+1 {
				t.Errorf("protocol %d: %v by %v", i, reason, rule)
			}
		}
	}
}

// TestSearch compares the search, which jumps if there are many ranges, with a linear search.
func TestSearch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var claims []span
		protocol := rapid.SampledFrom([]uint8{proto.ProtoTCP, proto.ProtoTCP, proto.ProtoUDP, proto.ProtoSCTP, 5, 7, 0, 255})
		at := func(name string) uint32 {
			port := uint16(rapid.SampledFrom([]int{0, 65535, rapid.IntRange(0, 65535).Draw(t, name), rapid.IntRange(1000, 1100).Draw(t, name)}).Draw(t, name))
			return point(protocol.Draw(t, name), port)
		}
		for n := range rapid.SampledFrom([]int{1, fewRanges, fewRanges + 1, 300}).Draw(t, "claims") {
			first := at("first")
			claims = append(claims, span{first: first, last: first + uint32(rapid.IntRange(0, 3).Draw(t, "length")), rank: 1, rule: n})
		}
		s := (&shelf{rules: make([]ruling, len(claims)), known: map[string]*services{}}).services(claims)
		for range 50 {
			x := at("at")
			want := 0
			for i, first := range s.first {
				if first <= x {
					want = i
				}
			}
			if got := s.search(x); got != want {
				t.Fatalf("search(%#x) is %d, want %d of %#x", x, got, want, s.first)
			}
		}
	})
}
