package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func whoisCommand(p program) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "whois IP",
		Short: "Say who is behind an overlay address",
		Long:  "Says which node an overlay address belongs to, and whose that is. IP:PORT will\ndo as well.",
		Args:  cobra.ExactArgs(1),
	}
	asJSON := jsonFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r, err := client(cmd).Whois(cmd.Context(), &redoubtv1.WhoisRequest{Address: args[0]})
		if err != nil {
			return failed(cmd, err)
		}
		n := r.GetNode()
		if *asJSON {
			return printJSON(p.out, nodeOf(n))
		}
		fmt.Fprintf(p.out, "%s  %s\n%s\n%s\n", n.GetName(), n.GetId(), who(n.GetUser(), n.GetTags()), strings.Join(n.GetAddresses(), "  "))
		return nil
	}
	return cmd
}
