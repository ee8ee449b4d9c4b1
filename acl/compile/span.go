package compile

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Span is the set of connections that a rule that only one of two programs has can affect: those from Src to Dst and to the
// addresses that it leads to, limited to its services.
type Span struct {
	// Src and Dst are the nodes that its sides select by identity or by address, whatever its condition; sorted.
	Src, Dst []proto.NodeID
	// Self reports that there is no Dst: the rule is about other nodes of the same user.
	Self     bool
	Services []proto.Service
	rule     *rule
	routed   bool
}

// Leads reports whether an address that is no node's may be a destination.
func (s Span) Leads(a netip.Addr) bool {
	d := &s.rule.dst
	return s.routed && (d.any || d.internet || d.everything || slices.ContainsFunc(d.prefixes, func(p netip.Prefix) bool { return p.Contains(a) }))
}

// Spans lists what can make connections differ between two programs on one inventory, and, sorted, the nodes for which
// anything may differ, including capabilities. The position of a rule in its file makes no difference. The cost depends on the
// number of rules and of those nodes.
func Spans(before, after *Bound) (spans []Span, touched []proto.NodeID) {
	groups := changedGroups(before.prog, after.prog)
	seen := map[proto.NodeID]struct{}{}
	rerouted := map[proto.NodeID]struct{}{}
	for id := range before.inv.Routers() {
		if !slices.Equal(before.Approved(id), after.Approved(id)) {
			rerouted[id] = struct{}{}
			for _, x := range Affected(before, after, id) {
				seen[x] = struct{}{}
			}
		}
	}
	had, has := before.prog.substance(), after.prog.substance()
	for _, side := range []struct {
		in    *Bound
		own   []string
		other map[string]struct{}
	}{{before, had, setOf(has)}, {after, has, setOf(had)}} {
		for i, key := range side.own {
			_, kept := side.other[key]
			if r := &side.in.prog.rules[i]; !kept || r.names(groups) {
				side.in.touch(int32(i), seen)
				spans = append(spans, side.in.span(int32(i)))
			} else if side.in.routedBy(int32(i), rerouted) {
				spans = append(spans, side.in.span(int32(i)))
			}
		}
	}
	return spans, slices.Sorted(maps.Keys(seen))
}

func setOf(keys []string) map[string]struct{} {
	out := make(map[string]struct{}, len(keys))
	for _, k := range keys {
		out[k] = struct{}{}
	}
	return out
}

func (b *Bound) span(number int32) Span {
	r := &b.prog.rules[number]
	s := Span{Src: b.sideNodes(&r.src), Self: r.self, Services: r.services, rule: r, routed: len(b.routes().dst[number]) > 0}
	if !r.self {
		s.Dst = b.sideNodes(&r.dst)
	}
	return s
}

// routedBy reports whether some destinations of a rule are behind one of some routers.
func (b *Bound) routedBy(number int32, routers map[proto.NodeID]struct{}) bool {
	return len(routers) > 0 && slices.ContainsFunc(b.routes().dst[number], func(x routed) bool { _, ok := routers[x.id]; return ok })
}

// substance returns the meaning of each rule, without its position in the file: equal texts mean the same.
func (p *Program) substance() []string {
	out := make([]string, len(p.rules))
	for i := range p.rules {
		r := &p.rules[i]
		b := fmt.Appendf(nil, "%d %t %d %+v %+v %q %q", r.action, r.self, r.until.Unix(), r.src, r.dst, r.via, r.app)
		if r.cond != nil {
			b = append(b, r.cond.name...)
			for _, posture := range r.cond.postures {
				b = append(b, '|')
				for _, c := range posture.Conditions {
					b = fmt.Appendf(b, " %q", c.Text)
				}
			}
		}
		b = append(b, 0)
		for _, s := range r.services {
			b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(append(b, s.Proto), s.First), s.Last)
		}
		out[i] = string(b)
	}
	return out
}

// Policy returns the policy that the program was made from; nil if nothing is allowed.
func (p *Program) Policy() *acl.Policy { return p.policy }

// Mesh returns the mesh that the program is for.
func (p *Program) Mesh() proto.Mesh { return p.mesh }
