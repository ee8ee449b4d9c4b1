package acl

import (
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
)

// pingWarnings finds rules that allow a port if no rule allows ping. People take a silent ping for a broken path, and some
// other systems let echoes through to any address with an open port.
func pingWarnings(p *Policy) Diagnostics {
	pings := newPingIndex(p)
	var out Diagnostics
	for _, r := range p.Rules {
		if r.Action != Allow {
			continue
		}
		for _, d := range r.Dst {
			if d.Kind == Internet { // whether hosts on the internet answer is not ours to decide
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

// pingable reports whether the services include ping in at least one family.
func pingable(svc []proto.Service) bool {
	return slices.ContainsFunc(svc, func(s proto.Service) bool { return s.Proto == proto.ProtoICMP || s.Proto == proto.ProtoICMPv6 })
}

// pingIndex finds the rules that allow ping by their selectors.
type pingIndex struct {
	groups map[string][]string // login name -> groups
	bySrc  map[string][]int    // selector -> rules that have it among their sources, ascending
	byDst  map[string][]int    // selector -> rules that allow pinging it
	budget int                 // pairs that may still be looked at
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

// selectorKey returns the same key for selectors that select the same.
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

// uncovered returns a source that no rule recognizably allows to ping dst.
func (x *pingIndex) uncovered(src []Selector, dst Selector) (Selector, bool) {
	for _, s := range src {
		if !x.covers(s, dst) {
			return s, true
		}
	}
	return Selector{}, false
}

// covers reports whether one rule recognizably lets src ping dst. For a policy that is too big to examine in full it may wrongly
// return true, so that warnings are missing rather than wrong.
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

// intersect reports whether two ascending lists have a number in common.
func intersect(a, b []int) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	return slices.ContainsFunc(a, func(n int) bool { _, found := slices.BinarySearch(b, n); return found })
}

// wider returns the keys of the selectors that select at least what s selects, as far as their texts show.
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
