package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Demand is what a policy requires of a machine before it may join: the combined requirements of all its entries.
type Demand struct {
	// Attestation is the minimum attestation, one of acl.Attestations; empty means none is required. AttestationBy is the entry
	// that requires it.
	Attestation   string
	AttestationBy proto.Origin
	// Approval reports whether an administrator must have approved the machine.
	Approval   bool
	ApprovalBy proto.Origin
}

// Demands returns what the policy requires of the machine of a node, which may not have joined yet. Facts do not matter.
func (p *Program) Demands(inv Inventory, n proto.Identity) Demand { return p.On(inv).demands(n) }

func (b *Bound) demands(n proto.Identity) (d Demand) {
	if b.prog.policy == nil || len(b.prog.policy.Admission) == 0 {
		return d
	}
	sets := b.setsOf(n)
	for _, a := range b.prog.policy.Admission {
		picks := func(s acl.Selector) bool { return slices.Contains(sets, s.Set()) }
		if len(a.Whom) > 0 && !slices.ContainsFunc(a.Whom, picks) {
			continue
		}
		by := proto.Origin{Path: a.Path, Line: a.Line}
		if a.Attestation != "" && (d.Attestation == "" || rank(a.Attestation) > rank(d.Attestation)) {
			d.Attestation, d.AttestationBy = a.Attestation, by
		}
		if a.Approval && !d.Approval {
			d.Approval, d.ApprovalBy = true, by
		}
	}
	return d
}

// Proves reports whether a kind of attestation is sufficient. An unknown kind counts as none.
func (d Demand) Proves(kind string) bool {
	return d.Attestation == "" || max(rank(kind), 0) >= rank(d.Attestation)
}

// Unadmitted is a node whose machine does not meet the policy's requirements. It keeps its current certificate until that
// expires, and gets no other.
type Unadmitted struct {
	Node proto.Identity
	// Has is the machine's attestation if that is insufficient; Needs is what is required.
	Has, Needs string
	NeedsBy    proto.Origin
	// Approval reports whether approval is required and missing; ApprovalBy is the entry that requires it.
	Approval   bool
	ApprovalBy proto.Origin
}

// Lacks describes what a node lacks.
func (u Unadmitted) Lacks() string {
	var out []string
	if u.Needs != "" {
		out = append(out, fmt.Sprintf("attested by %s, not %s", u.Has, u.Needs))
	}
	if u.Approval {
		out = append(out, "not approved")
	}
	return strings.Join(out, ", ")
}

// Unadmitted lists the nodes of an inventory that do not meet the policy's requirements, sorted by name.
func (p *Program) Unadmitted(inv Inventory) (out []Unadmitted) {
	if p.policy == nil || len(p.policy.Admission) == 0 {
		return nil
	}
	b := p.On(inv)
	for id := range inv.All() {
		n, ok := b.node(id)
		if !ok {
			continue
		}
		d, t := b.demands(n), inv.Traits(id)
		u := Unadmitted{Node: n}
		if has := cmp.Or(t.Facts[attestation], acl.Attestations[0]); !d.Proves(has) {
			u.Has, u.Needs, u.NeedsBy = has, d.Attestation, d.AttestationBy
		}
		if d.Approval && !t.Admitted {
			u.Approval, u.ApprovalBy = true, d.ApprovalBy
		}
		if u.Needs != "" || u.Approval {
			out = append(out, u)
		}
	}
	slices.SortFunc(out, func(x, y Unadmitted) int {
		return cmp.Or(strings.Compare(x.Node.Name, y.Node.Name), cmp.Compare(x.Node.ID, y.Node.ID))
	})
	return out
}

// maxNamed is how many nodes a message names.
const maxNamed = 8

// AdmissionWarnings reports for each entry of admission how many nodes do not meet it, and which.
func AdmissionWarnings(p *Program, inv Inventory) (out acl.Diagnostics) {
	lacking := p.Unadmitted(inv)
	if len(lacking) == 0 {
		return nil
	}
	by := map[string][]string{} // entry -> nodes and what they lack of it
	note := func(entry proto.Origin, n proto.Identity, lacks Unadmitted) {
		by[entry.Path] = append(by[entry.Path], fmt.Sprintf("%s (%s)", n.Name, lacks.Lacks()))
	}
	for _, u := range lacking {
		level, approval := Unadmitted{Has: u.Has, Needs: u.Needs}, Unadmitted{Approval: u.Approval}
		switch {
		case level.Needs != "" && approval.Approval && u.NeedsBy == u.ApprovalBy:
			note(u.NeedsBy, u.Node, u)
			continue
		case level.Needs != "":
			note(u.NeedsBy, u.Node, level)
		}
		if approval.Approval {
			note(u.ApprovalBy, u.Node, approval)
		}
	}
	for _, a := range p.policy.Admission {
		named := by[a.Path]
		if len(named) == 0 {
			continue
		}
		count := fmt.Sprintf("%d nodes do", len(named))
		if len(named) == 1 {
			count = "1 node does"
		}
		if n := len(named); n > maxNamed {
			named = append(slices.Clone(named[:maxNamed]), fmt.Sprintf("and %d more", n-maxNamed))
		}
		out = append(out, acl.Diagnostic{
			Severity: acl.Warning, Line: a.Line, Column: a.Column, Path: a.Path,
			Message: fmt.Sprintf("%s not satisfy it: no next certificate, and nothing passes when the one that there is ends: %s", count, strings.Join(named, ", ")),
		})
	}
	out.Sort()
	return out
}
