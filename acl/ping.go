package acl

import (
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// pingWarnings finds rules that allow a port where no rule allows ping. People take a silent ping for a broken path, and
// some other systems let echo through to any address with an open port.
func pingWarnings(p *Policy) Diagnostics {
	pings := newPingIndex(p)
	var out Diagnostics
	for _, r := range p.Rules {
		if r.Action != Allow {
			continue
		}
		for _, d := range r.Dst {
			if d.Kind == Internet { // routers of the internet have a mind of their own
				continue
			}
			if pingable(d.Services) || !slices.ContainsFunc(d.Services, func(s proto.Service) bool { return proto.HasPorts(s.Proto) }) {
				continue
			}
			if src, ok := pings.uncovered(r.Src, d.Selector); ok {
				out = append(out, Diagnostic{
					Severity: Warning, Line: d.Line, Column: d.Column, Path: d.Path,
					Message: "ports are open to " + quote(src.Text) + ", but nothing allows it to ping " + quote(d.Text) +
						`; if ping should answer, allow "icmp:*" and "icmpv6:*" in a grant`,
				})
				break
			}
		}
	}
	return out
}

// pingable says whether the services have ping in one family at least.
func pingable(svc []proto.Service) bool {
	return slices.ContainsFunc(svc, func(s proto.Service) bool { return s.Proto == proto.ProtoICMP || s.Proto == proto.ProtoICMPv6 })
}

// pingIndex finds the rules that allow ping, by who stands on their sides.
type pingIndex struct {
	groups map[string][]string // login name -> groups
	bySrc  map[string][]int    // selector -> rules that have it among their sources, ascending
	byDst  map[string][]int    // selector -> rules that allow to ping it
	budget int                 // pairs that are still looked at
}

func newPingIndex(p *Policy) *pingIndex {
	x := &pingIndex{groups: map[string][]string{}, bySrc: map[string][]int{}, byDst: map[string][]int{}, budget: 1_000_000}
	for name, g := range p.Groups {
		for _, m := range g.Members {
			x.groups[m.Name] = append(x.groups[m.Name], name)
		}
	}
	for i, r := range p.Rules {
		if r.Action != Allow {
			continue
		}
		for _, s := range r.Src {
			x.bySrc[selectorKey(s)] = append(x.bySrc[selectorKey(s)], i)
		}
		for _, d := range r.Dst {
			if pingable(d.Services) {
				x.byDst[selectorKey(d.Selector)] = append(x.byDst[selectorKey(d.Selector)], i)
			}
		}
	}
	return x
}

// selectorKey is equal for selectors that pick the same.
func selectorKey(s Selector) string {
	switch s.Kind {
	case Literal:
		return s.Prefix.String()
	case Any:
		return "*"
	case Self, AddressSet, Internet, DangerAll:
		return s.Text
	}
	return s.Set()
}

// uncovered is a source that may not ping dst by any rule that can be seen to cover both.
func (x *pingIndex) uncovered(src []Selector, dst Selector) (Selector, bool) {
	for _, s := range src {
		if !x.covers(s, dst) {
			return s, true
		}
	}
	return Selector{}, false
}

// covers says whether one rule can be seen to let src ping dst. In a policy that is too big to look at in full it may err on
// the side of silence.
func (x *pingIndex) covers(src, dst Selector) bool {
	if x.budget--; x.budget < 0 {
		return true
	}
	for _, d := range x.wider(dst) {
		for _, s := range x.wider(src) {
			if intersect(x.byDst[d], x.bySrc[s]) {
				return true
			}
		}
	}
	return false
}

// intersect says whether two ascending lists have a number in common.
func intersect(a, b []int) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	return slices.ContainsFunc(a, func(n int) bool { _, found := slices.BinarySearch(b, n); return found })
}

// wider are the keys of the selectors that pick at least what s picks, as far as the text tells.
func (x *pingIndex) wider(s Selector) []string {
	out := []string{selectorKey(s), "*", "autogroup:danger-all"}
	switch s.Kind {
	case User:
		out = append(append(out, "autogroup:member"), x.groups[s.Name]...)
		if domain := DomainOf(s.Name); domain != "" {
			out = append(out, "user:*@"+domain)
		}
	case GroupOf, Domain, Self, Role:
		out = append(out, "autogroup:member")
	case Tag:
		out = append(out, "autogroup:tagged")
	}
	return out
}
