package main

import (
	"fmt"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// attested is what a node's machine has proved about itself, as JSON shows it.
type attested struct {
	Level     string   `json:"level"`
	Highest   string   `json:"highest"`
	Kind      string   `json:"kind"`
	Device    string   `json:"device,omitempty"`
	Since     string   `json:"since"`
	Checked   string   `json:"checked"`
	Checks    []string `json:"checks,omitempty"`
	Selectors []string `json:"selectors,omitempty"`
	Lapse     string   `json:"lapse,omitempty"`
}

func attestedOf(n *redoubtv1.Node) attested {
	a := n.GetAttested()
	return attested{
		Level: a.GetLevel(), Highest: a.GetHighest(), Kind: a.GetKind(), Device: a.GetDevice(), Since: stamp(a.GetSince()),
		Checked: stamp(a.GetChecked()), Checks: a.GetChecks(), Selectors: a.GetSelectors(), Lapse: a.GetLapse(),
	}
}

// attestation prints what a machine has proved, if that is more than a join token.
func (p *program) attestation(n *redoubtv1.Node) {
	a := n.GetAttested()
	if a.GetKind() == "token" && a.GetHighest() == a.GetLevel() {
		return
	}
	fmt.Fprintln(p.out)
	pairs := []string{
		"attested by", a.GetKind() + ", level " + a.GetLevel(), "machine", a.GetDevice(),
		"checked", clock(a.GetChecked()) + " (" + ago(a.GetChecked()) + " ago)",
	}
	if a.GetHighest() != a.GetLevel() {
		pairs = append(pairs, "highest", a.GetHighest())
	}
	pairs = append(pairs, "lapse", a.GetLapse())
	for _, c := range a.GetChecks() {
		pairs = append(pairs, "check", c)
	}
	for _, s := range a.GetSelectors() {
		pairs = append(pairs, "selector", s)
	}
	p.fields(pairs...)
}

func (p *program) nodeReset() *cobra.Command {
	return &cobra.Command{
		Use: "reset NODE", Short: "Let a machine with weaker attestation take a node's place", Args: cobra.ExactArgs(1),
		Long: `Forgets the highest attestation that a node's machine ever had. A machine with a
lower one, such as one without a TPM, can then take the node's place:

  redoubt-coordinator node reset web
  redoubt-coordinator token create --replace web`,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().ResetNode(cmd.Context(), &redoubtv1.ResetNodeRequest{Node: args[0]})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(nodeOf(a.GetNode()))
			}
			fmt.Fprintf(p.out, "%s is reset\n", a.GetNode().GetName())
			return nil
		},
	}
}
