package compile

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Program is a policy compiled for one mesh. It is immutable and safe for concurrent use.
type Program struct {
	policy  *acl.Policy // nil: nothing is allowed
	mesh    proto.Mesh
	any     []netip.Prefix // addresses of the mesh that * covers
	rules   []rule
	src     sideIndex
	dst     sideIndex
	groups  map[string][]string // login name -> names of its groups
	roles   bool                // some selector is about roles
	deny    bool                // some rule denies
	derived map[string]derived  // sets made from others, by name
}

// rule is the part of a rule of the policy whose destinations share their services.
type rule struct {
	origin   proto.Origin
	action   proto.Action
	src, dst side
	self     bool // dst is autogroup:self: the nodes of the same user, for users that src selects
	services []proto.Service
	via      []string // if there are any, the rule is about routes only, of routers with one of these tags
	cond     *cond    // nil: none
	app      []proto.Capability
	until    time.Time // of a Monitor rule

	// The sides as netmaps name them; see Program.derive.
	srcSets, dstSets []string
	srcV4, srcV6     string // nodes of literal sources for which cond holds, per family; empty if there are none
}

// side is one side of a rule.
type side struct {
	sets     []string       // sorted; nodes by identity
	prefixes []netip.Prefix // sorted; literal addresses
	// any is *: the addresses of the mesh and approved routes. Exit nodes are included as destinations only.
	any bool
	// internet is what can be reached through exit nodes.
	internet bool
	// everything is all addresses.
	everything bool
}

// sideIndex finds the rules whose src, or whose dst, covers a node.
type sideIndex struct {
	bySet                     map[string][]int32 // name of a set -> rules, ascending
	prefixes                  ruleTable
	any, internet, everything []int32
}

// ruleTable hides *bart.Table behind an interface only to save build time: each package that sees the type compiles the whole
// table anew.
type ruleTable interface {
	Modify(at netip.Prefix, change func(rules []int32, found bool) ([]int32, bool))
	Supernets(of netip.Prefix) iter.Seq2[netip.Prefix, []int32]
	Subnets(of netip.Prefix) iter.Seq2[netip.Prefix, []int32]
}

// New compiles a policy, which must come from acl.Parse without errors; nil allows nothing.
func New(p *acl.Policy, mesh proto.Mesh) *Program {
	prog := &Program{policy: p, mesh: mesh, any: meshPrefixes(mesh), groups: map[string][]string{}, derived: map[string]derived{}}
	if p != nil {
		for name, g := range p.Groups {
			for _, m := range g.Members {
				if list := prog.groups[m.Name]; len(list) == 0 || list[len(list)-1] != name { // only once per group
					prog.groups[m.Name] = append(list, name)
				}
			}
		}
		for _, r := range p.Rules {
			prog.addRule(r)
		}
	}
	prog.src = indexSides(prog.rules, func(r *rule) side { return r.src })
	prog.dst = indexSides(prog.rules, func(r *rule) side { return r.dst })
	return prog
}

// reserved is excluded from *: other software uses it within the range that meshes use.
var reserved = netip.MustParsePrefix("100.115.92.0/23")

// all is the prefixes of all addresses.
var all = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// meshPrefixes returns the addresses of a mesh that * covers.
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

// without cuts a hole out of a prefix that is wider than it; other prefixes are returned unchanged.
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

// sibling returns the other half of the parent of the prefix of that length around a.
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
	src := p.side(r.Src, r.Action == acl.Deny)
	p.deny = p.deny || r.Action == acl.Deny
	app := capabilities(r.App)
	for _, part := range parts {
		first := r.Dst[part[0]]
		origin := proto.Origin{Path: r.Path, Line: r.Line}
		if len(parts) > 1 {
			origin = proto.Origin{Path: fmt.Sprintf("%s.dst[%d]", r.Path, part[0]), Line: first.Line}
		}
		if first.Kind == acl.Self && len(r.Via) > 0 {
			continue // a user's own nodes are never reached through a router
		}
		dst := make([]acl.Selector, len(part))
		for n, i := range part {
			dst[n] = r.Dst[i].Selector
		}
		c := rule{
			origin: origin, action: actionOf(r.Action), src: src, dst: p.side(dst, r.Action == acl.Deny), services: first.Services,
			via: r.Via, cond: p.condition(r), app: app, until: r.Until,
		}
		if first.Kind == acl.Self {
			c.self, c.src = true, p.side(users(r.Src), false)
		}
		p.derive(&c)
		p.rules = append(p.rules, c)
	}
}

func actionOf(a acl.Action) proto.Action {
	switch a {
	case acl.Allow:
		return proto.Allow
	case acl.Monitor:
		return proto.Monitor
	}
	return proto.Deny
}

// capabilities returns the capabilities of a grant in the form of netmaps.
func capabilities(app map[string][]json.RawMessage) []proto.Capability {
	var out []proto.Capability
	for _, name := range slices.Sorted(maps.Keys(app)) {
		c := proto.Capability{Name: name}
		for _, v := range app[name] {
			c.Values = append(c.Values, string(v))
		}
		out = append(out, c)
	}
	return out
}

// users returns the sources of a rule about autogroup:self, in which * can only mean every user.
func users(selectors []acl.Selector) []acl.Selector {
	out := slices.Clone(selectors)
	for i := range out {
		if out[i].Kind == acl.Any {
			out[i].Kind = acl.Member
		}
	}
	return out
}

// side collects the selectors of one side. In a deny rule * is everything: a guard rail has no holes.
func (p *Program) side(selectors []acl.Selector, deny bool) side {
	var s side
	for _, sel := range selectors {
		switch sel.Kind {
		case acl.Any:
			s.any, s.everything = s.any || !deny, s.everything || deny
		case acl.DangerAll:
			s.everything = true
		case acl.Internet:
			if deny {
				s.prefixes = append(s.prefixes, sel.Prefixes...)
			} else {
				s.internet = true
			}
		case acl.Literal:
			s.prefixes = append(s.prefixes, sel.Prefix)
		case acl.AddressSet:
			s.prefixes = append(s.prefixes, sel.Prefixes...)
		case acl.Self:
		default:
			p.roles = p.roles || sel.Kind == acl.Role
			s.sets = append(s.sets, sel.Set())
		}
	}
	slices.Sort(s.sets)
	s.sets = slices.Compact(s.sets)
	sortPrefixes(s.prefixes)
	s.prefixes = slices.Compact(s.prefixes)
	return s
}

func indexSides(rules []rule, of func(*rule) side) sideIndex {
	x := sideIndex{bySet: map[string][]int32{}, prefixes: new(bart.Table[[]int32])}
	for i := range rules {
		s, n := of(&rules[i]), int32(i)
		for _, name := range s.sets {
			x.bySet[name] = append(x.bySet[name], n)
		}
		for _, p := range s.prefixes {
			x.prefixes.Modify(p, func(list []int32, _ bool) ([]int32, bool) { return append(list, n), false })
		}
		for _, f := range []struct {
			is   bool
			list *[]int32
		}{{s.any, &x.any}, {s.internet, &x.internet}, {s.everything, &x.everything}} {
			if f.is {
				*f.list = append(*f.list, n)
			}
		}
	}
	return x
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
