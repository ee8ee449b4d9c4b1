// Package usage gives both programs the same command lines: help in 80 columns, and errors that say what was expected and
// what was probably meant.
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

// width is what help fits in.
const width = 80

// Tidy takes root and every command below it, once all of them are there.
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

// wants are the values of flags whose parsers answer in the terms of Go.
var wants = map[string]string{
	"bool":     "true or false",
	"duration": "a time such as 90s, 5m or 24h",
	"int":      "a whole number",
	"uint16":   "a number from 0 to 65535",
	"uint32":   "a number from 0 to 4294967295",
	"uint64":   "a whole number, 0 or more",
}

// flagError says what a flag wants, or where the flags are listed.
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

// meant suggests the command that a mistyped name is nearest to.
func meant(c *cobra.Command, name string) string {
	c.SuggestionsMinimumDistance = 2 // two letters wrong, or swapped
	if near := c.SuggestionsFor(name); len(near) > 0 {
		return fmt.Sprintf(" (did you mean %q?)", near[0])
	}
	return ""
}

// text is what a command's help says after its description.
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

// longest is the length of the longest name of a command below c.
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

// trim removes blanks at the ends of lines.
func trim(s string) string {
	lines := slices.Collect(strings.SplitSeq(s, "\n"))
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}
