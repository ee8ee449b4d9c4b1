package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/acl/explain"
)

// change is connections gained or lost, as JSON shows it.
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
		Use: "diff OLD NEW", Short: "List the connections that a new policy gains and loses", Args: cobra.ExactArgs(2),
		Long: `Lists the connections that NEW allows and OLD does not (+), and those that OLD
allows and NEW does not (-), by who may open what to whom, with the rule that
allows them. How the files are written does not matter.

Exit code: 0 if they allow the same, 1 if not, 2 in case of trouble.`,
		RunE: func(_ *cobra.Command, args []string) error {
			changes, err := p.difference(args, inv)
			if err != nil {
				return troubleError{err}
			}
			if p.json {
				err = p.print(map[string]any{"same": len(changes) == 0, "changes": changes})
			} else if p.tellChanges(args[0], args[1], changes); len(changes) == 0 {
				fmt.Fprintln(p.out, "both allow the same connections")
			}
			if err != nil {
				return troubleError{err}
			}
			if len(changes) > 0 {
				return errSaid
			}
			return nil
		},
	}
	inventoryFlag(cmd, &inv, true)
	return cmd
}

// mostAsked is how many connections two policies are asked about. One takes a few microseconds.
const mostAsked = 10_000_000

// difference reads two policies and the mesh, and lists what differs.
func (p *program) difference(files []string, inv string) ([]change, error) {
	before, err := p.load(files[0])
	if err != nil {
		return nil, err
	}
	after, mesh, err := p.loadBoth(files[1], inv)
	if err != nil {
		return nil, err
	}
	found, err := explain.Diff(mesh.Program(before), after, mesh, mostAsked)
	if err != nil {
		return nil, fmt.Errorf("%w; use an inventory with fewer of them", err)
	}
	list := make([]change, 0, len(found.Changes))
	for _, c := range found.Changes {
		list = append(list, change{gainedOrLost(c.Gained), c.Src, c.Dst, c.Services, c.Rule.Path, c.Rule.Line})
	}
	return list, nil
}

const gained = "gained"

func gainedOrLost(g bool) string {
	if g {
		return gained
	}
	return "lost"
}

// tellChanges lists changes. What was lost is told by the place in the old file, the rest by that in the new one.
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
