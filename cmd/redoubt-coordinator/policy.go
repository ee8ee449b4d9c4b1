package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/acl"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

const (
	// maxPolicy is more than the coordinator accepts, so that the error comes from the coordinator.
	maxPolicy = 2 << 20
	// patience is how long --wait without a value waits.
	patience = "30s"
)

// diagnostic is a message about a place in a policy, as JSON shows it.
type diagnostic struct {
	Severity string `json:"severity"`
	Line     uint32 `json:"line"`
	Column   uint32 `json:"column"`
	Path     string `json:"path,omitempty"`
	Message  string `json:"message"`
}

func diagnosticsOf(in []*redoubtv1.Diagnostic) []diagnostic {
	out := make([]diagnostic, 0, len(in))
	for _, d := range in {
		s := acl.Warning
		if d.GetError() {
			s = acl.Error
		}
		out = append(out, diagnostic{s.String(), d.GetLine(), d.GetColumn(), d.GetPath(), d.GetMessage()})
	}
	return out
}

// tell prints diagnostics in the style of a compiler.
func (p *program) tell(name string, list []diagnostic) {
	for _, d := range list {
		where := ""
		if d.Path != "" {
			where = d.Path + ": "
		}
		fmt.Fprintf(p.err, "%s:%d:%d: %s: %s%s\n", name, d.Line, d.Column, d.Severity, where, d.Message)
	}
}

func (p *program) policy() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Manage the policy: who may reach what"}
	cmd.AddCommand(
		p.policyCheck(), p.policyTest(), p.policyEval(), p.policyExplain(), p.policyDiff(),
		p.policyApply(), p.policyShow(), p.policyHistory(), p.policyRollback(), p.policyStatus(),
	)
	return cmd
}

// readFile reads a policy from a file, or from standard input if name is "-".
func (p *program) readFile(name string) ([]byte, error) {
	return p.readUpTo(name, maxPolicy, "a policy")
}

func (p *program) readUpTo(name string, most int, what string) ([]byte, error) {
	r := p.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s: more than %d bytes: not %s", name, most, what)
	}
	return b, err
}

func waitFlag(cmd *cobra.Command, wait *time.Duration) {
	cmd.Flags().DurationVar(wait, "wait", 0, "wait up to this long until every node enforces it (exit 1 if one does not)")
	cmd.Flags().Lookup("wait").NoOptDefVal = patience
}

func version(v *redoubtv1.Version) string { return fmt.Sprintf("%d.%d", v.GetEpoch(), v.GetN()) }

func (p *program) policyStatus() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "status", Short: "Show which nodes do not enforce the policy yet", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.awaitPolicy(cmd.Context(), wait, time.Now(), nil) },
	}
	waitFlag(cmd, &wait)
	return cmd
}

// laggard is a node that does not enforce what it should yet, as JSON shows it.
type laggard struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Connected bool   `json:"connected"`
	Applied   string `json:"applied,omitempty"`
	Wanted    string `json:"wanted"`
	AgeMs     uint64 `json:"ageMs"`
}

func laggardsOf(list []*redoubtv1.Laggard) []laggard {
	out := make([]laggard, 0, len(list))
	for _, l := range list {
		out = append(out, laggard{l.GetId(), l.GetName(), l.GetConnected(), l.GetApplied(), l.GetWanted(), l.GetAgeMs()})
	}
	return out
}

func laggardRows(list []*redoubtv1.Laggard) (rows [][]string) {
	for _, l := range list {
		state := "away"
		if l.GetConnected() {
			state = "connected"
		}
		rows = append(rows, []string{l.GetName(), state, l.GetApplied(), l.GetWanted(), span(time.Duration(l.GetAgeMs()) * time.Millisecond)})
	}
	return rows
}

// awaitPolicy prints the status; if wait is positive, it first waits up to that long for all nodes to enforce the policy.
// Durations are measured from start. As JSON it adds the status to result, which says what was applied; nil if nothing was.
func (p *program) awaitPolicy(ctx context.Context, wait time.Duration, start time.Time, result map[string]any) error {
	st, err := p.client().PolicyStatus(ctx, &redoubtv1.PolicyStatusRequest{WaitMs: uint64(max(wait, 0) / time.Millisecond)})
	if err != nil {
		err = p.explain(err)
		if p.json && result != nil {
			err = errors.Join(p.print(result), err)
		}
		return err
	}
	took := time.Since(start)
	lag, rows := laggardsOf(st.GetLaggards()), laggardRows(st.GetLaggards())
	switch {
	case p.json:
		out := make(map[string]any)
		maps.Copy(out, result)
		maps.Copy(out, map[string]any{
			"number": st.GetNumber(), "version": st.GetVersion(), "nodes": st.GetNodes(), "current": st.GetCurrent(), "laggards": lag, "tookMs": took.Milliseconds(),
			"policyAgeMs": st.GetPolicyAgeMs(), "unable": unableOf(st.GetUnable()),
			"keyWarnings": orNone(st.GetKeyWarnings()),
		})
		err = p.print(out)
	case st.GetNumber() == 0:
		fmt.Fprintln(p.out, "no policy has been applied yet, so no packet passes; use `policy apply FILE`")
	default:
		fmt.Fprintf(p.out, "policy %d: %d of %d nodes enforce it (version %s)", st.GetNumber(), st.GetCurrent(), st.GetNodes(), st.GetVersion())
		if wait > 0 && len(lag) == 0 {
			fmt.Fprintf(p.out, ", after %d ms", took.Milliseconds())
		} else if wait <= 0 {
			fmt.Fprintf(p.out, "\napplied %s ago", span(time.Duration(st.GetPolicyAgeMs())*time.Millisecond))
		}
		fmt.Fprintln(p.out)
	}
	if !p.json && len(rows) > 0 {
		p.table(laggardColumns, rows)
	}
	if !p.json && len(st.GetUnable()) > 0 {
		p.unable(st.GetUnable())
	}
	p.warn(st.GetKeyWarnings())
	if wait > 0 && len(lag) > 0 {
		return errors.Join(err, errSaid)
	}
	return err
}
