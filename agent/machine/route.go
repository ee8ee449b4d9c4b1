package machine

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/proto"
)

// routes are the prefixes behind peers in use. Each belongs to one peer: if several serve it, the one with the lowest ID.
type routes map[proto.NodeID][]netip.Prefix

// assign returns the routes that use accepts. Its work is proportional to the number of routers.
func (r *roster) assign(use func(proto.NodeID, netip.Prefix) bool) routes {
	if len(r.routers) == 0 {
		return nil
	}
	out, taken := routes{}, map[netip.Prefix]bool{}
	for _, id := range slices.Sorted(maps.Keys(r.routers)) {
		p := r.peers[id]
		if p.live == nil {
			continue
		}
		for _, prefix := range p.claim.Routes {
			if !taken[prefix] && use(id, prefix) {
				taken[prefix] = true
				out[id] = append(out[id], prefix)
			}
		}
	}
	return out
}

// list returns the routes for the filter; the held ones belong to nobody.
func (r routes) list(held []netip.Prefix) (list []filter.Route) {
	for _, id := range slices.Sorted(maps.Keys(r)) {
		for _, p := range r[id] {
			if !slices.Contains(held, p) {
				list = append(list, filter.Route{Prefix: p, Node: id})
			}
		}
	}
	for _, p := range held {
		list = append(list, filter.Route{Prefix: p})
	}
	return list
}

// owners returns the peer that each prefix belongs to.
func (r routes) owners() map[netip.Prefix]proto.NodeID {
	owners := map[netip.Prefix]proto.NodeID{}
	for id, prefixes := range r {
		for _, p := range prefixes {
			owners[p] = id
		}
	}
	return owners
}

// reroute assigns the routes again. It adds the peers whose routes changed to those to set in the engine, and returns the
// prefixes that must belong to nobody until that is done.
func (m *Machine) reroute(set []Peer) (held []netip.Prefix, _ []Peer) {
	if len(m.routes) == 0 && len(m.roster.routers) == 0 {
		return nil, set
	}
	before := m.routes
	m.assign()
	was, is := before.owners(), m.routes.owners()
	for p, id := range was {
		if is[p] != id {
			held = append(held, p)
		}
	}
	for p, id := range is {
		if _, known := was[p]; !known && id != 0 {
			held = append(held, p)
		}
	}
	slices.SortFunc(held, proto.ComparePrefix)
	for i := range set {
		set[i].Routes = m.routes[set[i].ID]
	}
	for _, id := range slices.Sorted(maps.Keys(m.roster.routersOf(before))) {
		p := m.roster.peers[id]
		if p == nil || p.live == nil || slices.Equal(before[id], m.routes[id]) ||
			slices.ContainsFunc(set, func(s Peer) bool { return s.ID == id }) {
			continue
		}
		set = append(set, m.enginePeer(id, p.live))
	}
	return held, set
}

// routersOf returns the present routers and those of before.
func (r *roster) routersOf(before routes) map[proto.NodeID]struct{} {
	all := maps.Clone(r.routers)
	for id := range before {
		all[id] = struct{}{}
	}
	return all
}
