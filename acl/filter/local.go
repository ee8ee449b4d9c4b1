package filter

import (
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Classes of local addresses: the node's own two, then one for each prefix in the rules that reaches beyond them, which is
// a route that the node serves. Rules treat all addresses of a class alike, since prefixes either nest or are disjoint.
const (
	ownV4 = iota
	ownV6
	ownClasses
)

// localTable finds the class of an address on this node's side.
type localTable struct {
	own     [ownClasses]packet.Addr
	mesh    proto.Mesh
	routes  lookup // nil without routes
	classes int
	prefix  []netip.Prefix // of each class
	opens   []bool         // of each class: whether it may open connections
}

// class returns the class of addr. An overlay address other than the node's own is never local, whatever prefix holds it.
func (t *localTable) class(addr packet.Addr) (int, bool) {
	switch addr {
	case t.own[ownV4]:
		return ownV4, true
	case t.own[ownV6]:
		return ownV6, true
	}
	if t.routes == nil {
		return 0, false
	}
	a := addr.Netip()
	if t.mesh.Contains(a) {
		return 0, false
	}
	return t.routes.Lookup(a)
}

// isOwn reports whether addr is one of the node's two overlay addresses.
func (t *localTable) isOwn(addr packet.Addr) bool {
	return addr == t.own[ownV4] || addr == t.own[ownV6]
}

func newLocalTable(r Ruleset) localTable {
	t := localTable{mesh: r.Mesh}
	var routes *bart.Table[int]
	for i, a := range r.Self.Addrs.Slice() {
		t.own[i] = packet.AddrOf(a)
		t.prefix = append(t.prefix, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, rule := range r.Rules {
		for _, p := range rule.Local {
			// The internet behind an exit node opens nothing.
			if rule.Direction != proto.In && p.Bits() == 0 || within(p, r.Mesh) || slices.Contains(t.prefix[:ownClasses], p) {
				continue
			}
			if routes == nil {
				routes = new(bart.Table[int])
				t.routes = routes
			}
			routes.Modify(p, func(old int, known bool) (int, bool) {
				if known {
					return old, false
				}
				t.prefix = append(t.prefix, p)
				return len(t.prefix) - 1, false
			})
		}
	}
	t.classes = len(t.prefix)
	t.opens = make([]bool, t.classes)
	for i := range t.opens {
		t.opens[i] = i < ownClasses || slices.ContainsFunc(r.Rules, func(rule proto.Rule) bool {
			return rule.Direction == proto.Out && slices.ContainsFunc(rule.Local, func(p netip.Prefix) bool {
				return p.Bits() > 0 && covers(p, t.prefix[i])
			})
		})
	}
	return t
}

// within reports whether p holds overlay addresses only.
func within(p netip.Prefix, m proto.Mesh) bool { return covers(m.V4, p) || covers(m.V6, p) }

// covers reports whether p holds all of q.
func covers(p, q netip.Prefix) bool { return p.Bits() <= q.Bits() && p.Overlaps(q) }
