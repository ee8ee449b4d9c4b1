package compile

import (
	"net/netip"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Eval says whether the node `at` would let the first packet of a connection pass: in, where dst is its address, or out,
// where src is. The rule that allows it is the first of the policy that does. Addresses that belong to no node are nobody's,
// and nobody is allowed anything.
func Eval(p *Program, inv Inventory, at proto.NodeID, src, dst netip.Addr, protocol uint8, port uint16) (rule *proto.Origin, ok bool) {
	return p.On(inv).Eval(at, src, dst, protocol, port)
}

// Eval is Eval for a program that is bound already.
func (b *Bound) Eval(at proto.NodeID, src, dst netip.Addr, protocol uint8, port uint16) (rule *proto.Origin, ok bool) {
	src, dst = src.Unmap(), dst.Unmap()
	from, ok := b.owner(src)
	if !ok {
		return nil, false
	}
	to, ok := b.owner(dst)
	if !ok || from.ID == to.ID || at != from.ID && at != to.ID || src.Is4() != dst.Is4() {
		return nil, false
	}
	r := b.prog.allowing(b.coverage(from), b.coverage(to), family(src), protocol, port)
	if r == nil {
		return nil, false
	}
	return &r.origin, true
}

// owner is the node that has an address.
func (b *Bound) owner(a netip.Addr) (proto.Identity, bool) {
	id, ok := b.inv.ByAddr(a)
	if !ok {
		return proto.Identity{}, false
	}
	n, ok := b.node(id)
	return n, ok && n.Addrs.Has(a)
}

// allowing is the first rule that lets a node open something to another one over a family, or nil.
func (p *Program) allowing(from, to coverage, over families, protocol uint8, port uint16) *rule {
	dst := to.dst
	for _, s := range from.src {
		r := &p.rules[s.rule]
		if r.self {
			if from.user != "" && from.user == to.user && serves(r.services, protocol, port) {
				return r
			}
			continue
		}
		for len(dst) > 0 && dst[0].rule < s.rule {
			dst = dst[1:]
		}
		if len(dst) > 0 && dst[0].rule == s.rule && s.in&dst[0].in&over != 0 && serves(r.services, protocol, port) {
			return r
		}
	}
	return nil
}

func serves(services []proto.Service, protocol uint8, port uint16) bool {
	for _, s := range services {
		if s.Proto == protocol && (!proto.HasPorts(protocol) || s.First <= port && port <= s.Last) {
			return true
		}
	}
	return false
}
