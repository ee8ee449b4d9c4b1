package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/coordinator/policy"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// application is a policy being applied.
type application struct {
	name    string // of the file, for messages
	request *redoubtv1.ApplyPolicyRequest
	expect  uint64
	dryRun  bool
	wait    time.Duration
}

func (p *program) policyApply() *cobra.Command {
	a := &application{request: &redoubtv1.ApplyPolicyRequest{}}
	cmd := &cobra.Command{
		Use: "apply FILE", Short: "Apply a policy, if nothing is wrong with it", Args: cobra.ExactArgs(1),
		Long: `Shows what a policy would change, and applies it as a whole. It is refused if it
has errors, if one of its tests fails, or if somebody else has applied another
policy in the meantime; then the current policy stays in force.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			src, err := p.readFile(args[0])
			if err != nil {
				return err
			}
			if !utf8.Valid(src) {
				return p.refuse(args[0], src)
			}
			a.name, a.request.Source = args[0], string(src)
			return p.apply(cmd, a)
		},
	}
	a.flags(cmd)
	return cmd
}

// refuse reports what is wrong with src, which is not valid UTF-8 and so cannot be sent to the coordinator, the way the
// coordinator would.
func (p *program) refuse(name string, src []byte) error {
	_, found := acl.Check(name, src, time.Now())
	if p.json {
		return errors.Join(p.print(map[string]any{"applied": false, "diagnostics": listOf(found)}), errSaid)
	}
	p.tell(name, listOf(found))
	return policy.ErrRefused
}

func (p *program) policyRollback() *cobra.Command {
	a := &application{request: &redoubtv1.ApplyPolicyRequest{}}
	cmd := &cobra.Command{
		Use: "rollback VERSION", Short: "Restore an earlier policy, as a new version", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if a.request.RollbackTo, err = versionNumber(args[0]); err != nil {
				return err
			}
			a.name = "policy " + args[0]
			return p.apply(cmd, a)
		},
	}
	a.flags(cmd)
	return cmd
}

func (a *application) flags(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&a.expect, "expect", 0, "refuse unless this `VERSION` is in force (0: none)")
	cmd.Flags().BoolVar(&a.dryRun, "dry-run", false, "show what would change, and change nothing")
	cmd.Flags().StringVarP(&a.request.Comment, "comment", "m", "", "`TEXT` for the history")
	waitFlag(cmd, &a.wait)
}

func versionNumber(text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("version %q: want a number from `policy history`", text)
	}
	return n, nil
}

// apply does a dry run, prints what would change, and then applies the policy on condition that the policy in force is still the
// one it was compared with.
func (p *program) apply(cmd *cobra.Command, a *application) error {
	if cmd.Flags().Changed("expect") {
		a.request.Expect = &a.expect
	}
	a.request.DryRun = true
	tried, err := p.try(cmd.Context(), a)
	if err != nil {
		return err
	}
	if !p.json {
		p.tell(a.name, diagnosticsOf(tried.GetDiagnostics()))
		p.impact(a.name, tried.GetImpact())
	}
	answer, start := tried, time.Now() // the comparison takes no part in how long the change takes
	if !a.dryRun {
		base := tried.GetImpact().GetBase()
		a.request.DryRun, a.request.Expect = false, &base
		if answer, err = p.try(cmd.Context(), a); err != nil {
			return err
		}
	}
	result := map[string]any{
		"number": answer.GetNumber(), "version": version(answer.GetVersion()), "applied": answer.GetApplied(), "dryRun": a.dryRun,
		"diagnostics": diagnosticsOf(answer.GetDiagnostics()), "changes": impactOf(tried.GetImpact()),
	}
	waits := a.wait > 0 && !a.dryRun
	switch {
	case p.json && !waits:
		return p.print(result)
	case p.json:
	case a.dryRun:
		fmt.Fprintln(p.out, "nothing was applied")
	case answer.GetApplied():
		fmt.Fprintf(p.out, "policy %d is in force\n", answer.GetNumber())
	default:
		fmt.Fprintf(p.out, "policy %d is already in force; nothing has changed\n", answer.GetNumber())
	}
	if waits {
		return p.awaitPolicy(cmd.Context(), a.wait, start, result)
	}
	return nil
}

func (p *program) try(ctx context.Context, a *application) (*redoubtv1.ApplyPolicyResponse, error) {
	answer, err := p.client().ApplyPolicy(ctx, a.request)
	if err == nil {
		return answer, nil
	}
	found := diagnosticsOf(api.Diagnostics(err))
	if p.json && len(found) > 0 {
		return nil, errors.Join(p.print(map[string]any{"applied": false, "diagnostics": found}), errSaid)
	}
	p.tell(a.name, found)
	return nil, p.explain(err)
}

// impact is the effect of a policy, as JSON shows it.
type impact struct {
	Base    uint64   `json:"base"`
	Nodes   uint32   `json:"nodes"`
	Touched uint32   `json:"touched"`
	Gained  uint32   `json:"gained"`
	Lost    uint32   `json:"lost"`
	Changes []change `json:"connections"`
	TooWide string   `json:"notCompared,omitempty"`

	Unadmitted  uint32       `json:"unadmitted"`
	NotAdmitted []unadmitted `json:"notAdmitted"`
}

func impactOf(m *redoubtv1.PolicyImpact) impact {
	out := impact{
		m.GetBase(), m.GetNodes(), m.GetTouched(), m.GetGained(), m.GetLost(), []change{}, m.GetTooWide(), m.GetUnadmitted(), unadmittedOf(m),
	}
	for _, c := range m.GetChanges() {
		out.Changes = append(out.Changes, change{gainedOrLost(c.GetGained()), c.GetSrc(), c.GetDst(), c.GetServices(), c.GetRule(), int(c.GetLine())})
	}
	return out
}

// impact prints the effect of the policy in file.
func (p *program) impact(file string, m *redoubtv1.PolicyImpact) {
	if m.GetSameText() {
		return
	}
	before, against := "", "compared with no policy"
	if m.GetBase() != 0 {
		before = fmt.Sprintf("policy %d", m.GetBase())
		against = "compared with " + before
	}
	fmt.Fprintf(p.out, "%s: %d of %d nodes are affected\n", against, m.GetTouched(), m.GetNodes())
	p.unadmitted(m)
	if m.GetTooWide() != "" {
		p.wrapped("", strings.Fields("connections gained and lost are not listed: "+m.GetTooWide()+
			"; `policy diff` lists more, on an inventory"), "")
		return
	}
	p.tellChanges(before, file, impactOf(m).Changes)
	if rest := int(m.GetGained()+m.GetLost()) - len(m.GetChanges()); rest > 0 {
		fmt.Fprintf(p.out, "and %d more changes\n", rest)
	}
	if m.GetGained()+m.GetLost() == 0 {
		fmt.Fprintln(p.out, "no change in the allowed connections")
	}
}

func (p *program) policyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [VERSION]", Short: "Print the policy in force, or an earlier one", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			q := &redoubtv1.GetPolicyRequest{}
			if len(args) > 0 {
				if q.Number, err = versionNumber(args[0]); err != nil {
					return err
				}
			}
			a, err := p.client().GetPolicy(cmd.Context(), q)
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(struct {
					policyVersion
					Source string `json:"source"`
				}{policyVersion{
					a.GetNumber(), stamp(a.GetApplied()), a.GetAppliedBy(), a.GetComment(), a.GetRollbackOf(), uint64(len(a.GetSource())), a.GetInForce(),
				}, a.GetSource()})
			}
			fmt.Fprintf(p.err, "# policy %d, applied %s by %s\n", a.GetNumber(), clock(a.GetApplied()), a.GetAppliedBy())
			if a.GetComment() != "" {
				fmt.Fprintf(p.err, "# %s\n", a.GetComment())
			}
			fmt.Fprint(p.out, a.GetSource())
			if !strings.HasSuffix(a.GetSource(), "\n") {
				fmt.Fprintln(p.out)
			}
			return nil
		},
	}
}

// policyVersion is a version of the policy as JSON shows it.
type policyVersion struct {
	Number     uint64 `json:"number"`
	Applied    string `json:"applied"`
	AppliedBy  string `json:"appliedBy"`
	Comment    string `json:"comment,omitempty"`
	RollbackOf uint64 `json:"rollbackOf,omitempty"`
	Size       uint64 `json:"size"`
	InForce    bool   `json:"inForce"`
}

func (p *program) policyHistory() *cobra.Command {
	q := &redoubtv1.PolicyHistoryRequest{}
	cmd := &cobra.Command{
		Use: "history", Short: "List all versions of the policy", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().PolicyHistory(cmd.Context(), q)
			if err != nil {
				return p.explain(err)
			}
			list := make([]policyVersion, 0, len(a.GetVersions()))
			var rows [][]string
			for _, v := range a.GetVersions() {
				list = append(list, policyVersion{v.GetNumber(), stamp(v.GetApplied()), v.GetAppliedBy(), v.GetComment(), v.GetRollbackOf(), v.GetSize(), v.GetInForce()})
				state := ""
				switch {
				case v.GetInForce():
					state = "in force"
				case v.GetRollbackOf() != 0:
					state = fmt.Sprintf("back to %d", v.GetRollbackOf())
				}
				comment := v.GetComment()
				if comment == "" && v.GetRollbackOf() != 0 {
					comment = fmt.Sprintf("back to version %d", v.GetRollbackOf())
				}
				rows = append(rows, []string{fmt.Sprint(v.GetNumber()), clock(v.GetApplied()), v.GetAppliedBy(), state, comment})
			}
			if p.json {
				return p.print(map[string]any{"versions": list})
			}
			if len(rows) == 0 {
				fmt.Fprintln(p.err, "# no policy has been applied yet, so no packet passes; use `policy apply FILE`")
				return nil
			}
			p.table(historyColumns, rows)
			return nil
		},
	}
	cmd.Flags().Uint64Var(&q.Before, "before", 0, "only versions before `VERSION`")
	cmd.Flags().Uint32Var(&q.Limit, "limit", 50, "at most `N` versions")
	return cmd
}

// unable is a node that cannot enforce its part of the policy, as JSON shows it.
type unable struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Program string   `json:"program"`
	Lacks   []string `json:"lacks"`
}

func unableOf(in []*redoubtv1.Unable) []unable {
	out := make([]unable, 0, len(in))
	for _, u := range in {
		out = append(out, unable{u.GetId(), u.GetName(), u.GetProgram(), u.GetLacks()})
	}
	return out
}

func (p *program) unable(list []*redoubtv1.Unable) {
	fmt.Fprintf(p.out, "on %d nodes nothing passes: their agents cannot enforce this policy; upgrade them\n", len(list))
	var rows [][]string
	for _, u := range list {
		rows = append(rows, []string{u.GetName(), u.GetProgram(), strings.Join(u.GetLacks(), ", ")})
	}
	p.table(unableColumns, rows)
}
