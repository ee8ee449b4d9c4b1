package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Explanation is a verdict and, if it does not allow, why.
type Explanation struct {
	Verdict
	// Missing is why no rule can apply to the connection, such as an address that is nobody's; else empty.
	Missing string
	// Near are the rules that come closest to allowing the connection, nearest first. There are none if it is allowed or
	// denied.
	Near []Near
}

// Near is a rule that does not match, and why.
type Near struct {
	Origin  proto.Origin
	Missing []string // the parts that did not match
}

// maxNear is how many rules an explanation lists.
const maxNear = 5

// Explain reports what happens to a connection, and why, as judged by the destination or the router that serves it.
func (b *Bound) Explain(src, dst netip.Addr, protocol uint8, port uint16) Explanation {
	src, dst = src.Unmap(), dst.Unmap()
	out := Explanation{Verdict: Verdict{Mode: Enforce}}
	from, to := b.endsOf(src, 0), b.endsOf(dst, 0)
	switch {
	case src.Is4() != dst.Is4():
		out.Missing = fmt.Sprintf("%s and %s are of different families", src, dst)
	case len(from) == 0:
		out.Missing = fmt.Sprintf("%s is no node's address, and no router has an approved route to it", src)
	case len(to) == 0:
		out.Missing = fmt.Sprintf("%s is no node's address, and no router has an approved route to it", dst)
	case !slices.ContainsFunc(from, func(f end) bool { return slices.ContainsFunc(to, func(t end) bool { return f.id != t.id }) }):
		out.Missing = fmt.Sprintf("%s and %s are on the same node, and do not meet in the mesh", src, dst)
	}
	if out.Missing != "" {
		return out
	}
	for _, f := range from {
		for _, t := range to {
			if f.id == t.id {
				continue
			}
			v := b.judge(f, t, protocol, port)
			if v.Allowed {
				return Explanation{Verdict: v}
			}
			if v.Rule != nil {
				out.Verdict = v
			}
			out.Near = append(out.Near, b.near(f, t, protocol, port)...)
		}
	}
	if out.Rule != nil {
		out.Near = nil
		return out
	}
	slices.SortStableFunc(out.Near, func(a, b Near) int {
		return cmp.Or(cmp.Compare(len(a.Missing), len(b.Missing)))
	})
	seen := map[string]bool{}
	out.Near = slices.DeleteFunc(out.Near, func(n Near) bool {
		twice := seen[n.Origin.Path]
		seen[n.Origin.Path] = true
		return twice || len(n.Missing) > len(out.Near[0].Missing)
	})
	out.Near = out.Near[:min(len(out.Near), maxNear)]
	return out
}

// near compares all allow rules with a connection, and lists those that match in part.
func (b *Bound) near(from, to end, protocol uint8, port uint16) []Near {
	var out []Near
	src, dst := from.cov.src, to.cov.dst
	for i := range b.prog.rules {
		r := &b.prog.rules[i]
		s, d := at(&src, int32(i)), at(&dst, int32(i))
		if r.action != proto.Allow {
			continue
		}
		n := Near{Origin: r.origin}
		miss := func(format string, args ...any) { n.Missing = append(n.Missing, fmt.Sprintf(format, args...)) }
		switch {
		case s == nil || !r.self && !s.covers(from.addr, from.own):
			miss("%s is not among its sources", from.addr)
		case s.withheld:
			miss("%s", s.missing)
		}
		switch {
		case r.self && (!from.own || !to.own || from.cov.user == "" || from.cov.user != to.cov.user):
			miss("%s and %s are not nodes of the same user", from.addr, to.addr)
		case !r.self && (d == nil || !d.covers(to.addr, to.own)) && len(r.via) > 0:
			miss("%s is not reached through a router with %s", to.addr, strings.Join(r.via, " or "))
		case !r.self && (d == nil || !d.covers(to.addr, to.own)):
			miss("%s is not among its destinations", to.addr)
		}
		if !serves(r.services, protocol, port) {
			what := acl.ProtocolName(protocol)
			if proto.HasPorts(protocol) {
				what = fmt.Sprintf("%s:%d", what, port)
			}
			miss("%s is not among its services", what)
		}
		if len(n.Missing) < 3 {
			out = append(out, n)
		}
	}
	return out
}

// at returns the part of a sorted coverage that is about a rule, if there is one. It must be called with ascending numbers.
func at(list *[]covered, number int32) *covered {
	for len(*list) > 0 && (*list)[0].rule < number {
		*list = (*list)[1:]
	}
	if len(*list) > 0 && (*list)[0].rule == number {
		return &(*list)[0]
	}
	return nil
}
