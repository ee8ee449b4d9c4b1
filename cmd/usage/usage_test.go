package usage

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

func tool() *cobra.Command {
	root := &cobra.Command{Use: "tool", Short: "A tool", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().String("config", "", "`FILE` with settings")
	nothing := func(*cobra.Command, []string) error { return nil }
	node := &cobra.Command{Use: "node", Short: "The nodes"}
	show := &cobra.Command{Use: "show NODE", Short: "Show a node", Args: cobra.ExactArgs(1), RunE: nothing}
	show.Flags().Bool("long", false, "say everything that is known of it, and of those that it knows, and of theirs")
	show.Flags().Duration("for", 0, "how long")
	node.AddCommand(show, &cobra.Command{Use: "list", Short: "List the nodes", Args: cobra.NoArgs, RunE: nothing})
	root.AddCommand(node, &cobra.Command{Use: "version", Short: "Say the version", Args: cobra.NoArgs, RunE: nothing})
	root.CompletionOptions.DisableDefaultCmd = true
	Tidy(root)
	return root
}

func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := tool()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	for line := range strings.Lines(out.String()) {
		if n := len(strings.TrimRight(line, "\n")); n > width {
			t.Errorf("%q: a line of %d columns: %s", args, n, line)
		}
	}
	return out.String(), err
}

func TestHelp(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"", `A tool

Usage:
  tool COMMAND

Commands:
  node     The nodes
  version  Say the version

Flags:
      --config FILE   FILE with settings
  -h, --help          help for tool

` + "`tool COMMAND --help` says more.\n"},
		{"node show --help", `Show a node

Usage:
  tool node show NODE [flags]

Flags:
      --for duration   how long
  -h, --help           help for show
      --long           say everything that is known of it, and of those
                       that it knows, and of theirs

Flags of every command:
      --config FILE   FILE with settings
`},
	} {
		got, err := run(t, strings.Fields(c.args)...)
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q: (-want +got)\n%s", c.args, d)
		}
	}
	if out, err := run(t, "help", "node"); err != nil || !strings.HasPrefix(out, "The nodes\n") {
		t.Errorf("help node: %v\n%s", err, out)
	}
}

func TestErrors(t *testing.T) {
	for args, want := range map[string]string{
		"nod":          "unknown command \"nod\" (did you mean \"node\"?); `tool --help` lists them",
		"node frob":    "unknown command \"frob\"; `tool node --help` lists them",
		"node show":    "missing argument: want `tool node show NODE [flags]`",
		"node list x":  "wrong number of arguments (1): want `tool node list [flags]`",
		"version x y":  "wrong number of arguments (2): want `tool version [flags]`",
		"node show a":  "",
		"node list":    "",
		"ndoe":         "unknown command \"ndoe\" (did you mean \"node\"?); `tool --help` lists them",
		"--nope":       "unknown flag: --nope; `tool --help` lists the flags",
		"node --nope":  "unknown flag: --nope; `tool node --help` lists the flags",
		"node show -x": "unknown shorthand flag: 'x' in -x; `tool node show --help` lists the flags",

		"node show a --long=x": `--long "x": want true or false`,
		"node show a --for 5":  `--for "5": want a time such as 90s, 5m or 24h`,
		"node show a --config": "flag needs an argument: --config",
	} {
		_, err := run(t, strings.Fields(args)...)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s\nwant %s", args, got, want)
		}
	}
}
