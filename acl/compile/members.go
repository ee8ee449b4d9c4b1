package compile

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto"
)

// members returns the nodes of a set, sorted. Users, groups and tags are looked up; only sets about everybody iterate over all
// nodes.
func (b *Bound) members(set string) []proto.NodeID {
	if ids, ok := b.sets[set]; ok {
		return ids
	}
	var ids []proto.NodeID
	if d, ok := b.derivedSet(set); ok {
		ids = b.derivedMembers(d)
	} else {
		ids = sortedIDs(func(yield func(proto.NodeID) bool) {
			for id := range b.candidates(set) {
				n, ok := b.node(id)
				if ok && slices.Contains(b.setsOf(n), set) && !yield(id) {
					return
				}
			}
		})
	}
	b.sets[set] = ids
	return ids
}

// derivedSet returns how a set is derived, if it is.
func (b *Bound) derivedSet(set string) (derived, bool) {
	if d, ok := b.prog.derived[set]; ok {
		return d, true
	}
	d, ok := b.own[set]
	return d, ok
}

func (b *Bound) derivedMembers(d derived) []proto.NodeID {
	var ids []proto.NodeID
	if d.base != "" {
		ids = b.members(d.base)
	} else {
		for _, p := range d.prefixes {
			ids = append(ids, b.within(p)...)
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	if d.cond == nil {
		return ids
	}
	var out []proto.NodeID
	for _, id := range ids {
		n, _ := b.node(id)
		if ok, _ := d.cond.holds(n, b.factsOf(n)); ok {
			out = append(out, id)
		}
	}
	return out
}

// ofUser returns the name of the set of one user's nodes for which a condition holds.
func (b *Bound) ofUser(user string, c *cond) string {
	name := c.of(user)
	if c != nil {
		b.own[name] = derived{base: user, cond: c}
	}
	return name
}

// candidates returns a superset of the members of a set.
func (b *Bound) candidates(set string) iter.Seq[proto.NodeID] {
	switch {
	case strings.HasPrefix(set, "tag:"):
		return b.inv.ByTag(set)
	case strings.HasPrefix(set, "group:"):
		return func(yield func(proto.NodeID) bool) {
			for _, m := range b.prog.policy.Groups[set].Members {
				for id := range b.inv.ByUser(m.Name) {
					if !yield(id) {
						return
					}
				}
			}
		}
	case strings.HasPrefix(set, "user:") && !strings.HasPrefix(set, "user:*@"):
		return b.inv.ByUser(strings.TrimSuffix(strings.TrimPrefix(set, "user:"), "@"))
	}
	return b.inv.All()
}

// addressBook lists all nodes by address.
type addressBook struct {
	v4, v6 []addressed
}

type addressed struct {
	addr netip.Addr
	id   proto.NodeID
}

// within returns the nodes that have an address in a prefix, sorted.
func (b *Bound) within(p netip.Prefix) []proto.NodeID {
	if p.IsSingleIP() {
		id, ok := b.inv.ByAddr(p.Addr())
		if n, known := b.node(id); ok && known && n.Addrs.Has(p.Addr()) {
			return []proto.NodeID{id}
		}
		return nil
	}
	if !b.prog.mesh.V4.Overlaps(p) && !b.prog.mesh.V6.Overlaps(p) {
		return nil
	}
	key := p.String()
	if ids, ok := b.sets[key]; ok {
		return ids
	}
	book := b.addressBook()
	list := book.v6
	if p.Addr().Is4() {
		list = book.v4
	}
	from, _ := slices.BinarySearchFunc(list, p.Addr(), func(a addressed, x netip.Addr) int { return a.addr.Compare(x) })
	var ids []proto.NodeID
	for _, a := range list[from:] {
		if !p.Contains(a.addr) {
			break
		}
		ids = append(ids, a.id)
	}
	slices.Sort(ids)
	b.sets[key] = ids
	return ids
}

func (b *Bound) addressBook() *addressBook {
	if b.all != nil {
		return b.all
	}
	b.all = &addressBook{}
	for id := range b.inv.All() {
		if n, ok := b.node(id); ok {
			b.all.v4 = append(b.all.v4, addressed{n.Addrs.V4, id})
			b.all.v6 = append(b.all.v6, addressed{n.Addrs.V6, id})
		}
	}
	byAddr := func(x, y addressed) int { return cmp.Or(x.addr.Compare(y.addr), cmp.Compare(x.id, y.id)) }
	slices.SortFunc(b.all.v4, byAddr)
	slices.SortFunc(b.all.v6, byAddr)
	return b.all
}
