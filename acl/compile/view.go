package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/redoubt-mesh/redoubt/proto"
)

// View is the part of the policy that one node knows and enforces.
type View struct {
	Rules []proto.Rule   // sorted by Key
	Sets  []proto.Set    // sorted by Name; exactly those that Rules name; their members are all in Peers
	Peers []proto.NodeID // sorted
	// Routes holds each peer's routes that the node may use, in either direction, sorted. A route to every address means the
	// internet through an exit node, and nothing private.
	Routes map[proto.NodeID][]netip.Prefix
	// Withheld are rules for connections from the node whose conditions it does not meet, sorted by Key. They make no peers and
	// name only sets that Rules name too.
	Withheld []proto.Withheld
}

// For returns the View of a node: a pure function of the policy, the inventory and the node. It is empty for a node that is
// not in the inventory.
func (p *Program) For(inv Inventory, id proto.NodeID) View { return p.On(inv).For(id) }

// Bound is a Program bound to one inventory. It caches the members of sets, so that the Views of many nodes cost little more
// than their size. It is not safe for concurrent use.
type Bound struct {
	prog *Program
	inv  Inventory
	sets map[string][]proto.NodeID
	own  map[string]derived // one user's nodes that meet a condition
	// covers caches which rules cover a node.
	covers map[proto.NodeID]coverage
	all    *addressBook // nil until a range is looked up
	routed *routes      // nil until routes are looked up
}

// On binds the program to an inventory.
func (p *Program) On(inv Inventory) *Bound {
	return &Bound{
		prog: p, inv: inv, sets: map[string][]proto.NodeID{}, own: map[string]derived{},
		covers: map[proto.NodeID]coverage{},
	}
}

// node returns a node if it is valid and in the inventory.
func (b *Bound) node(id proto.NodeID) (proto.Identity, bool) {
	n, ok := b.inv.Node(id)
	return n, ok && n.ID == id && whole(n)
}

// For is like Program.For.
func (b *Bound) For(id proto.NodeID) View {
	n, ok := b.node(id)
	if !ok {
		return View{}
	}
	v := View{}
	v.Rules, v.Withheld = b.rules(n)
	v.Peers, v.Routes = b.tied(n)
	named := map[string]struct{}{}
	for _, r := range v.Rules {
		for _, s := range r.Peers.Sets {
			named[s] = struct{}{}
		}
	}
	for name := range named {
		d, made := b.derivedSet(name)
		v.Sets = append(v.Sets, proto.Set{
			Name: name, Members: intersect(b.members(name), v.Peers),
			Conditional: made && d.cond != nil && !d.cond.deny,
		})
	}
	slices.SortFunc(v.Sets, func(a, b proto.Set) int { return cmp.Compare(a.Name, b.Name) })
	for i := range v.Withheld {
		w := &v.Withheld[i]
		w.Peers.Sets = slices.DeleteFunc(slices.Clone(w.Peers.Sets), func(s string) bool { _, there := named[s]; return !there })
	}
	return v
}

// intersect returns the members of one sorted list that are in another; it returns the list itself if all are.
func intersect(ids, in []proto.NodeID) []proto.NodeID {
	missing, i := 0, 0
	for _, id := range ids {
		for i < len(in) && in[i] < id {
			i++
		}
		if i == len(in) || in[i] != id {
			missing++
		}
	}
	if missing == 0 {
		return ids
	}
	if missing == len(ids) {
		return nil
	}
	out := make([]proto.NodeID, 0, len(ids)-missing)
	i = 0
	for _, id := range ids {
		for i < len(in) && in[i] < id {
			i++
		}
		if i < len(in) && in[i] == id {
			out = append(out, id)
		}
	}
	return out
}

// rules returns the rules of a node, sorted by key, and those that are withheld from it.
func (b *Bound) rules(n proto.Identity) ([]proto.Rule, []proto.Withheld) {
	c := b.coverage(n)
	e := &emitter{out: make([]proto.Rule, 0, len(c.src)+len(c.dst))}
	for i := range c.src {
		x := &c.src[i]
		r := &b.prog.rules[x.rule]
		if r.self {
			if c.user != "" {
				e.self(b, n, c.user, x, r)
			}
			continue
		}
		if x.withheld {
			e.emit(n, x, r, proto.Out, "", both, b.prog.told(r))
			continue
		}
		e.emit(n, x, r, proto.Out, "", both, b.destinations(x.rule))
	}
	for i := range c.dst {
		x := &c.dst[i]
		r := &b.prog.rules[x.rule]
		e.emit(n, x, r, proto.In, "", both, b.sources(r))
		if r.srcV4 != "" {
			e.emit(n, x, r, proto.In, "/v4", v4, proto.Selector{Sets: []string{r.srcV4}})
		}
		if r.srcV6 != "" {
			e.emit(n, x, r, proto.In, "/v6", v6, proto.Selector{Sets: []string{r.srcV6}})
		}
	}
	byKey := func(a, b proto.Rule) int { return cmp.Compare(a.Key, b.Key) }
	slices.SortFunc(e.out, byKey)
	slices.SortFunc(e.withheld, func(a, b proto.Withheld) int { return byKey(a.Rule, b.Rule) })
	return e.out, e.withheld[:min(len(e.withheld), proto.MaxWithheld)]
}

// emitter makes the rules of one node.
type emitter struct {
	out      []proto.Rule
	withheld []proto.Withheld
}

// emit adds the rules that a rule becomes on a node in one direction: several if a side does not fit into one.
func (e *emitter) emit(n proto.Identity, x *covered, r *rule, d proto.Direction, suffix string, in families, peers proto.Selector) {
	local := only(append(own(n.Addrs, x.in), x.parts...), in)
	var reach families
	for _, p := range local {
		reach |= family(p.Addr())
	}
	peers.Prefixes = only(peers.Prefixes, reach)
	if len(local) == 0 || len(peers.Sets)+len(peers.Prefixes) == 0 {
		return
	}
	out := proto.Rule{
		Origin: r.origin, Direction: d, Services: r.services, Action: r.action, Until: r.until,
		Conditional: d == proto.Out && r.cond != nil && r.action != proto.Deny,
	}
	if d == proto.In {
		out.App = r.app
	}
	key, part := r.origin.Path+"/"+d.String()+suffix, 0
	for _, l := range chunks(local) {
		for i, p := range chunks(peers.Prefixes) {
			part++
			out.Key, out.Local, out.Peers = key, l, proto.Selector{Prefixes: p}
			if part > 1 {
				out.Key = fmt.Sprintf("%s/%d", key, part)
			}
			if i == 0 {
				out.Peers.Sets = peers.Sets
			}
			switch {
			case d != proto.Out || !x.withheld:
				e.out = append(e.out, out)
			case r.action == proto.Allow:
				w := proto.Withheld{Rule: out, Reason: reason(x.missing)}
				w.Conditional = false
				e.withheld = append(e.withheld, w)
			}
		}
	}
}

// self adds a rule about the nodes of the same user.
func (e *emitter) self(b *Bound, n proto.Identity, user string, x *covered, r *rule) {
	y := *x
	y.in, y.parts = both, nil
	e.emit(n, &y, r, proto.In, "", both, proto.Selector{Sets: []string{b.ofUser(user, r.cond)}})
	e.emit(n, &y, r, proto.Out, "", both, proto.Selector{Sets: []string{user}})
}

// chunks splits a list of prefixes into parts that fit into rules, at least one.
func chunks(ps []netip.Prefix) [][]netip.Prefix {
	if len(ps) <= proto.MaxRulePrefixes {
		return [][]netip.Prefix{ps}
	}
	return slices.Collect(slices.Chunk(ps, proto.MaxRulePrefixes))
}

// reason sanitizes and truncates a text for a netmap.
func reason(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > proto.MaxReason {
		s = strings.ToValidUTF8(s[:proto.MaxReason-3], "") + "..."
	}
	return s
}

// own returns a node's own addresses in some families.
func own(a proto.Addrs, in families) []netip.Prefix {
	out := make([]netip.Prefix, 0, 2)
	if in&v4 != 0 {
		out = append(out, netip.PrefixFrom(a.V4, a.V4.BitLen()))
	}
	if in&v6 != 0 {
		out = append(out, netip.PrefixFrom(a.V6, a.V6.BitLen()))
	}
	return out
}

// destinations returns the destinations of a rule as its sources see them.
func (b *Bound) destinations(number int32) proto.Selector {
	r := &b.prog.rules[number]
	if len(r.via) > 0 {
		return proto.Selector{Prefixes: b.through(number)}
	}
	return proto.Selector{Sets: r.dstSets, Prefixes: b.prefixes(&r.dst, true)}
}

// told returns the destinations of a rule as reported to a node that does not meet its condition: nothing that depends on other
// nodes, since the node has no access to them.
func (p *Program) told(r *rule) proto.Selector {
	out := proto.Selector{Sets: r.dstSets, Prefixes: slices.Clone(r.dst.prefixes)}
	if r.dst.any {
		out.Prefixes = append(out.Prefixes, p.any...)
	}
	if r.dst.internet {
		out.Prefixes = append(out.Prefixes, internet...)
	}
	sortPrefixes(out.Prefixes)
	out.Prefixes = slices.Compact(out.Prefixes)
	return out
}

// sources returns the sources of a rule as its destinations see them, except for literal addresses of nodes if the rule has a
// condition: those are srcV4 and srcV6.
func (b *Bound) sources(r *rule) proto.Selector {
	switch {
	case r.cond == nil:
		return proto.Selector{Sets: r.srcSets, Prefixes: b.prefixes(&r.src, false)}
	case r.action == proto.Deny:
		return proto.Selector{Sets: r.srcSets, Prefixes: b.beyond(b.prefixes(&r.src, false))}
	}
	return proto.Selector{Sets: r.srcSets}
}

// prefixes returns the addresses that a side names, including the routes that * stands for.
func (b *Bound) prefixes(s *side, dst bool) []netip.Prefix {
	switch {
	case s.everything:
		return all
	case !s.any && !s.internet:
		return s.prefixes
	}
	out := slices.Clone(s.prefixes)
	if s.any {
		out = append(append(out, b.prog.any...), b.routes().subnets...)
	}
	if s.internet || s.any && dst {
		out = append(out, internetIn(b.routes().exit)...)
	}
	sortPrefixes(out)
	return slices.Compact(out)
}

// through returns the parts of routes that a rule with via covers.
func (b *Bound) through(number int32) []netip.Prefix {
	var out []netip.Prefix
	for _, x := range b.routes().dst[number] {
		out = append(out, x.parts...)
	}
	sortPrefixes(out)
	return slices.Compact(out)
}

// beyond returns prefixes without the mesh's own addresses, but with the routes within those: what is behind routers.
func (b *Bound) beyond(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		mesh := b.prog.mesh.V6.Masked()
		if p.Addr().Is4() {
			mesh = b.prog.mesh.V4.Masked()
		}
		switch {
		case !p.Overlaps(mesh):
			out = append(out, p)
			continue
		case p.Bits() < mesh.Bits():
			out = append(out, minus(p, mesh)...)
		}
		for _, s := range b.routes().subnets {
			switch {
			case !s.Overlaps(mesh) || !s.Overlaps(p):
			case s.Bits() >= p.Bits():
				out = append(out, s)
			default:
				out = append(out, p)
			}
		}
	}
	sortPrefixes(out)
	return slices.Compact(out)
}

// minus returns a prefix without another one within it.
func minus(p, hole netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	raw := hole.Addr().AsSlice()
	for bits := p.Bits() + 1; bits <= hole.Bits(); bits++ {
		other := slices.Clone(raw)
		other[(bits-1)/8] ^= 1 << (7 - (bits-1)%8)
		a, _ := netip.AddrFromSlice(other)
		out = append(out, netip.PrefixFrom(a, bits).Masked())
	}
	return out
}

// Peers returns the peers of a node, sorted.
func (b *Bound) Peers(id proto.NodeID) []proto.NodeID { return b.peers(id) }

// peers returns the peers of a node, sorted.
func (b *Bound) peers(id proto.NodeID) []proto.NodeID {
	n, ok := b.node(id)
	if !ok {
		return nil
	}
	peers, _ := b.tied(n)
	return peers
}

// tied returns the peers of a node, and those routes of theirs that the node may use.
func (b *Bound) tied(n proto.Identity) ([]proto.NodeID, map[proto.NodeID][]netip.Prefix) {
	c := b.coverage(n)
	t := ties{b: b, self: n.ID, seen: map[string]struct{}{}}
	for i := range c.src {
		x := &c.src[i]
		r := &b.prog.rules[x.rule]
		switch {
		case r.action == proto.Deny:
		case r.self:
			if c.user != "" {
				t.set(b.ofUser(c.user, r.cond))
				if !x.withheld {
					t.set(c.user)
				}
			}
		case !x.withheld:
			if len(r.via) == 0 {
				t.sets(r.dstSets)
				t.within(&r.dst, x.families())
			}
			t.routes(b.routes().dst[x.rule], x.families())
		}
	}
	for i := range c.dst {
		x := &c.dst[i]
		r := &b.prog.rules[x.rule]
		in := x.families()
		switch {
		case r.action == proto.Deny:
			continue
		case r.cond == nil:
			t.within(&r.src, in)
		default:
			if in&v4 != 0 && r.srcV4 != "" {
				t.set(r.srcV4)
			}
			if in&v6 != 0 && r.srcV6 != "" {
				t.set(r.srcV6)
			}
		}
		t.sets(r.srcSets)
		t.routes(b.routes().src[x.rule], in)
	}
	out := slices.Concat(t.lists...)
	slices.Sort(out)
	for id, ps := range t.via {
		slices.SortFunc(ps, proto.ComparePrefix)
		t.via[id] = slices.Compact(ps)
	}
	return without1(slices.Compact(out), n.ID), t.via
}

// ties gathers the peers of one node.
type ties struct {
	b     *Bound
	self  proto.NodeID
	seen  map[string]struct{}
	lists [][]proto.NodeID
	via   map[proto.NodeID][]netip.Prefix
}

func (t *ties) set(name string) {
	if _, ok := t.seen[name]; !ok {
		t.seen[name] = struct{}{}
		t.lists = append(t.lists, t.b.members(name))
	}
}

func (t *ties) sets(names []string) {
	for _, s := range names {
		t.set(s)
	}
}

// within adds the nodes that a side selects by address in some families.
func (t *ties) within(s *side, in families) {
	add := func(ps []netip.Prefix) {
		for _, p := range ps {
			if family(p.Addr())&in == 0 {
				continue
			}
			key := p.String()
			if _, ok := t.seen[key]; !ok {
				t.seen[key] = struct{}{}
				t.lists = append(t.lists, t.b.within(p))
			}
		}
	}
	switch {
	case s.everything:
		add(all)
		return
	case s.any:
		add(t.b.prog.any)
	}
	add(s.prefixes)
}

// routes adds routers, and those of their routes that the node may use. Routes within the mesh are no peer's to claim.
func (t *ties) routes(refs []routed, in families) {
	for _, x := range refs {
		if x.id == t.self || x.onlyRoutes()&in == 0 {
			continue
		}
		t.lists = append(t.lists, []proto.NodeID{x.id})
		for _, p := range x.routes {
			if family(p.Addr())&in == 0 || p.Bits() > 0 && (t.b.prog.mesh.V4.Overlaps(p) || t.b.prog.mesh.V6.Overlaps(p)) {
				continue
			}
			if t.via == nil {
				t.via = map[proto.NodeID][]netip.Prefix{}
			}
			t.via[x.id] = append(t.via[x.id], p)
		}
	}
}

// onlyRoutes returns the families in which routes are covered.
func (c *covered) onlyRoutes() families {
	routes := covered{parts: c.parts}
	return routes.families()
}

// without1 returns a sorted list without one of its members; it returns the list itself if it does not contain it.
func without1(ids []proto.NodeID, id proto.NodeID) []proto.NodeID {
	i, found := slices.BinarySearch(ids, id)
	if !found {
		return ids
	}
	return slices.Concat(ids[:i], ids[i+1:])
}
