package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// node is a node as JSON shows it.
type node struct {
	ID                  string     `json:"id"`
	Name                string     `json:"name"`
	Addresses           []string   `json:"addresses"`
	User                string     `json:"user,omitempty"`
	Tags                []string   `json:"tags,omitempty"`
	State               string     `json:"state"`
	Connected           bool       `json:"connected"`
	Created             string     `json:"created"`
	LastSeen            string     `json:"lastSeen,omitempty"`
	CertificateExpires  string     `json:"certificateExpires"`
	CertificateSequence uint64     `json:"certificateSequence"`
	Program             string     `json:"program,omitempty"`
	OS                  string     `json:"os,omitempty"`
	Arch                string     `json:"arch,omitempty"`
	Token               string     `json:"token"`
	Ephemeral           bool       `json:"ephemeral"`
	Attestation         string     `json:"attestation"`
	Endpoints           []string   `json:"endpoints,omitempty"`
	NodePublic          string     `json:"nodePublic"`
	NextNodePublic      string     `json:"nextNodePublic,omitempty"`
	NextNodeFrom        string     `json:"nextNodeFrom,omitempty"`
	DevicePublic        string     `json:"devicePublic"`
	AppliedVersion      string     `json:"appliedVersion,omitempty"`
	Facts               []factJSON `json:"facts,omitempty"`
	Routes              []route    `json:"routes,omitempty"`
	Attested            attested   `json:"attested"`
	Lock                string     `json:"lock,omitempty"`
	Barring             *barring   `json:"barring,omitempty"`    // who revoked or locked it, and why
	Quarantine          string     `json:"quarantine,omitempty"` // why
	QuarantineSince     string     `json:"quarantineSince,omitempty"`
	Verdict             *verdict   `json:"approval,omitempty"`
	Withheld            string     `json:"withheld,omitempty"` // why it gets no further certificate
	// Attributes and App are what the policy's nodeAttrs give the node; only `node show` fills them in.
	Attributes []string                     `json:"attributes,omitempty"`
	App        map[string][]json.RawMessage `json:"app,omitempty"`
	Unmet      []unmet                      `json:"unmet,omitempty"` // rules that it does not meet; only in `node show`
}

// barring says who revoked or locked a node, as JSON shows it.
type barring struct {
	At     string `json:"at"`
	By     string `json:"by"`
	Reason string `json:"reason,omitempty"`
	About  string `json:"about,omitempty"` // the subject of the lock
	Ends   string `json:"ends,omitempty"`
}

func barringOf(b *redoubtv1.Barring) *barring {
	if b == nil {
		return nil
	}
	return &barring{At: stamp(b.GetAt()), By: b.GetBy(), Reason: b.GetReason(), About: b.GetAbout(), Ends: stamp(b.GetEnds())}
}

// barredBy returns the label for what bars a node.
func barredBy(n *redoubtv1.Node) string {
	if n.GetLock() == "" {
		return "revoked"
	}
	return "lock"
}

// barred describes who revoked or locked a node, when and why.
func barred(n *redoubtv1.Node) string {
	b := n.GetBarring()
	if b == nil {
		return ""
	}
	text := fmt.Sprintf("%s by %s", clock(b.GetAt()), b.GetBy())
	if n.GetLock() != "" {
		text = fmt.Sprintf("%s, about %s, since %s", n.GetLock(), b.GetAbout(), text)
	}
	if b.GetEnds() != 0 {
		text += ", until " + clock(b.GetEnds())
	}
	if b.GetReason() != "" {
		text += ": " + b.GetReason()
	}
	return text
}

func nodeOf(n *redoubtv1.Node) node {
	return node{
		ID: n.GetId(), Name: n.GetName(), Addresses: n.GetAddresses(), User: n.GetUser(), Tags: n.GetTags(), State: n.GetState(),
		Connected: n.GetConnected(), Created: stamp(n.GetCreated()), LastSeen: stamp(n.GetLastSeen()),
		CertificateExpires: stamp(n.GetCertificateExpires()), CertificateSequence: n.GetCertificateSequence(),
		Program: n.GetProgram(), OS: n.GetOs(), Arch: n.GetArch(), Token: n.GetTokenId(), Ephemeral: n.GetEphemeral(),
		Attestation: n.GetAttestation(), Endpoints: n.GetEndpoints(), NodePublic: n.GetNodePublic(), DevicePublic: n.GetDevicePublic(),
		AppliedVersion: n.GetAppliedVersion(), Facts: factsOf(n), Routes: routesOf(n), Lock: n.GetLock(),
		Attested:       attestedOf(n),
		NextNodePublic: n.GetNextNodePublic(), NextNodeFrom: stamp(n.GetNextNodeFrom()),
		Verdict: verdictOf(n.GetVerdict()), Withheld: n.GetWithheld(),
		Quarantine: n.GetQuarantine().GetReason(), QuarantineSince: stamp(n.GetQuarantine().GetSince()),
		Attributes: n.GetAttributes(), App: appOf(n), Barring: barringOf(n.GetBarring()), Unmet: unmetOf(n),
	}
}

// appOf returns a node's capabilities in the form that policies use.
func appOf(n *redoubtv1.Node) map[string][]json.RawMessage {
	if len(n.GetApp()) == 0 {
		return nil
	}
	out := make(map[string][]json.RawMessage, len(n.GetApp()))
	for _, c := range n.GetApp() {
		list := []json.RawMessage{}
		for _, v := range c.GetValues() {
			list = append(list, json.RawMessage(v))
		}
		out[c.GetName()] = list
	}
	return out
}

// appNames returns the names of a node's capabilities.
func appNames(n *redoubtv1.Node) string {
	return strings.Join(slices.Sorted(maps.Keys(appOf(n))), ", ")
}

// presence describes the state of a node in a word or two.
func presence(n *redoubtv1.Node) string {
	switch {
	case n.GetState() != "active":
		return n.GetState()
	case n.GetConnected():
		return "connected"
	case n.GetLastSeen() == 0:
		return "not seen"
	}
	return "away " + ago(n.GetLastSeen())
}

func (p *program) node() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "Manage the machines of the mesh"}
	cmd.AddCommand(p.nodeList(), p.nodeShow(), p.nodePending(), p.nodeApprove(), p.nodeDeny(), p.nodeRevoke(), p.nodeRelease(), p.nodeDelete(), p.nodeReset(), p.nodeFact(), p.nodeRoutes(), p.nodeApproveRoutes())
	return cmd
}

func (p *program) nodeList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List nodes, and machines that wait to become one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().ListNodes(cmd.Context(), &redoubtv1.ListNodesRequest{})
			if err != nil {
				return p.explain(err)
			}
			list := make([]node, 0, len(a.GetNodes()))
			var rows [][]string
			for _, n := range a.GetNodes() {
				list = append(list, nodeOf(n))
				rows = append(rows, []string{n.GetName(), who(n.GetUser(), n.GetTags()), first(n.GetAddresses()), presence(n), clock(n.GetCertificateExpires())})
			}
			if p.json {
				return p.print(map[string]any{"nodes": list, "candidates": candidatesOf(a.GetCandidates())})
			}
			if len(rows) == 0 && len(a.GetCandidates()) == 0 {
				fmt.Fprintln(p.err, "# there are no nodes yet; create a join code with `token create`")
				return nil
			}
			if len(rows) > 0 {
				p.table(nodeColumns, rows)
			}
			if len(a.GetCandidates()) > 0 {
				p.candidates(a.GetCandidates())
			}
			p.withheld(a.GetNodes())
			return nil
		},
	}
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func (p *program) nodeShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NODE", Short: "Show a node, by id, name or address", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().GetNode(cmd.Context(), &redoubtv1.GetNodeRequest{Node: args[0]})
			if err != nil {
				return p.explain(err)
			}
			n := a.GetNode()
			if p.json {
				return p.print(nodeOf(n))
			}
			program := strings.TrimSpace(n.GetProgram() + " " + n.GetOs() + "/" + n.GetArch())
			p.fields("name", n.GetName(), "id", n.GetId(), "state", presence(n), barredBy(n), barred(n), "user", n.GetUser(), "tags", strings.Join(n.GetTags(), ", "),
				"attributes", strings.Join(n.GetAttributes(), ", "), "app", appNames(n),
				"addresses", strings.Join(n.GetAddresses(), ", "), "endpoints", strings.Join(n.GetEndpoints(), ", "),
				"certificate", fmt.Sprintf("number %d, until %s", n.GetCertificateSequence(), clock(n.GetCertificateExpires())),
				"approval", approval(n), "withheld", withheldFrom(n), "quarantine", quarantine(n), "attestation", n.GetAttestation(), "node key", n.GetNodePublic(), "next key", nextKey(n), "device key", n.GetDevicePublic(),
				"program", strings.TrimPrefix(program, "/"), "applied", n.GetAppliedVersion(), "joined", clock(n.GetCreated())+" with token "+n.GetTokenId(), "ephemeral", map[bool]string{true: "yes"}[n.GetEphemeral()])
			p.attestation(n)
			p.facts(n)
			p.unmet(n)
			if len(n.GetRoutes()) > 0 {
				p.routes(n)
			}
			return nil
		},
	}
}

func (p *program) nodeRevoke() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use: "revoke NODE", Short: "Revoke a node, everywhere and permanently", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().RevokeNode(cmd.Context(), &redoubtv1.RevokeNodeRequest{Node: args[0], Reason: reason})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(struct {
					Node node `json:"node"`
					enforcementJSON
				}{nodeOf(a.GetNode()), enforcementOf(a)})
			}
			fmt.Fprintf(p.out, "%s is revoked\n", a.GetNode().GetName())
			p.enforced(a)
			return nil
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for the audit log")
	return cmd
}

// withheldFrom explains why a node gets no further certificate; it is empty if nothing is withheld.
func withheldFrom(n *redoubtv1.Node) string {
	if n.GetWithheld() == "" {
		return ""
	}
	return "the next certificate: " + n.GetWithheld()
}

// quarantine explains why a node is quarantined and what to do; it is empty if the node is not.
func quarantine(n *redoubtv1.Node) string {
	q := n.GetQuarantine()
	if q == nil {
		return ""
	}
	return fmt.Sprintf("since %s: %s; remove the copy of the machine, then run `node release %s`", clock(q.GetSince()), q.GetReason(), n.GetName())
}

// nextKey describes the node key that takes over next, and when.
func nextKey(n *redoubtv1.Node) string {
	if n.GetNextNodePublic() == "" {
		return ""
	}
	return n.GetNextNodePublic() + " from " + clock(n.GetNextNodeFrom())
}

func (p *program) nodeRelease() *cobra.Command {
	return &cobra.Command{
		Use: "release NODE", Short: "End the quarantine of a node whose identity two machines had", Args: cobra.ExactArgs(1),
		Long: "Ends the quarantine of a node whose identity two machines had. Remove the copy\n" +
			"first: the machine that renews first continues as the node, and if the other one\n" +
			"still exists, both are quarantined again.",
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().ReleaseNode(cmd.Context(), &redoubtv1.ReleaseNodeRequest{Node: args[0]})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(map[string]node{"node": nodeOf(a.GetNode())})
			}
			fmt.Fprintf(p.out, "%s is released: the machine that renews its certificate first continues as this node\n", a.GetNode().GetName())
			return nil
		},
	}
}

func (p *program) nodeDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NODE", Short: "Remove a node; its addresses are not reused for 30 days", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := p.client().DeleteNode(cmd.Context(), &redoubtv1.DeleteNodeRequest{Node: args[0]}); err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(map[string]string{"node": args[0], "state": "deleted"})
			}
			fmt.Fprintf(p.out, "%s is deleted\n", args[0])
			return nil
		},
	}
}
