package compile

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Unresolved reports the selectors in rules and in admission that match nothing in an inventory. That is a warning, since the
// nodes may join later, and an error if the rule denies: a guard rail that matches nothing guards nothing.
func Unresolved(p *Program, inv Inventory) acl.Diagnostics {
	if p.policy == nil {
		return nil
	}
	b := p.On(inv)
	var out acl.Diagnostics
	warn := func(s acl.Selector, severity acl.Severity) {
		if b.resolves(s) {
			return
		}
		out = append(out, acl.Diagnostic{
			Severity: severity, Line: s.Line, Column: s.Column, Path: s.Path,
			Message: fmt.Sprintf("%q matches nothing: %s", s.Text, whyNobody(p, s)),
		})
	}
	for _, r := range p.policy.Rules {
		severity := acl.Warning
		if r.Action == acl.Deny {
			severity = acl.Error
		}
		for _, s := range r.Src {
			warn(s, severity)
		}
		for _, d := range r.Dst {
			warn(d.Selector, severity)
		}
	}
	for _, a := range p.policy.Admission {
		for _, s := range a.Whom {
			warn(s, acl.Warning)
		}
	}
	out.Sort()
	return out
}

// resolves reports whether a selector selects a node or something that a router serves.
func (b *Bound) resolves(s acl.Selector) bool {
	switch s.Kind {
	case acl.DangerAll:
		return true
	case acl.Internet:
		return b.routes().exit != 0
	case acl.Literal, acl.AddressSet:
		if slices.ContainsFunc(literals(s), b.routedAt) {
			return true
		}
	}
	return len(b.pick(s)) > 0
}

// routedAt reports whether a router serves part of a prefix.
func (b *Bound) routedAt(p netip.Prefix) bool {
	r := b.routes()
	return slices.ContainsFunc(r.subnets, p.Overlaps) ||
		slices.ContainsFunc(internetIn(r.exit), p.Overlaps)
}

func literals(s acl.Selector) []netip.Prefix {
	if s.Kind == acl.Literal {
		return []netip.Prefix{s.Prefix}
	}
	return s.Prefixes
}

// pick lists the nodes that a selector selects by identity or by address; for autogroup:self, those that it applies to.
func (b *Bound) pick(s acl.Selector) []proto.NodeID {
	switch s.Kind {
	case acl.Literal, acl.AddressSet:
		return b.inside(literals(s))
	case acl.Self:
		return b.members("autogroup:member")
	case acl.Any:
		return b.inside(b.prog.any)
	case acl.DangerAll:
		return b.inside(all)
	case acl.Internet:
		return nil
	}
	return b.members(s.Set())
}

// inside returns the nodes with an address in one of several prefixes, sorted.
func (b *Bound) inside(ps []netip.Prefix) []proto.NodeID {
	var out []proto.NodeID
	for _, p := range ps {
		out = append(out, b.within(p)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func whyNobody(p *Program, s acl.Selector) string {
	switch s.Kind {
	case acl.Literal:
		if !p.mesh.V4.Overlaps(s.Prefix) && !p.mesh.V6.Overlaps(s.Prefix) {
			return fmt.Sprintf("%s is outside of the mesh (%s, %s), and no router has an approved route there", s.Prefix, p.mesh.V4, p.mesh.V6)
		}
		return fmt.Sprintf("no node has an address in %s", s.Prefix)
	case acl.AddressSet:
		return "no node has an address in it, and no router an approved route there"
	case acl.Internet:
		return "there is no approved exit node"
	case acl.Role:
		return "nobody who has the role has a node without tags"
	case acl.GroupOf:
		if len(p.policy.Groups[s.Name].Members) == 0 {
			return "the group has no members"
		}
		return "none of its members has a node without tags"
	case acl.User, acl.Domain, acl.Member, acl.Self:
		return "no such user has a node without tags"
	}
	return "no node has it"
}
