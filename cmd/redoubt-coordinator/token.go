package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// token is a token as JSON shows it.
type token struct {
	ID        string   `json:"id"`
	User      string   `json:"user,omitempty"`
	Tags      []string `json:"tags,omitempty"`
	Reusable  bool     `json:"reusable"`
	Ephemeral bool     `json:"ephemeral"`
	Created   string   `json:"created"`
	Expires   string   `json:"expires"`
	Uses      uint32   `json:"uses"`
	State     string   `json:"state"`
	Replace   string   `json:"replace,omitempty"`
	Relay     bool     `json:"relay,omitempty"`
}

func tokenOf(t *redoubtv1.Token) token {
	return token{
		ID: t.GetId(), User: t.GetUser(), Tags: t.GetTags(), Reusable: t.GetReusable(), Ephemeral: t.GetEphemeral(),
		Created: stamp(t.GetCreated()), Expires: stamp(t.GetExpires()), Uses: t.GetUses(), State: t.GetState(),
		Replace: t.GetReplace(), Relay: t.GetRelay(),
	}
}

func (p *program) token() *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Manage join codes"}
	cmd.AddCommand(p.tokenCreate(), p.tokenList(), p.tokenRevoke())
	return cmd
}

func (p *program) tokenCreate() *cobra.Command {
	q := &redoubtv1.CreateTokenRequest{}
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "create", Short: "Create a join code, and print it this once", Args: cobra.NoArgs,
		Example: "  redoubt-coordinator token create --user ann@example.com\n  redoubt-coordinator token create --tag tag:server --reusable --ttl 24h",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl <= 0 {
				return fmt.Errorf("--ttl %v: want a time such as 1h", ttl)
			}
			q.TtlSeconds = uint64((ttl + time.Second - 1) / time.Second)
			a, err := p.client().CreateToken(cmd.Context(), q)
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(struct {
					Code  string `json:"code"`
					Token token  `json:"token"`
				}{a.GetCode(), tokenOf(a.GetToken())})
			}
			fmt.Fprintln(p.out, a.GetCode())
			fmt.Fprintln(p.err, describe(a.GetToken()))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&q.Tags, "tag", nil, "role of the machines: `tag:NAME` (may be repeated)")
	f.StringVar(&q.User, "user", "", "`LOGIN` name of the user who owns the machines")
	f.BoolVar(&q.Reusable, "reusable", false, "valid for any number of machines")
	f.BoolVar(&q.Ephemeral, "ephemeral", false, "remove the machines after half an hour offline")
	f.StringVar(&q.Replace, "replace", "", "`NODE` that the new machine becomes, replacing the old machine")
	f.BoolVar(&q.Relay, "relay", false, "for a relay, to be used with `redoubt relay CODE`")
	f.DurationVar(&ttl, "ttl", time.Hour, "how long the code is valid")
	return cmd
}

func describe(t *redoubtv1.Token) string {
	machines := "one machine"
	if t.GetReusable() {
		machines = "any number of machines"
	}
	hint, use := "", "sudo redoubt up CODE"
	if t.GetRelay() {
		use = "sudo redoubt relay CODE"
	}
	if t.GetReplace() != "" {
		hint = "\n# it becomes node " + t.GetReplace() + ", and the old machine is removed from the mesh"
	} else if t.GetUser() == "" && len(t.GetTags()) == 0 && !t.GetRelay() {
		hint = "\n# without --user and --tag, only rules for * or for an address apply"
	}
	return fmt.Sprintf("# token %s: for %s of %s, until %s%s\n# on the machine: %s",
		t.GetId(), machines, whose(t), clock(t.GetExpires()), hint, use)
}

func whose(t *redoubtv1.Token) string {
	if t.GetRelay() {
		return "a relay"
	}
	return who(t.GetUser(), t.GetTags())
}

func who(user string, tags []string) string {
	switch {
	case user != "":
		return user
	case len(tags) > 0:
		return strings.Join(tags, ",")
	}
	return "nobody"
}

func (p *program) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List join tokens", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().ListTokens(cmd.Context(), &redoubtv1.ListTokensRequest{})
			if err != nil {
				return p.explain(err)
			}
			list := make([]token, 0, len(a.GetTokens()))
			var rows [][]string
			for _, t := range a.GetTokens() {
				list = append(list, tokenOf(t))
				kind := "once"
				if t.GetReusable() {
					kind = "reusable"
				}
				rows = append(rows, []string{t.GetId(), whose(t), kind, fmt.Sprint(t.GetUses()), t.GetState(), clock(t.GetExpires())})
			}
			if p.json {
				return p.print(map[string]any{"tokens": list})
			}
			if len(rows) == 0 {
				fmt.Fprintln(p.err, "# there are no join codes; create one with `token create`")
				return nil
			}
			p.table(tokenColumns, rows)
			return nil
		},
	}
}

func (p *program) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Revoke a join code; machines that used it stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := p.client().RevokeToken(cmd.Context(), &redoubtv1.RevokeTokenRequest{Id: args[0]}); err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(map[string]string{"id": args[0], "state": "revoked"})
			}
			fmt.Fprintf(p.out, "token %s is revoked\n", args[0])
			return nil
		},
	}
}
