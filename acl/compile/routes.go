package compile

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// router is a node that serves approved routes.
type router struct {
	id      proto.NodeID
	subnets []netip.Prefix // sorted
	exit    families       // the families in which it is an exit node
}

// routes holds all approved routes.
type routes struct {
	byID    map[proto.NodeID]router
	subnets []netip.Prefix // of all routers, sorted, each once
	exit    families
	// owners are the routers by subnet; exits are the exit nodes.
	owners interface { // a *bart.Table, see ruleTable
		Supernets(of netip.Prefix) iter.Seq2[netip.Prefix, []proto.NodeID]
	}
	exits []proto.NodeID
	// src and dst map each rule to the routers with routes that its sources or destinations cover.
	src, dst map[int32][]routed
}

// routed is a router with those of its routes that a side of a rule covers in part or in whole.
type routed struct {
	id proto.NodeID
	covered
}

// routes computes the routes on first use.
func (b *Bound) routes() *routes {
	if b.routed != nil {
		return b.routed
	}
	owners := new(bart.Table[[]proto.NodeID])
	r := &routes{byID: map[proto.NodeID]router{}, owners: owners, src: map[int32][]routed{}, dst: map[int32][]routed{}}
	b.routed = r
	for _, id := range sortedIDs(b.inv.Routers()) {
		n, ok := b.node(id)
		if !ok {
			continue
		}
		x := router{id: id}
		for _, p := range b.Approved(n.ID) {
			if p.Bits() == 0 {
				x.exit |= family(p.Addr())
				continue
			}
			x.subnets = append(x.subnets, p)
			owners.Modify(p, func(ids []proto.NodeID, _ bool) ([]proto.NodeID, bool) { return append(ids, id), false })
		}
		if x.exit != 0 {
			r.exits = append(r.exits, id)
		}
		if x.exit != 0 || len(x.subnets) > 0 {
			r.byID[id] = x
		}
		r.exit |= x.exit
		r.subnets = append(r.subnets, x.subnets...)
	}
	sortPrefixes(r.subnets)
	r.subnets = slices.Compact(r.subnets)
	for id := range r.byID {
		n, _ := b.node(id)
		c := b.coverage(n)
		for _, s := range c.src {
			if len(s.parts) > 0 {
				r.src[s.rule] = append(r.src[s.rule], routed{id, s})
			}
		}
		for _, s := range c.dst {
			if len(s.parts) > 0 {
				r.dst[s.rule] = append(r.dst[s.rule], routed{id, s})
			}
		}
	}
	return r
}

// Approved returns the routes that a node advertises and that were approved, by hand or by the policy; sorted. 0.0.0.0/0 and
// ::/0 make it an exit node. Approving a route that the node does not advertise has no effect.
func (b *Bound) Approved(id proto.NodeID) []netip.Prefix {
	n, ok := b.node(id)
	if !ok {
		return nil
	}
	t := b.inv.Traits(id)
	var out []netip.Prefix
	for _, p := range t.Advertised {
		if p.IsValid() && p == p.Masked() && (slices.Contains(t.Approved, p) || b.prog.approves(b, n, p)) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, proto.ComparePrefix)
	return slices.Compact(out)
}

// approves reports whether the policy itself approves a route of a node. Exit nodes need an approval of their own.
func (p *Program) approves(b *Bound, n proto.Identity, route netip.Prefix) bool {
	if p.policy == nil {
		return false
	}
	by := func(selectors []acl.Selector) bool {
		return len(selectors) > 0 && slices.ContainsFunc(b.setsOf(n), func(set string) bool {
			return slices.ContainsFunc(selectors, func(s acl.Selector) bool { return s.Set() == set })
		})
	}
	if route.Bits() == 0 {
		return by(p.policy.Approvers.ExitNode)
	}
	return slices.ContainsFunc(p.policy.Approvers.Routes, func(a acl.RouteApprover) bool {
		return a.Prefix.Bits() <= route.Bits() && a.Prefix.Contains(route.Addr()) && by(a.By)
	})
}

// ownersOf returns the routers through which an address is reached that is no node's, sorted.
func (b *Bound) ownersOf(a netip.Addr) []proto.NodeID {
	r := b.routes()
	if len(r.byID) == 0 {
		return nil
	}
	var out []proto.NodeID
	for _, ids := range r.owners.Supernets(netip.PrefixFrom(a, a.BitLen())) {
		out = append(out, ids...)
	}
	if r.exit&family(a) != 0 && isInternet(a) {
		for _, id := range r.exits {
			if r.byID[id].exit&family(a) != 0 {
				out = append(out, id)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// serves reports whether a node has an approved route to an address.
func (r *routes) serves(id proto.NodeID, a netip.Addr) bool {
	x, ok := r.byID[id]
	return ok && (slices.ContainsFunc(x.subnets, func(p netip.Prefix) bool { return p.Contains(a) }) ||
		x.exit&family(a) != 0 && isInternet(a))
}

// internet is what can be reached through exit nodes.
var internet = acl.InternetPrefixes()

func isInternet(a netip.Addr) bool {
	return slices.ContainsFunc(internet, func(p netip.Prefix) bool { return p.Contains(a) })
}

// internetIn returns the prefixes of the internet in some families.
func internetIn(in families) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range internet {
		if family(p.Addr())&in != 0 {
			out = append(out, p)
		}
	}
	return out
}
