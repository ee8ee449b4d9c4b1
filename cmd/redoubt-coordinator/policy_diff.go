package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/explain"
	"github.com/redoubt-mesh/redoubt/proto"
)

// change is a set of connections gained or lost, as JSON shows it.
type change struct {
	Change   string   `json:"change"`
	Src      []string `json:"src"`
	Dst      []string `json:"dst"`
	Services []string `json:"services"`
	Rule     string   `json:"rule"`
	Line     int      `json:"line"`
}

func (p *program) policyDiff() *cobra.Command {
	var inv string
	cmd := &cobra.Command{
		Use: "diff OLD NEW", Short: "List the connections that a new policy adds and removes", Args: cobra.ExactArgs(2),
		Long: `Lists the connections that NEW allows and OLD does not (+), and those that OLD
allows and NEW does not (-), by who may open what to whom, with the rule that
allows them. Then the nodes that "admission" of NEW asks for more than they have,
and of OLD did not (-), and those that it asks for less (+). How the files are
written does not matter.

Exit code: 0 if they allow the same, 1 if not, 2 in case of trouble.`,
		RunE: func(_ *cobra.Command, args []string) error {
			changes, admission, err := p.difference(args, inv)
			if err != nil {
				return troubleError{err}
			}
			same := len(changes) == 0 && len(admission) == 0
			if p.json {
				err = p.print(map[string]any{"same": same, "changes": changes, "admission": admission})
			} else if p.tellChanges(args[0], args[1], changes); same {
				fmt.Fprintln(p.out, "both allow the same connections")
			} else {
				p.tellAdmission(admission)
			}
			if err != nil {
				return troubleError{err}
			}
			if !same {
				return errSaid
			}
			return nil
		},
	}
	inventoryFlag(cmd, &inv, true)
	return cmd
}

// mostAsked limits the connections for which two policies are compared. Comparing one takes a few microseconds.
const mostAsked = 10_000_000

// difference reads two policies and the inventory of the mesh, and lists what differs.
func (p *program) difference(files []string, inv string) ([]change, []admission, error) {
	policy, err := p.load(files[0])
	if err != nil {
		return nil, nil, err
	}
	after, mesh, err := p.loadBoth(files[1], inv)
	if err != nil {
		return nil, nil, err
	}
	before := mesh.Program(policy)
	found, err := explain.Diff(before, after, mesh, mostAsked)
	if err != nil {
		return nil, nil, fmt.Errorf("%w; use an inventory with fewer of them", err)
	}
	list := make([]change, 0, len(found.Changes))
	for _, c := range found.Changes {
		list = append(list, change{gainedOrLost(c.Gained), c.Src, c.Dst, c.Services, c.Rule.Path, c.Rule.Line})
	}
	return list, admissions(before.Unadmitted(mesh), after.Unadmitted(mesh)), nil
}

// admission is a node that only one of two policies admits, as JSON shows it.
type admission struct {
	Change string `json:"change"`
	Node   string `json:"node"`
	Lacks  string `json:"lacks"` // what it lacks to be admitted by the other policy
}

// admissions lists the nodes that are no longer admitted, then those that are admitted again.
func admissions(before, after []compile.Unadmitted) []admission {
	out := []admission{}
	missing := func(change string, in, of []compile.Unadmitted) {
		known := make(map[proto.NodeID]bool, len(of))
		for _, u := range of {
			known[u.Node.ID] = true
		}
		for _, u := range in {
			if !known[u.Node.ID] {
				out = append(out, admission{change, u.Node.Name, u.Lacks()})
			}
		}
	}
	missing(gainedOrLost(false), after, before)
	missing(gained, before, after)
	return out
}

func (p *program) tellAdmission(list []admission) {
	paint := p.paint()
	for _, a := range list {
		if a.Change == gained {
			fmt.Fprintf(p.out, "%s %s is admitted again\n", paint.wrap("32", "+"), a.Node)
			continue
		}
		fmt.Fprintf(p.out, "%s %s gets no further certificate: %s\n", paint.wrap("31", "-"), a.Node, a.Lacks)
	}
}

const gained = "gained"

func gainedOrLost(g bool) string {
	if g {
		return gained
	}
	return "lost"
}

// tellChanges prints changes. Lost connections refer to a line of the old file, gained ones to a line of the new file.
func (p *program) tellChanges(before, after string, changes []change) {
	paint := p.paint()
	for _, c := range changes {
		sign, colour, file := "-", "31", before
		if c.Change == gained {
			sign, colour, file = "+", "32", after
		}
		fmt.Fprintf(p.out, "%s by %s (%s:%d)\n", paint.wrap(colour, sign), c.Rule, file, c.Line)
		p.wrapped("  from  ", c.Src, ",")
		p.wrapped("  to    ", c.Dst, ",")
		p.wrapped("  for   ", c.Services, ",")
	}
}
