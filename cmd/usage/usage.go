// Package usage gives both programs the same style of command line: help that fits 80 columns, and errors that say what was
// expected and what was probably meant.
package usage

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// width is the number of columns that help fits into.
const width = 80

// Tidy sets up root and every command below it. Call it after all commands have been added.
func Tidy(root *cobra.Command) {
	root.SetUsageFunc(func(c *cobra.Command) error {
		_, err := io.WriteString(c.OutOrStderr(), text(c))
		return err
	})
	root.SetFlagErrorFunc(flagError)
	root.InitDefaultHelpCmd()
	tidy(root)
}

func tidy(c *cobra.Command) {
	for _, sub := range c.Commands() {
		tidy(sub)
	}
	switch {
	case c.Name() == "help":
	case c.HasAvailableSubCommands() && c.RunE == nil && c.Run == nil:
		c.Args = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return fmt.Errorf("unknown command %q%s; `%s --help` lists them", args[0], meant(c, args[0]), c.CommandPath())
		}
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	case c.Args != nil:
		fits := c.Args
		c.Args = func(c *cobra.Command, args []string) error {
			if fits(c, args) == nil {
				return nil
			}
			return fmt.Errorf("%s: want `%s`", count(args), c.UseLine())
		}
	}
}

func count(args []string) string {
	if len(args) == 0 {
		return "missing argument"
	}
	return fmt.Sprintf("wrong number of arguments (%d)", len(args))
}

// wants describes the values of flag types whose parse errors would be in terms of Go.
var wants = map[string]string{
	"bool":     "true or false",
	"duration": "a time such as 90s, 5m or 24h",
	"int":      "a whole number",
	"uint16":   "a number from 0 to 65535",
	"uint32":   "a number from 0 to 4294967295",
	"uint64":   "a whole number, 0 or more",
}

// flagError says what value a flag wants, or where the flags are listed.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		return fmt.Errorf("%w; `%s --help` lists the flags", err, c.CommandPath())
	}
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return err
	}
	f := invalid.GetFlag()
	if want, ok := wants[f.Value.Type()]; ok {
		return fmt.Errorf("--%s %q: want %s", f.Name, invalid.GetValue(), want)
	}
	return err
}

// meant suggests the command nearest to a mistyped name.
func meant(c *cobra.Command, name string) string {
	c.SuggestionsMinimumDistance = 2 // two wrong letters, or two swapped ones
	if near := c.SuggestionsFor(name); len(near) > 0 {
		return fmt.Sprintf(" (did you mean %q?)", near[0])
	}
	return ""
}

// text returns the part of a command's help after its description.
func text(c *cobra.Command) string {
	var b strings.Builder
	b.WriteString("Usage:\n")
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n\nCommands:\n", c.CommandPath())
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				fmt.Fprintf(&b, "  %-*s  %s\n", longest(c), sub.Name(), sub.Short)
			}
		}
	} else {
		fmt.Fprintf(&b, "  %s\n", c.UseLine())
	}
	if c.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", c.Example)
	}
	flags(&b, "Flags", c.LocalFlags())
	flags(&b, "Flags of every command", c.InheritedFlags())
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "\n`%s COMMAND --help` says more.\n", c.CommandPath())
	}
	return b.String()
}

// longest returns the length of the longest name of c's subcommands.
func longest(c *cobra.Command) int {
	n := 0
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			n = max(n, len(sub.Name()))
		}
	}
	return n
}

func flags(w io.Writer, title string, set *pflag.FlagSet) {
	if set.HasAvailableFlags() {
		fmt.Fprintf(w, "\n%s:\n%s", title, trim(set.FlagUsagesWrapped(width)))
	}
}

// trim removes trailing blanks from lines.
func trim(s string) string {
	lines := slices.Collect(strings.SplitSeq(s, "\n"))
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}
