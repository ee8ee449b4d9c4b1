package compile

import (
	"maps"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Affected lists the nodes whose View may differ between two inventories of the same moment that differ in one node, in its
// traits or in the roles of its user, including that node.
func (p *Program) Affected(before, after Inventory, changed proto.NodeID) []proto.NodeID {
	return Affected(p.On(before), p.On(after), changed)
}

// Affected is like Program.Affected, for inventories that are used several times. It returns the node and its peers in either
// inventory and, if the roles of its user in either changed, the same for the user's other nodes.
func Affected(before, after *Bound, changed proto.NodeID) []proto.NodeID {
	ids := []proto.NodeID{changed}
	if before.prog.roles || after.prog.roles {
		for _, b := range []*Bound{before, after} {
			n, ok := b.node(changed)
			if !ok || n.User.IsZero() || sameRoles(before.inv.Roles(n.User.Name), after.inv.Roles(n.User.Name)) {
				continue
			}
			for _, x := range []*Bound{before, after} {
				ids = slices.AppendSeq(ids, x.inv.ByUser(n.User.Name))
			}
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	out := slices.Clone(ids)
	for _, id := range ids {
		out = append(append(out, before.peers(id)...), after.peers(id)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func sameRoles(a, b []string) bool {
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(a))), slices.Compact(slices.Sorted(slices.Values(b))))
}

// NextChange returns the next time at which what the rules say about a node changes only because its user's login ages.
// Whoever caches Views must recompute those of Affected(before, after, id) then.
func (p *Program) NextChange(inv Inventory, id proto.NodeID) (time.Time, bool) {
	return p.On(inv).NextChange(id)
}

// NextChange is like Program.NextChange.
func (b *Bound) NextChange(id proto.NodeID) (time.Time, bool) {
	n, ok := b.node(id)
	if !ok || !member(n) || n.User.AuthTime.IsZero() {
		return time.Time{}, false
	}
	now, next := b.inv.Now(), time.Time{}
	// A coverage would not do: it lacks the deny rules that do not apply yet.
	for _, x := range b.prog.find(&b.prog.src, b.setsOf(n), n.Addrs, nil, false) {
		c := b.prog.rules[x.rule].cond
		if c == nil {
			continue
		}
		for _, age := range c.ages() {
			// Ages are whole seconds: this age begins at the first of these times and is over at the second.
			for _, at := range []time.Time{n.User.AuthTime.Add(age), n.User.AuthTime.Add(age + time.Second)} {
				if at.After(now) && (next.IsZero() || at.Before(next)) {
					next = at
				}
			}
		}
	}
	return next, !next.IsZero()
}

// Until lists the times at which monitor rules end, sorted.
func (p *Program) Until() []time.Time {
	var out []time.Time
	for i := range p.rules {
		if t := p.rules[i].until; !t.IsZero() {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, time.Time.Compare)
	return slices.CompactFunc(out, time.Time.Equal)
}

// Changed lists, sorted, the nodes whose View may differ between two programs on the same inventory: those covered by a rule
// that only one of them has, and those that may use a route that only one of them approves. The cost depends on the number of
// rules and of those nodes.
func Changed(before, after *Bound) []proto.NodeID {
	groups := changedGroups(before.prog, after.prog)
	index := make(map[string]int32, len(after.prog.rules))
	for i := range after.prog.rules {
		index[after.prog.rules[i].origin.Path] = int32(i)
	}
	seen := map[proto.NodeID]struct{}{}
	kept := make([]bool, len(after.prog.rules))
	for i := range before.prog.rules {
		r := &before.prog.rules[i]
		if n, ok := index[r.origin.Path]; ok && r.same(&after.prog.rules[n]) && !r.names(groups) {
			kept[n] = true
			continue
		}
		before.touch(int32(i), seen)
	}
	for n, same := range kept {
		if !same {
			after.touch(int32(n), seen)
		}
	}
	for id := range before.inv.Routers() {
		if !slices.Equal(before.Approved(id), after.Approved(id)) {
			for _, x := range Affected(before, after, id) {
				seen[x] = struct{}{}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// changedGroups returns the groups whose members differ.
func changedGroups(a, b *Program) map[string]struct{} {
	out := map[string]struct{}{}
	for _, pair := range [][2]*Program{{a, b}, {b, a}} {
		if pair[0].policy == nil {
			continue
		}
		for name, g := range pair[0].policy.Groups {
			var other acl.Group
			if pair[1].policy != nil {
				other = pair[1].policy.Groups[name]
			}
			if !slices.EqualFunc(g.Members, other.Members, func(x, y acl.Selector) bool { return x.Name == y.Name }) {
				out[name] = struct{}{}
			}
		}
	}
	return out
}

// names reports whether a rule selects one of some groups.
func (r *rule) names(groups map[string]struct{}) bool {
	in := func(s string) bool { _, ok := groups[s]; return ok }
	return len(groups) > 0 && (slices.ContainsFunc(r.src.sets, in) || slices.ContainsFunc(r.dst.sets, in))
}

// same reports whether two rules mean the same and are reported alike.
func (r *rule) same(o *rule) bool {
	return r.origin == o.origin && r.action == o.action && r.self == o.self && r.until.Equal(o.until) &&
		r.src.same(&o.src) && r.dst.same(&o.dst) && slices.Equal(r.services, o.services) && slices.Equal(r.via, o.via) &&
		r.cond.same(o.cond) && slices.EqualFunc(r.app, o.app, func(a, b proto.Capability) bool {
		return a.Name == b.Name && slices.Equal(a.Values, b.Values)
	})
}

func (s *side) same(o *side) bool {
	return s.any == o.any && s.internet == o.internet && s.everything == o.everything &&
		slices.Equal(s.sets, o.sets) && slices.Equal(s.prefixes, o.prefixes)
}

func (c *cond) same(o *cond) bool {
	if c == nil || o == nil {
		return c == o
	}
	return c.name == o.name && slices.EqualFunc(c.postures, o.postures, func(a, b acl.Posture) bool {
		return a.Name == b.Name && slices.EqualFunc(a.Conditions, b.Conditions, func(a, b acl.Condition) bool { return a.Text == b.Text })
	})
}

// touch adds the nodes that a rule covers on either side, whether they meet its condition or not.
func (b *Bound) touch(number int32, seen map[proto.NodeID]struct{}) {
	r := &b.prog.rules[number]
	for _, s := range []*side{&r.src, &r.dst} {
		for _, id := range b.sideNodes(s) {
			seen[id] = struct{}{}
		}
	}
	for _, refs := range [][]routed{b.routes().src[number], b.routes().dst[number]} {
		for _, x := range refs {
			seen[x.id] = struct{}{}
		}
	}
}

// sideNodes returns the nodes that a side selects by identity or by address, sorted.
func (b *Bound) sideNodes(s *side) []proto.NodeID {
	out := b.inside(s.nodePrefixes(b.prog))
	for _, set := range s.sets {
		out = append(out, b.members(set)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
