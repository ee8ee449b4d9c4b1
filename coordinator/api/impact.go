package api

import (
	"fmt"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/explain"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/policy"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Bounds on the report about a policy change.
const (
	// mostAsked is how many connections two policies are compared on, which takes about a second.
	mostAsked   = 200_000
	mostChanges = 200
	mostNames   = 50 // on each side of a change
)

// impact compares a policy with the one in force: connections gained and lost, by identity.
func impact(snap *directory.Snapshot, source string, program *compile.Program) *redoubtv1.PolicyImpact {
	out := &redoubtv1.PolicyImpact{Base: number(snap.Policy()), Nodes: uint32(len(slices.Collect(snap.All())))}
	if p := snap.Policy(); p != nil && p.Source == source {
		out.SameText = true
		return out
	}
	// A policy that cannot be loaded permits nothing, so compare with that; the error was logged when it was loaded.
	before, _ := policy.Load(snap.Policy(), snap.Mesh())
	unadmitted(out, snap, before, program)
	found, err := explain.Diff(before, program, snap, mostAsked)
	out.Touched = uint32(found.Touched)
	if err != nil {
		out.TooWide = err.Error()
		return out
	}
	for _, c := range found.Changes {
		if c.Gained {
			out.Gained++
		} else {
			out.Lost++
		}
		if len(out.Changes) < mostChanges {
			out.Changes = append(out.Changes, &redoubtv1.ConnectionChange{
				Gained: c.Gained, Src: someOf(c.Src), Dst: someOf(c.Dst), Services: someOf(c.Services), Rule: c.Rule.Path, Line: uint32(c.Rule.Line),
			})
		}
	}
	return out
}

// unadmitted adds the nodes that lack what the policy requires, newly affected ones first.
func unadmitted(out *redoubtv1.PolicyImpact, snap *directory.Snapshot, old, program *compile.Program) {
	list := program.Unadmitted(snap)
	before := map[proto.NodeID]bool{}
	for _, u := range old.Unadmitted(snap) {
		before[u.Node.ID] = true
	}
	slices.SortStableFunc(list, func(x, y compile.Unadmitted) int {
		switch {
		case before[x.Node.ID] == before[y.Node.ID]:
			return 0
		case before[x.Node.ID]:
			return 1
		}
		return -1
	})
	out.Unadmitted = uint32(len(list))
	for _, u := range list[:min(len(list), mostChanges)] {
		n, _ := snap.Lookup(u.Node.ID)
		out.NotAdmitted = append(out.NotAdmitted, &redoubtv1.Unadmitted{
			Id: u.Node.ID.String(), Name: u.Node.Name, Lacks: u.Lacks(), Until: seconds(n.Certificate.NotAfter), Before: before[u.Node.ID],
		})
	}
}

// someOf returns the first of many names, and how many more there are.
func someOf(names []string) []string {
	if len(names) <= mostNames {
		return names
	}
	return append(slices.Clone(names[:mostNames]), fmt.Sprintf("%d more", len(names)-mostNames))
}
