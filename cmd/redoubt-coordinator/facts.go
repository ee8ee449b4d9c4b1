package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/proto/fact"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// factJSON is a fact about a node, as JSON shows it.
type factJSON struct {
	Name    string `json:"name"`
	Value   string `json:"value"`
	Source  string `json:"source"` // reported, attested, custom
	By      string `json:"by,omitempty"`
	Set     string `json:"set"`
	Expires string `json:"expires,omitempty"`
	TTL     uint64 `json:"ttlSeconds,omitempty"` // how long it holds after the node was last heard from
}

func factsOf(n *redoubtv1.Node) (out []factJSON) {
	for _, f := range n.GetFacts() {
		out = append(out, factJSON{
			f.GetName(), f.GetValue(), f.GetSource(), f.GetBy(), stamp(f.GetSet()), stamp(f.GetExpires()), f.GetTtlSeconds(),
		})
	}
	return out
}

func (p *program) facts(n *redoubtv1.Node) {
	var rows [][]string
	for _, f := range n.GetFacts() {
		rows = append(rows, []string{f.GetName(), f.GetValue(), word(f), ago(f.GetSet()), holds(f)})
	}
	if len(rows) > 0 {
		fmt.Fprintln(p.out)
		p.table(factColumns, rows)
	}
}

// word returns who or what vouches for a fact.
func word(f *redoubtv1.Fact) string {
	return cmp.Or(f.GetBy(), f.GetSource())
}

// holds describes how long a fact holds.
func holds(f *redoubtv1.Fact) string {
	if f.GetExpires() == 0 && f.GetTtlSeconds() > 0 {
		return "silence + " + span(time.Duration(f.GetTtlSeconds())*time.Second)
	}
	return clock(f.GetExpires())
}

// unmet is a rule of the policy whose conditions a node does not meet, as JSON shows it.
type unmet struct {
	Rule   string   `json:"rule"`
	Line   int32    `json:"line"`
	Reason string   `json:"reason"`
	Facts  []string `json:"facts,omitempty"`
}

func unmetOf(n *redoubtv1.Node) (out []unmet) {
	for _, r := range n.GetUnmet() {
		out = append(out, unmet{r.GetPath(), r.GetLine(), r.GetReason(), r.GetFacts()})
	}
	return out
}

// unmet prints the rules that a node does not meet, why, and how to fix that.
func (p *program) unmet(n *redoubtv1.Node) {
	for _, r := range n.GetUnmet() {
		fmt.Fprintln(p.out)
		p.wrapped("", strings.Fields(fmt.Sprintf("%s (line %d of the policy) fails: %s", r.GetPath(), r.GetLine(), r.GetReason())), "")
		for _, name := range r.GetFacts() {
			p.wrapped("  ", strings.Fields(name+": "+fact.Advice(name)), "")
		}
	}
}

// route is a route that a node advertises or that is approved for it, as JSON shows it.
type route struct {
	Prefix         string `json:"prefix"`
	Advertised     bool   `json:"advertised"`
	Approved       bool   `json:"approved"`
	ApprovedPolicy bool   `json:"approvedByPolicy"`
}

func routesOf(n *redoubtv1.Node) (out []route) {
	for _, r := range n.GetRoutes() {
		out = append(out, route{r.GetPrefix(), r.GetAdvertised(), r.GetApproved(), r.GetApprovedPolicy()})
	}
	return out
}

func (p *program) routes(n *redoubtv1.Node) {
	var rows [][]string
	for _, r := range n.GetRoutes() {
		offered, approved := "no", "no"
		if r.GetAdvertised() {
			offered = "yes"
		}
		switch {
		case r.GetApproved():
			approved = "by hand"
		case r.GetApprovedPolicy():
			approved = "by the policy"
		}
		rows = append(rows, []string{r.GetPrefix(), offered, approved})
	}
	fmt.Fprintln(p.out)
	p.table(routeColumns, rows)
}

func (p *program) nodeFact() *cobra.Command {
	cmd := &cobra.Command{Use: "fact", Short: "Set facts about nodes, for use in postures"}
	cmd.AddCommand(p.factSet(), p.factUnset())
	return cmd
}

func (p *program) factSet() *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "set NODE custom:NAME VALUE", Short: "Set a fact about a node", Args: cobra.ExactArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if ttl < 0 || ttl%time.Second != 0 {
				return errors.New("--ttl: want whole seconds, such as 24h")
			}
			a, err := p.client().SetFact(cmd.Context(), &redoubtv1.SetFactRequest{Node: args[0], Name: args[1], Value: args[2], TtlSeconds: uint64(ttl / time.Second)})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(nodeOf(a.GetNode()))
			}
			until := ""
			if ttl > 0 {
				until = " until " + clock(time.Now().Add(ttl).Unix())
			}
			fmt.Fprintf(p.out, "%s is set%s\n", args[1], until)
			return nil
		},
	}
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "remove it after `TIME`, such as 24h (default: never)")
	return cmd
}

func (p *program) factUnset() *cobra.Command {
	return &cobra.Command{
		Use: "unset NODE custom:NAME", Short: "Remove a fact", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().UnsetFact(cmd.Context(), &redoubtv1.UnsetFactRequest{Node: args[0], Name: args[1]})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(nodeOf(a.GetNode()))
			}
			fmt.Fprintf(p.out, "%s is no longer set\n", args[1])
			return nil
		},
	}
}

func (p *program) nodeRoutes() *cobra.Command {
	return &cobra.Command{
		Use: "routes NODE", Short: "Show the routes that a node offers, and which are approved", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().GetNode(cmd.Context(), &redoubtv1.GetNodeRequest{Node: args[0]})
			if err != nil {
				return p.explain(err)
			}
			return p.sayRoutes(a.GetNode())
		},
	}
}

func (p *program) sayRoutes(n *redoubtv1.Node) error {
	if p.json {
		return p.print(map[string]any{"node": n.GetName(), "id": n.GetId(), "routes": append([]route{}, routesOf(n)...)})
	}
	if len(n.GetRoutes()) == 0 {
		fmt.Fprintf(p.err, "# %s offers no routes, and none are approved\n", n.GetName())
		return nil
	}
	p.routes(n)
	return nil
}

func (p *program) nodeApproveRoutes() *cobra.Command {
	var none bool
	cmd := &cobra.Command{
		Use: "approve-routes NODE PREFIX...", Short: "Set which routes of a node are approved by hand", Args: cobra.MinimumNArgs(1),
		Long: `Sets which routes of a node are approved by hand: exactly those given here.
0.0.0.0/0 and ::/0 make it an exit node. Routes that the policy approves
(autoApprovers) are approved in addition.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if none == (len(args) > 1) {
				return errors.New("want the prefixes to approve, such as 10.33.0.0/16, or --none")
			}
			a, err := p.client().ApproveRoutes(cmd.Context(), &redoubtv1.ApproveRoutesRequest{Node: args[0], Prefixes: args[1:]})
			if err != nil {
				return p.explain(err)
			}
			return p.sayRoutes(a.GetNode())
		},
	}
	cmd.Flags().BoolVar(&none, "none", false, "withdraw all approvals")
	return cmd
}
