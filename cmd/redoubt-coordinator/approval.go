package main

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// verdict is an administrator's decision about a machine, as JSON shows it.
type verdict struct {
	Verdict string `json:"verdict"` // approved or denied
	At      string `json:"at"`
	By      string `json:"by"`
	Reason  string `json:"reason,omitempty"`
}

func verdictOf(v *redoubtv1.Verdict) *verdict {
	if v == nil {
		return nil
	}
	return &verdict{map[bool]string{false: "approved", true: "denied"}[v.GetDenied()], stamp(v.GetAt()), v.GetBy(), v.GetReason()}
}

// candidate is a machine that is waiting for approval, as JSON shows it.
type candidate struct {
	Code         string   `json:"code"`
	Name         string   `json:"name"`
	User         string   `json:"user,omitempty"`
	Tags         []string `json:"tags,omitempty"`
	State        string   `json:"state"`
	Attestation  string   `json:"attestation"`
	Token        string   `json:"token"`
	DevicePublic string   `json:"devicePublic"`
	Hardware     string   `json:"hardware,omitempty"`
	From         string   `json:"from,omitempty"`
	Asked        string   `json:"asked"`
	Ends         string   `json:"ends"`
	Verdict      *verdict `json:"verdict,omitempty"`
}

func candidateOf(c *redoubtv1.Candidate) candidate {
	return candidate{
		c.GetCode(), c.GetName(), c.GetUser(), c.GetTags(), c.GetState(), c.GetAttestation(), c.GetTokenId(), c.GetDevicePublic(), c.GetHardware(),
		c.GetFrom(), stamp(c.GetAsked()), stamp(c.GetEnds()), verdictOf(c.GetVerdict()),
	}
}

func candidatesOf(list []*redoubtv1.Candidate) []candidate {
	out := make([]candidate, 0, len(list))
	for _, c := range list {
		out = append(out, candidateOf(c))
	}
	return out
}

// candidates prints the machines that are waiting for approval, or that were approved or denied and have not come back yet.
func (p *program) candidates(list []*redoubtv1.Candidate) {
	var rows [][]string
	for _, c := range list {
		waits := c.GetState()
		if waits == "waiting" {
			waits = ago(c.GetAsked())
		}
		from := c.GetFrom()
		if a, err := netip.ParseAddrPort(from); err == nil {
			from = a.Addr().String()
		}
		rows = append(rows, []string{c.GetCode(), c.GetName(), who(c.GetUser(), c.GetTags()), c.GetAttestation(), from, waits})
	}
	p.table(candidateColumns, rows)
	fmt.Fprintln(p.err, "# machines that want to join: `node approve CODE` or `node deny CODE`")
}

// withheld prints the nodes that will get no further certificate as things stand, and reports whether there are any.
func (p *program) withheld(nodes []*redoubtv1.Node) (some bool) {
	var rows [][]string
	for _, n := range nodes {
		if n.GetWithheld() != "" {
			rows = append(rows, []string{n.GetName(), who(n.GetUser(), n.GetTags()), clock(n.GetCertificateExpires()), n.GetWithheld()})
		}
	}
	if len(rows) == 0 {
		return false
	}
	p.table(withheldColumns, rows)
	fmt.Fprintln(p.err, "# nodes that get no further certificate: the policy requires more than they have")
	return true
}

func (p *program) nodePending() *cobra.Command {
	return &cobra.Command{
		Use: "pending", Short: "List what waits for approval or lacks attestation", Args: cobra.NoArgs,
		Long: `Lists the machines that wait for an administrator's approval to join, and the
nodes that get no further certificate because the policy ("admission") requires
more than they have. Those keep their current certificate until it expires.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().ListNodes(cmd.Context(), &redoubtv1.ListNodesRequest{})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				lacking := []node{}
				for _, n := range a.GetNodes() {
					if n.GetWithheld() != "" {
						lacking = append(lacking, nodeOf(n))
					}
				}
				return p.print(map[string]any{"candidates": candidatesOf(a.GetCandidates()), "nodes": lacking})
			}
			if len(a.GetCandidates()) > 0 {
				p.candidates(a.GetCandidates())
			}
			if !p.withheld(a.GetNodes()) && len(a.GetCandidates()) == 0 {
				fmt.Fprintln(p.err, "# nothing is pending")
			}
			return nil
		},
	}
}

// judged is the answer to an approval or a denial.
type judged interface {
	GetCandidate() *redoubtv1.Candidate
	GetNode() *redoubtv1.Node
}

func (p *program) nodeApprove() *cobra.Command {
	return p.nodeJudge("approve CODE|NODE", "Approve a waiting machine, or a node", `Approves a machine that wants to join, by the code that it shows (redoubt
status) or by its name, or a node that needs an administrator's approval. The
machine continues by itself. A denied machine can still be approved.`,
		func(ctx context.Context, who, reason string) (judged, error) {
			return p.client().ApproveNode(ctx, &redoubtv1.ApproveNodeRequest{Node: who, Reason: reason})
		}, func(a judged) {
			if c := a.GetCandidate(); c != nil {
				fmt.Fprintf(p.out, "%s (%s) is approved: it will join by itself\n", c.GetName(), c.GetCode())
				return
			}
			n := a.GetNode()
			fmt.Fprintf(p.out, "%s is approved\n", n.GetName())
			if n.GetWithheld() != "" {
				fmt.Fprintf(p.out, "it still gets no further certificate: %s\n", n.GetWithheld())
			}
		})
}

func (p *program) nodeDeny() *cobra.Command {
	return p.nodeJudge("deny CODE|NODE", "Deny a waiting machine, or a node's next certificate", `Denies a machine that wants to join, by its code or its name: it is told so and
gives up. Its join code can be used by another machine; revoke it if it was
stolen (token revoke). A denied node gets no further certificate, and keeps its
current one until that expires; to cut it off at once, lock or revoke it.`,
		func(ctx context.Context, who, reason string) (judged, error) {
			return p.client().DenyNode(ctx, &redoubtv1.DenyNodeRequest{Node: who, Reason: reason})
		}, func(a judged) {
			if c := a.GetCandidate(); c != nil {
				fmt.Fprintf(p.out, "%s (%s) is denied\n", c.GetName(), c.GetCode())
				fmt.Fprintf(p.out, "token %s can still be used by another machine; to prevent that: token revoke %s\n", c.GetTokenId(), c.GetTokenId())
				return
			}
			n := a.GetNode()
			fmt.Fprintf(p.out, "%s is denied: its certificate is valid until %s, and it gets no further one; to cut it off at once: lock create --node %s\n",
				n.GetName(), clock(n.GetCertificateExpires()), n.GetName())
		})
}

func (p *program) nodeJudge(use, short, long string, do func(ctx context.Context, who, reason string) (judged, error), say func(judged)) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := do(cmd.Context(), args[0], reason)
			if err != nil {
				return p.explain(err)
			}
			if !p.json {
				say(a)
				return nil
			}
			if c := a.GetCandidate(); c != nil {
				return p.print(map[string]candidate{"candidate": candidateOf(c)})
			}
			return p.print(map[string]node{"node": nodeOf(a.GetNode())})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit log, and for the machine where it is denied")
	return cmd
}

// approval describes the administrator's decision about a node's machine; it is empty if there is none.
func approval(n *redoubtv1.Node) string {
	v := verdictOf(n.GetVerdict())
	if v == nil {
		return ""
	}
	text := fmt.Sprintf("%s %s by %s", v.Verdict, clock(n.GetVerdict().GetAt()), v.By)
	if v.Reason != "" {
		text += ": " + v.Reason
	}
	return text
}

// unadmitted is a node that does not meet the admission requirements of a policy, as JSON shows it.
type unadmitted struct {
	Node  string `json:"node"`
	ID    string `json:"id"`
	Lacks string `json:"lacks"`
	Until string `json:"until"` // when its certificate expires
	New   bool   `json:"isNew"` // the policy in force does not require it
}

func unadmittedOf(m *redoubtv1.PolicyImpact) []unadmitted {
	out := []unadmitted{}
	for _, u := range m.GetNotAdmitted() {
		out = append(out, unadmitted{u.GetName(), u.GetId(), u.GetLacks(), stamp(u.GetUntil()), !u.GetBefore()})
	}
	return out
}

// unadmitted prints the nodes that do not meet the admission requirements of a policy.
func (p *program) unadmitted(m *redoubtv1.PolicyImpact) {
	if m.GetUnadmitted() == 0 {
		return
	}
	fmt.Fprintf(p.out, "%d of %d nodes do not meet its requirements (admission): each keeps its\n"+
		"certificate until that expires, and gets no further one\n", m.GetUnadmitted(), m.GetNodes())
	var rows [][]string
	for _, u := range m.GetNotAdmitted() {
		state := "new"
		if u.GetBefore() {
			state = "as before"
		}
		rows = append(rows, []string{u.GetName(), clock(u.GetUntil()), state, u.GetLacks()})
	}
	p.table(unadmittedColumns, rows)
	if rest := int(m.GetUnadmitted()) - len(rows); rest > 0 {
		fmt.Fprintf(p.out, "and %d more nodes\n", rest)
	}
}
