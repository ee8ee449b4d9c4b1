package machine

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Question is about a connection between this node's side and another one.
type Question struct {
	Direction     proto.Direction
	Peer          proto.NodeID // whose address Remote is; 0: no node's own
	Local, Remote netip.Addr
	// Stranger marks a peer that no rule in force connects with this node, so that nothing is known of it. Any withheld rule
	// that selects peers by identity may be about it.
	Stranger bool
	Protocol uint8
	Port     uint16
}

// Missing returns the rules that would allow a connection but do not hold, each with what is missing.
func (m *Machine) Missing(q Question) (out []proto.Withheld) {
	if m.netmap == nil {
		return nil
	}
	for _, w := range m.netmap.Withheld {
		if w.Action == proto.Allow && q.matches(&w.Rule, m.netmap) {
			out = append(out, w)
		}
	}
	q.Stranger = false
	if !m.term.lapsed || m.term.of != m.netmap {
		return out
	}
	_, held := m.term.hold(m.netmap)
	for i := range m.netmap.Rules {
		r := &m.netmap.Rules[i]
		if r.Action != proto.Allow || !q.matches(r, m.netmap) || slices.ContainsFunc(held, func(h proto.Rule) bool {
			return h.Key == r.Key && q.matches(&h, m.netmap)
		}) {
			continue
		}
		out = append(out, proto.Withheld{Rule: *r, Reason: "depends on the state of machines, which is unknown since " +
			stamp(m.contact.last) + ": needs the coordinator"})
	}
	return out
}

// Withheld returns the rules that do not hold for this node, each with what is missing.
func (m *Machine) Withheld() []proto.Withheld {
	if m.netmap == nil {
		return nil
	}
	return m.netmap.Withheld
}

// matches reports whether a rule is about the connection.
func (q Question) matches(r *proto.Rule, nm *proto.Netmap) bool {
	// A withheld rule names only those of its sets that other rules name as well.
	byIdentity := len(r.Peers.Sets) > 0 || len(r.Peers.Prefixes) == 0
	return r.Direction == q.Direction && (picks(nm, r.Peers, q.Peer, q.Remote) || q.Stranger && byIdentity) &&
		slices.ContainsFunc(r.Local, func(p netip.Prefix) bool { return p.Contains(q.Local) }) &&
		slices.ContainsFunc(r.Services, func(s proto.Service) bool {
			return s.Proto == q.Protocol && (!proto.HasPorts(q.Protocol) || s.First <= q.Port && q.Port <= s.Last)
		})
}

// picks reports whether a selector matches a node, or one of the addresses.
func picks(nm *proto.Netmap, s proto.Selector, id proto.NodeID, addrs ...netip.Addr) bool {
	for _, p := range s.Prefixes {
		if slices.ContainsFunc(addrs, p.Contains) {
			return true
		}
	}
	return id != 0 && slices.ContainsFunc(s.Sets, func(name string) bool {
		i, ok := slices.BinarySearchFunc(nm.Sets, name, func(s proto.Set, name string) int { return cmp.Compare(s.Name, name) })
		if !ok {
			return false
		}
		_, member := slices.BinarySearch(nm.Sets[i].Members, id)
		return member
	})
}

// Capabilities returns the capabilities that this node's applications grant to a peer at the moment, sorted by name.
func (m *Machine) Capabilities(peer proto.Identity) (out []proto.Capability) {
	if m.netmap == nil || m.barred() || !m.selfLive || len(m.missing) > 0 || m.term.of != m.netmap {
		return nil
	}
	_, rules := m.term.hold(m.netmap)
	for i := range rules {
		r := &rules[i]
		if r.Action != proto.Allow || r.Direction != proto.In || len(r.App) == 0 || !picks(m.netmap, r.Peers, peer.ID, peer.Addrs.Slice()...) {
			continue
		}
		for _, c := range r.App {
			at, known := slices.BinarySearchFunc(out, c.Name, func(o proto.Capability, name string) int {
				return cmp.Compare(o.Name, name)
			})
			if !known {
				out = slices.Insert(out, at, proto.Capability{Name: c.Name})
			}
			for _, v := range c.Values {
				if !slices.Contains(out[at].Values, v) {
					out[at].Values = append(out[at].Values, v)
				}
			}
		}
	}
	return out
}
