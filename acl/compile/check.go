package compile

import (
	"fmt"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Unresolved warns of the selectors in rules that pick nobody in an inventory. They are no errors: the people may come later.
func Unresolved(p *Program, inv Inventory) acl.Diagnostics {
	if p.policy == nil {
		return nil
	}
	b := p.On(inv)
	var out acl.Diagnostics
	warn := func(s acl.Selector) {
		if b.resolves(s) {
			return
		}
		out = append(out, acl.Diagnostic{
			Severity: acl.Warning, Line: s.Line, Column: s.Column, Path: s.Path,
			Message: fmt.Sprintf("%q picks nobody: %s", s.Text, whyNobody(p, s)),
		})
	}
	for _, r := range p.policy.Rules {
		for _, s := range r.Src {
			warn(s)
		}
		for _, d := range r.Dst {
			warn(d.Selector)
		}
	}
	out.Sort()
	return out
}

// resolves says whether a selector picks a node.
func (b *Bound) resolves(s acl.Selector) bool {
	return len(b.pick(s)) > 0
}

// pick lists the nodes that a selector picks by one of their addresses; for autogroup:self those that have it at all.
func (b *Bound) pick(s acl.Selector) []proto.NodeID {
	switch s.Kind {
	case acl.Literal:
		return b.within(s.Prefix)
	case acl.Self:
		return b.members("autogroup:member")
	case acl.Any:
		var out []proto.NodeID
		for _, p := range b.prog.any {
			out = append(out, b.within(p)...)
		}
		return sortedIDs(func(yield func(proto.NodeID) bool) {
			for _, id := range out {
				if !yield(id) {
					return
				}
			}
		})
	}
	return b.members(s.Set())
}

func whyNobody(p *Program, s acl.Selector) string {
	switch s.Kind {
	case acl.Literal:
		if !p.mesh.V4.Overlaps(s.Prefix) && !p.mesh.V6.Overlaps(s.Prefix) {
			return fmt.Sprintf("%s is outside of the mesh (%s, %s), and this version serves no routes", s.Prefix, p.mesh.V4, p.mesh.V6)
		}
		return fmt.Sprintf("no node has an address in %s", s.Prefix)
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
