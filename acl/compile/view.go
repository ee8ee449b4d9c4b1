package compile

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// View is what the policy gives one node to know and to enforce.
type View struct {
	Rules []proto.Rule   // sorted by Key
	Sets  []proto.Set    // sorted by Name; exactly those that Rules name; never with the node itself
	Peers []proto.NodeID // sorted
}

// For is the View of a node: a pure function of the policy, the inventory and the node. A node that the inventory does not
// know has an empty one.
func (p *Program) For(inv Inventory, id proto.NodeID) View { return p.On(inv).For(id) }

// Affected lists the nodes whose View may differ between two inventories that differ in one node, and that node itself. It
// is everyone who has the node as a peer in one of the two.
func (p *Program) Affected(before, after Inventory, changed proto.NodeID) []proto.NodeID {
	return Affected(p.On(before), p.On(after), changed)
}

// Affected is Program.Affected for inventories that are used several times.
func Affected(before, after *Bound, changed proto.NodeID) []proto.NodeID {
	out := slices.Concat(before.peers(changed), after.peers(changed), []proto.NodeID{changed})
	slices.Sort(out)
	return slices.Compact(out)
}

// Bound is a Program on one inventory. It remembers the members of sets, so that the Views of many nodes cost little more
// than their size. It is not safe for concurrent use.
type Bound struct {
	prog *Program
	inv  Inventory
	sets map[string][]proto.NodeID
	// covers is where nodes stand in the rules.
	covers map[proto.NodeID]coverage
	all    *addressBook // nil until a range is looked up
}

// On binds the program to an inventory.
func (p *Program) On(inv Inventory) *Bound {
	return &Bound{prog: p, inv: inv, sets: map[string][]proto.NodeID{}, covers: map[proto.NodeID]coverage{}}
}

// coverage is where a node stands in the rules. A node is one of the inventory's, or has an id that none of those has.
func (b *Bound) coverage(n proto.Identity) coverage {
	c, ok := b.covers[n.ID]
	if !ok {
		c = b.prog.coverage(n)
		b.covers[n.ID] = c
	}
	return c
}

// node is a node that rules can be about.
func (b *Bound) node(id proto.NodeID) (proto.Identity, bool) {
	n, ok := b.inv.Node(id)
	return n, ok && n.ID == id && whole(n)
}

// For is Program.For.
func (b *Bound) For(id proto.NodeID) View {
	n, ok := b.node(id)
	if !ok {
		return View{}
	}
	v := View{Rules: b.rules(n)}
	named := map[string]struct{}{}
	for _, r := range v.Rules {
		for _, s := range r.Peers.Sets {
			named[s] = struct{}{}
		}
	}
	for name := range named {
		v.Sets = append(v.Sets, proto.Set{Name: name, Members: without1(b.members(name), id)})
	}
	slices.SortFunc(v.Sets, func(a, b proto.Set) int { return cmp.Compare(a.Name, b.Name) })
	v.Peers = b.tied(id, v.Rules)
	return v
}

// peers are the nodes that some rule ties to a node.
func (b *Bound) peers(id proto.NodeID) []proto.NodeID {
	n, ok := b.node(id)
	if !ok {
		return nil
	}
	return b.tied(id, b.rules(n))
}

// rules are the rules of a node, sorted by key.
func (b *Bound) rules(n proto.Identity) []proto.Rule {
	c := b.coverage(n)
	out := make([]proto.Rule, 0, len(c.src)+len(c.dst))
	add := func(r *rule, in families, direction proto.Direction, other side) {
		if peers := other.selector(in); len(peers.Sets)+len(peers.Prefixes) > 0 {
			out = append(out, proto.Rule{
				Key: r.origin.Path + "/" + direction.String(), Origin: r.origin, Direction: direction,
				Peers: peers, Local: local(n.Addrs, in), Services: r.services,
			})
		}
	}
	for _, x := range c.src {
		r := &b.prog.rules[x.rule]
		switch {
		case !r.self:
			add(r, x.in, proto.Out, r.dst)
		case c.user != "":
			own := side{sets: []string{c.user}}
			add(r, both, proto.In, own)
			add(r, both, proto.Out, own)
		}
	}
	for _, x := range c.dst {
		r := &b.prog.rules[x.rule]
		add(r, x.in, proto.In, r.src)
	}
	slices.SortFunc(out, func(a, b proto.Rule) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// selector is the side as the other side's peers, as far as they share a family.
func (s side) selector(in families) proto.Selector {
	if in == both {
		return proto.Selector{Sets: s.sets, Prefixes: s.prefixes}
	}
	sel := proto.Selector{Sets: s.sets}
	for _, p := range s.prefixes {
		if in&family(p.Addr()) != 0 {
			sel.Prefixes = append(sel.Prefixes, p)
		}
	}
	return sel
}

// local are a node's own addresses in some families.
func local(a proto.Addrs, in families) []netip.Prefix {
	var out []netip.Prefix
	if in&v4 != 0 {
		out = append(out, netip.PrefixFrom(a.V4, a.V4.BitLen()))
	}
	if in&v6 != 0 {
		out = append(out, netip.PrefixFrom(a.V6, a.V6.BitLen()))
	}
	return out
}

// tied are the nodes that rules of a node have on their other side.
func (b *Bound) tied(self proto.NodeID, rules []proto.Rule) []proto.NodeID {
	var lists [][]proto.NodeID
	seenSets, seenPrefixes := map[string]struct{}{}, map[netip.Prefix]struct{}{}
	for _, r := range rules {
		for _, s := range r.Peers.Sets {
			if _, ok := seenSets[s]; !ok {
				seenSets[s] = struct{}{}
				lists = append(lists, b.members(s))
			}
		}
		for _, p := range r.Peers.Prefixes {
			if _, ok := seenPrefixes[p]; !ok && sharesFamily(r.Local, p) {
				seenPrefixes[p] = struct{}{}
				lists = append(lists, b.within(p))
			}
		}
	}
	out := slices.Concat(lists...)
	slices.Sort(out)
	return without1(slices.Compact(out), self)
}

func sharesFamily(local []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(local, func(l netip.Prefix) bool { return l.Addr().Is4() == p.Addr().Is4() })
}

// without1 is a sorted list without one of its members; the list itself where it is no member.
func without1(ids []proto.NodeID, id proto.NodeID) []proto.NodeID {
	i, found := slices.BinarySearch(ids, id)
	if !found {
		return ids
	}
	return slices.Concat(ids[:i], ids[i+1:])
}
