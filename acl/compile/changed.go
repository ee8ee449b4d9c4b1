package compile

import (
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Affected lists the nodes whose View may differ between two inventories of one moment that differ in one node, in its traits
// or in the roles of its user, and that node itself.
func (p *Program) Affected(before, after Inventory, changed proto.NodeID) []proto.NodeID {
	return Affected(p.On(before), p.On(after), changed)
}

// Affected is Program.Affected for inventories that are used several times. It is everyone who has the node as a peer in one
// of the two; where the roles of its user changed, or the user did, the same for the user's other nodes.
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

// NextChange is the next moment at which what the rules say of a node changes because its person's login ages, and nothing
// else. Whoever keeps Views makes them again for Affected(before, after, id) then.
func (p *Program) NextChange(inv Inventory, id proto.NodeID) (time.Time, bool) {
	return p.On(inv).NextChange(id)
}

// NextChange is Program.NextChange.
func (b *Bound) NextChange(id proto.NodeID) (time.Time, bool) {
	n, ok := b.node(id)
	if !ok || !member(n) || n.User.AuthTime.IsZero() {
		return time.Time{}, false
	}
	now, next := b.inv.Now(), time.Time{}
	for _, x := range b.coverage(n).src {
		c := b.prog.rules[x.rule].cond
		if c == nil {
			continue
		}
		for _, age := range c.ages() {
			// Ages are whole seconds: the one in question begins at the first of these moments and is over at the second.
			for _, at := range []time.Time{n.User.AuthTime.Add(age), n.User.AuthTime.Add(age + time.Second)} {
				if at.After(now) && (next.IsZero() || at.Before(next)) {
					next = at
				}
			}
		}
	}
	return next, !next.IsZero()
}

// Until lists the moments at which rules that only watch end, sorted.
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
