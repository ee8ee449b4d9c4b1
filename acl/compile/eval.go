package compile

import (
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Mode is how a verdict came about.
type Mode string

// Enforce is the verdict of the rules. Monitor passes what no rule allows, and logs it.
const (
	Enforce Mode = "enforce"
	Monitor Mode = "monitor"
)

// Verdict is the decision about a connection.
type Verdict struct {
	Allowed bool
	// Rule is the first rule of the policy that allows or denies; nil if no rule is about the connection.
	Rule *proto.Origin
	Mode Mode
}

// Decide reports whether the node at would let the first packet of a connection pass: in if dst is its address, out if src is.
// Addresses behind a router count as the router's, as far as its routes are approved. Others that are no node's are nobody's, and
// nobody is allowed anything.
func (b *Bound) Decide(at proto.NodeID, src, dst netip.Addr, protocol uint8, port uint16) Verdict {
	src, dst = src.Unmap(), dst.Unmap()
	best := Verdict{Mode: Enforce}
	if src.Is4() != dst.Is4() {
		return best
	}
	from, to := b.ends(at, src, dst)
	for _, f := range from {
		for _, t := range to {
			v := b.judge(f, t, protocol, port)
			if v.Allowed && v.Mode == Enforce {
				return v
			}
			// One router that allows it takes precedence over others that monitor or deny it.
			if v.Allowed || v.Rule != nil && !best.Allowed {
				best = v
			}
		}
	}
	return best
}

// end is one side of a connection: an address that is a node's own or behind its routes.
type end struct {
	id   proto.NodeID
	addr netip.Addr
	own  bool
	cov  *coverage
}

// ends returns the possible sources and destinations of a connection, as the node at sees it. There are several if several
// routers serve an address.
func (b *Bound) ends(at proto.NodeID, src, dst netip.Addr) (from, to []end) {
	if to = b.endAt(at, dst); len(to) > 0 {
		if from = b.endsOf(src, at); len(from) > 0 {
			return from, to
		}
	}
	if from = b.endAt(at, src); len(from) > 0 {
		return from, b.endsOf(dst, at)
	}
	return nil, nil
}

// endAt returns the node itself if an address is its own or behind it.
func (b *Bound) endAt(at proto.NodeID, a netip.Addr) []end {
	n, ok := b.node(at)
	if !ok {
		return nil
	}
	own := n.Addrs.Has(a)
	if !own {
		if _, taken := b.owner(a); taken || !b.routes().serves(at, a) {
			return nil
		}
	}
	c := b.coverage(n)
	return []end{{at, a, own, &c}}
}

// endsOf returns the node that has an address, or else the routers that serve it, except for one node.
func (b *Bound) endsOf(a netip.Addr, except proto.NodeID) []end {
	if n, ok := b.owner(a); ok {
		if n.ID == except {
			return nil
		}
		c := b.coverage(n)
		return []end{{n.ID, a, true, &c}}
	}
	var out []end
	for _, id := range b.ownersOf(a) {
		if n, ok := b.node(id); ok && id != except {
			c := b.coverage(n)
			out = append(out, end{id, a, false, &c})
		}
	}
	return out
}

// owner returns the node that has an address.
func (b *Bound) owner(a netip.Addr) (proto.Identity, bool) {
	id, ok := b.inv.ByAddr(a)
	if !ok {
		return proto.Identity{}, false
	}
	n, ok := b.node(id)
	return n, ok && n.Addrs.Has(a)
}

// judge returns the verdict about a connection from one end to another: deny takes precedence over allow, and allow over
// monitor.
func (b *Bound) judge(from, to end, protocol uint8, port uint16) Verdict {
	allow, watch, dst := (*rule)(nil), (*rule)(nil), to.cov.dst
	for i := range from.cov.src {
		s := &from.cov.src[i]
		r := &b.prog.rules[s.rule]
		if s.withheld || r.action == proto.Allow && allow != nil || r.action == proto.Monitor && watch != nil {
			continue
		}
		if r.self {
			if !from.own || !to.own || from.cov.user == "" || from.cov.user != to.cov.user {
				continue
			}
		} else {
			if !s.covers(from.addr, from.own) {
				continue
			}
			for len(dst) > 0 && dst[0].rule < s.rule {
				dst = dst[1:]
			}
			if len(dst) == 0 || dst[0].rule != s.rule || !dst[0].covers(to.addr, to.own) {
				continue
			}
		}
		if !serves(r.services, protocol, port) {
			continue
		}
		switch r.action {
		case proto.Deny:
			return Verdict{Rule: &r.origin, Mode: Enforce}
		case proto.Monitor:
			watch = r
		case proto.Allow:
			if allow = r; !b.prog.deny {
				return Verdict{Allowed: true, Rule: &r.origin, Mode: Enforce}
			}
		}
	}
	switch {
	case allow != nil:
		return Verdict{Allowed: true, Rule: &allow.origin, Mode: Enforce}
	case watch != nil:
		return Verdict{Allowed: true, Rule: &watch.origin, Mode: Monitor}
	}
	return Verdict{Mode: Enforce}
}

func serves(services []proto.Service, protocol uint8, port uint16) bool {
	return slices.ContainsFunc(services, func(s proto.Service) bool {
		return s.Proto == protocol && (!proto.HasPorts(protocol) || s.First <= port && port <= s.Last)
	})
}
