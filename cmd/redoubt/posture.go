package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/proto/fact"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func postureCommand(p program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "posture",
		Short: "Show this machine's posture, and the rules that fail because of it",
		Long: "Shows the facts that this machine reports to the coordinator about its health,\n" +
			"since when each one holds and when it was last read, which rules of the policy\n" +
			"fail because of them, and how to fix that. Exits with 1 if a rule fails.",
		Args: cobra.NoArgs,
	}
	refresh := cmd.Flags().Bool("refresh", false, "read all facts again first")
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := client(cmd).Posture(cmd.Context(), &redoubtv1.PostureRequest{Refresh: *refresh})
		if err != nil {
			return failed(cmd, err)
		}
		if *asJSON {
			err = printJSON(p.out, postureOf(r))
		} else {
			err = printPosture(p.out, r, time.Now(), palette(p.colour))
		}
		if err == nil && len(r.GetWithheld()) > 0 {
			return &exitError{exitFalse, nil}
		}
		return err
	}
	return cmd
}

func printPosture(w io.Writer, r *redoubtv1.PostureResponse, now time.Time, c palette) error {
	var b strings.Builder
	rows := [][]string{{"FACT", "VALUE", "SINCE", "READ", "NOTE"}}
	for _, f := range r.GetFacts() {
		value := f.GetValue()
		if value == "" {
			value = "-"
		}
		rows = append(rows, []string{
			f.GetName(), value, age(now, time.Unix(f.GetSince(), 0)), age(now, time.Unix(f.GetChecked(), 0)), f.GetNote(),
		})
	}
	if len(rows) > 1 {
		b.WriteString(folded(rows, 1, 4))
	} else {
		b.WriteString("no facts are known about this machine\n")
	}
	if !r.GetTold() {
		b.WriteString("\n" + c.warn("not connected: the coordinator still uses the last report, for a limited time") + "\n")
	}
	mends := map[string]string{}
	for _, f := range r.GetFacts() {
		mends[f.GetName()] = f.GetMend()
	}
	for _, rule := range r.GetWithheld() {
		b.WriteString("\n" + wrap(fmt.Sprintf("%s (line %d of the policy) fails: %s", rule.GetPath(), rule.GetLine(), rule.GetReason()), "", "  "))
		for _, name := range rule.GetFacts() {
			if mend := cmp.Or(mends[name], fact.Advice(name)); mend != "" {
				b.WriteString(wrap(name+": "+mend, "  ", "    "))
			}
		}
	}
	if len(r.GetWithheld()) == 0 && r.GetTold() && len(rows) > 1 {
		b.WriteString("\nno rule of the policy fails because of these facts\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// The types that `posture --json` prints.
type (
	postureJSON struct {
		Facts         []factJSON     `json:"facts"`
		Withheld      []withheldJSON `json:"withheld"`
		Told          bool           `json:"told"`
		PolicyVersion string         `json:"policyVersion"`
		Problems      []string       `json:"problems"`
	}
	factJSON struct {
		Name    string     `json:"name"`
		Value   *string    `json:"value"`
		Source  string     `json:"source"`
		Since   *time.Time `json:"since"`
		Read    *time.Time `json:"read"`
		TTL     uint32     `json:"ttlSeconds"`
		Note    string     `json:"note"`
		ToMend  string     `json:"mend"`
		Blocked bool       `json:"blocks"` // a rule fails because of it
	}
	withheldJSON struct {
		Rule   string   `json:"rule"`
		Line   int32    `json:"line"`
		Reason string   `json:"reason"`
		Facts  []string `json:"facts"`
	}
)

func postureOf(r *redoubtv1.PostureResponse) postureJSON {
	out := postureJSON{
		Facts: []factJSON{}, Withheld: []withheldJSON{}, Told: r.GetTold(), PolicyVersion: r.GetPolicyVersion(),
		Problems: append([]string{}, r.GetProblems()...),
	}
	blocks := map[string]bool{}
	for _, w := range r.GetWithheld() {
		out.Withheld = append(out.Withheld, withheldJSON{w.GetPath(), w.GetLine(), w.GetReason(), append([]string{}, w.GetFacts()...)})
		for _, name := range w.GetFacts() {
			blocks[name] = true
		}
	}
	for _, f := range r.GetFacts() {
		j := factJSON{
			Name: f.GetName(), Source: f.GetSource(), Since: fromSeconds(f.GetSince()), Read: fromSeconds(f.GetChecked()), TTL: f.GetTtlSeconds(),
			Note: f.GetNote(), ToMend: f.GetMend(), Blocked: blocks[f.GetName()],
		}
		if v := f.GetValue(); v != "" {
			j.Value = &v
		}
		out.Facts = append(out.Facts, j)
	}
	return out
}
