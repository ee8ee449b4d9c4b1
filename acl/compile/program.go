package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Program is a policy made ready for one mesh. It is immutable and safe for concurrent use.
type Program struct {
	policy *acl.Policy // nil: nothing is allowed
	mesh   proto.Mesh
	any    []netip.Prefix // what * covers
	rules  []rule
	src    sideIndex
	dst    sideIndex
	groups map[string][]string // login name -> names of its groups
}

// rule is the part of a policy's rule whose destinations share their services.
type rule struct {
	origin   proto.Origin
	src, dst side
	self     bool // dst is autogroup:self: the nodes of the same user, as far as src covers that user
	services []proto.Service
}

// side is who stands on one side of a rule.
type side struct {
	sets     []string       // sorted; nodes by identity
	prefixes []netip.Prefix // sorted; literal addresses, and those of the mesh for *
}

// sideIndex finds the rules whose src, or whose dst, covers a node.
type sideIndex struct {
	bySet  map[string][]int32     // name of a set -> rules, ascending
	byAddr map[netip.Addr][]int32 // prefixes of one address
	ranges []rangeRules
}

type rangeRules struct {
	prefix netip.Prefix
	rules  []int32
}

// New compiles a policy, which must have come from acl.Parse without errors; nil allows nothing.
func New(p *acl.Policy, mesh proto.Mesh) *Program {
	prog := &Program{policy: p, mesh: mesh, any: meshPrefixes(mesh), groups: map[string][]string{}}
	if p == nil {
		return prog
	}
	for name, g := range p.Groups {
		for _, m := range g.Members {
			if !slices.Contains(prog.groups[m.Name], name) {
				prog.groups[m.Name] = append(prog.groups[m.Name], name)
			}
		}
	}
	if slices.ContainsFunc(p.Rules, func(r acl.Rule) bool { return r.Action == acl.Deny }) {
		return prog // what it denies is not understood, so nothing is permitted
	}
	for _, r := range p.Rules {
		if r.Action == acl.Allow && len(r.Postures) == 0 && r.Auth == nil && len(r.Via) == 0 {
			prog.addRule(r)
		}
	}
	prog.src = indexSides(prog.rules, func(r rule) side { return r.src })
	prog.dst = indexSides(prog.rules, func(r rule) side { return r.dst })
	return prog
}

// reserved is left out of *: it belongs to other programs within the range that meshes use.
var reserved = netip.MustParsePrefix("100.115.92.0/23")

// meshPrefixes are the addresses that * covers.
func meshPrefixes(mesh proto.Mesh) []netip.Prefix {
	var out []netip.Prefix
	if mesh.V4.IsValid() {
		out = append(out, without(mesh.V4.Masked(), reserved)...)
	}
	if mesh.V6.IsValid() {
		out = append(out, mesh.V6.Masked())
	}
	return out
}

// without cuts a hole out of a range that is wider than it; other ranges stay as they are.
func without(p, hole netip.Prefix) []netip.Prefix {
	if p.Bits() >= hole.Bits() || !p.Contains(hole.Addr()) {
		return []netip.Prefix{p}
	}
	var out []netip.Prefix
	for bits := p.Bits() + 1; bits <= hole.Bits(); bits++ {
		out = append(out, sibling(hole.Addr(), bits))
	}
	sortPrefixes(out)
	return out
}

// sibling is the other half of the range one bit wider than the one of that length around a.
func sibling(a netip.Addr, bits int) netip.Prefix {
	b := a.As4()
	b[(bits-1)/8] ^= 1 << (7 - (bits-1)%8)
	return netip.PrefixFrom(netip.AddrFrom4(b), bits).Masked()
}

func sortPrefixes(ps []netip.Prefix) { slices.SortFunc(ps, netip.Prefix.Compare) }

// addRule splits a rule of the policy by services, and by whether the destination is the same user's nodes.
func (p *Program) addRule(r acl.Rule) {
	var parts [][]int // indexes of destinations
	partOf := map[string]int{}
	for i, d := range r.Dst {
		key := fmt.Sprint(d.Kind == acl.Self, d.Services)
		n, ok := partOf[key]
		if !ok {
			n = len(parts)
			partOf[key] = n
			parts = append(parts, nil)
		}
		parts[n] = append(parts[n], i)
	}
	src := p.side(r.Src)
	for _, part := range parts {
		first := r.Dst[part[0]]
		if len(first.Services) == 0 {
			continue // it is about capabilities only
		}
		origin := proto.Origin{Path: r.Path, Line: r.Line}
		if len(parts) > 1 {
			origin = proto.Origin{Path: fmt.Sprintf("%s.dst[%d]", r.Path, part[0]), Line: first.Line}
		}
		dst := make([]acl.Selector, len(part))
		for n, i := range part {
			dst[n] = r.Dst[i].Selector
		}
		c := rule{origin: origin, src: src, dst: p.side(dst), services: first.Services}
		if first.Kind == acl.Self {
			c.self, c.src = true, p.side(users(r.Src))
		}
		p.rules = append(p.rules, c)
	}
}

// users are the sources of a rule about autogroup:self, in which * can only mean every user.
func users(selectors []acl.Selector) []acl.Selector {
	out := slices.Clone(selectors)
	for i := range out {
		if out[i].Kind == acl.Any {
			out[i].Kind = acl.Member
		}
	}
	return out
}

// side gathers the selectors of one side. Literal addresses that no node of this mesh can have are left out.
func (p *Program) side(selectors []acl.Selector) side {
	var s side
	for _, sel := range selectors {
		switch sel.Kind {
		case acl.Any:
			s.prefixes = append(s.prefixes, p.any...)
		case acl.Literal:
			if p.mesh.V4.Overlaps(sel.Prefix) || p.mesh.V6.Overlaps(sel.Prefix) {
				s.prefixes = append(s.prefixes, sel.Prefix)
			}
		case acl.Self, acl.AddressSet, acl.Internet, acl.DangerAll:
		default:
			s.sets = append(s.sets, sel.Set())
		}
	}
	slices.Sort(s.sets)
	s.sets = slices.Compact(s.sets)
	sortPrefixes(s.prefixes)
	s.prefixes = slices.Compact(s.prefixes)
	return s
}

func indexSides(rules []rule, of func(rule) side) sideIndex {
	x := sideIndex{bySet: map[string][]int32{}, byAddr: map[netip.Addr][]int32{}}
	ranges := map[netip.Prefix][]int32{}
	for i, r := range rules {
		s := of(r)
		for _, name := range s.sets {
			x.bySet[name] = append(x.bySet[name], int32(i))
		}
		for _, p := range s.prefixes {
			if p.IsSingleIP() {
				x.byAddr[p.Addr()] = append(x.byAddr[p.Addr()], int32(i))
			} else {
				ranges[p] = append(ranges[p], int32(i))
			}
		}
	}
	for p, rules := range ranges {
		x.ranges = append(x.ranges, rangeRules{p, rules})
	}
	slices.SortFunc(x.ranges, func(a, b rangeRules) int { return a.prefix.Compare(b.prefix) })
	return x
}

// setsOf are the names of the sets that a node is in.
func (p *Program) setsOf(id proto.Identity) []string {
	if len(id.Tags) > 0 {
		out := []string{"autogroup:tagged"}
		for _, t := range id.Tags {
			if strings.HasPrefix(t, "tag:") { // whatever else stands there must not pass for another set
				out = append(out, t)
			}
		}
		return out
	}
	if !member(id) {
		return nil
	}
	login := id.User.Name
	out := []string{"autogroup:member", acl.UserSet(login)}
	if domain := acl.DomainOf(login); domain != "" {
		out = append(out, "user:*@"+domain)
	}
	return append(out, p.groups[login]...)
}

// families is a set of address families.
type families uint8

const (
	v4   families = 1 << iota
	v6            //
	both = v4 | v6
)

func family(a netip.Addr) families {
	if a.Is4() {
		return v4
	}
	return v6
}

// covered is a rule and the families in which one of its sides covers a node.
type covered struct {
	rule int32
	in   families
}

// find lists the rules that cover a node, ascending.
func (x *sideIndex) find(sets []string, addrs proto.Addrs) []covered {
	var out []covered
	add := func(rules []int32, in families) {
		for _, r := range rules {
			out = append(out, covered{r, in})
		}
	}
	for _, name := range sets {
		add(x.bySet[name], both)
	}
	for _, a := range addrs.Slice() {
		add(x.byAddr[a], family(a))
		for _, r := range x.ranges {
			if r.prefix.Contains(a) {
				add(r.rules, family(a))
			}
		}
	}
	slices.SortFunc(out, func(a, b covered) int { return int(a.rule) - int(b.rule) })
	n := 0
	for _, c := range out {
		if n > 0 && out[n-1].rule == c.rule {
			out[n-1].in |= c.in
			continue
		}
		out[n] = c
		n++
	}
	return out[:n]
}

// coverage is where a node stands in the rules.
type coverage struct {
	src, dst []covered // ascending by rule
	// user is the set of its user's nodes, if it is a user's; rules about autogroup:self go by it.
	user string
}

func (p *Program) coverage(id proto.Identity) coverage {
	sets := p.setsOf(id)
	c := coverage{src: p.src.find(sets, id.Addrs), dst: p.dst.find(sets, id.Addrs)}
	if member(id) {
		c.user = acl.UserSet(id.User.Name)
	}
	return c
}
