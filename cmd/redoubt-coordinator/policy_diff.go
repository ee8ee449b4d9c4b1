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
			before, err := p.load(args[0])
			if err != nil {
				return troubleError{err}
			}
			after, err := p.load(args[1])
			if err != nil {
				return troubleError{err}
			}
			mesh, err := p.readInventory(inv)
			if err != nil {
				return troubleError{err}
			}
			changes, err := explain.Diff(before, after, mesh)
			if err != nil {
				return troubleError{err}
			}
			if p.json {
				list := make([]change, 0, len(changes))
				for _, c := range changes {
					word := "lost"
					if c.Gained {
						word = "gained"
					}
					list = append(list, change{word, c.Src, c.Dst, c.Services, c.Rule.Path, c.Rule.Line})
				}
				err = p.print(map[string]any{"same": len(list) == 0, "changes": list})
			} else {
				p.tellChanges(args, changes)
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

func (p *program) tellChanges(files []string, changes []explain.Change) {
	paint := p.paint()
	for _, c := range changes {
		sign, colour, file := "-", "31", files[0]
		if c.Gained {
			sign, colour, file = "+", "32", files[1]
		}
		fmt.Fprintf(p.out, "%s by %s (%s:%d)\n", paint.wrap(colour, sign), c.Rule.Path, file, c.Rule.Line)
		p.wrapped("  from  ", c.Src, ",")
		p.wrapped("  to    ", c.Dst, ",")
		p.wrapped("  for   ", c.Services, ",")
	}
	if len(changes) == 0 {
		fmt.Fprintln(p.out, "both allow the same connections")
	}
}
