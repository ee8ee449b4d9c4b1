package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func whoisCommand(p program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "whois IP",
		Short: "Show whose an overlay address is",
		Long: "Shows which node has an overlay address, whose node that is, and which\n" +
			"capabilities the policy grants it on this node. Accepts IP:PORT too.",
		Args: cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := client(cmd).Whois(cmd.Context(), &redoubtv1.WhoisRequest{Address: args[0]})
		if err != nil {
			return failed(cmd, err)
		}
		n := r.GetNode()
		if *asJSON {
			return printJSON(p.out, whoisOf(r))
		}
		fmt.Fprintf(p.out, "%s  %s\n%s\n%s\n", n.GetName(), n.GetId(), who(n.GetUser(), n.GetTags()), strings.Join(n.GetAddresses(), "  "))
		for _, c := range r.GetCapabilities() {
			fmt.Fprintln(p.out, strings.Join(append([]string{c.GetName()}, c.GetValues()...), " "))
		}
		return nil
	}
	return cmd
}

// whoisJSON is what `whois --json` prints. The values of capabilities are JSON themselves.
type whoisJSON struct {
	nodeJSON
	Capabilities map[string][]json.RawMessage `json:"capabilities"`
}

func whoisOf(r *redoubtv1.WhoisResponse) whoisJSON {
	out := whoisJSON{nodeOf(r.GetNode()), map[string][]json.RawMessage{}}
	for _, c := range r.GetCapabilities() {
		values := []json.RawMessage{}
		for _, v := range c.GetValues() {
			values = append(values, json.RawMessage(v))
		}
		out.Capabilities[c.GetName()] = values
	}
	return out
}
