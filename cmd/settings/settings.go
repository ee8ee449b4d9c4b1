// Package settings makes every flag of a cobra program settable by an environment variable and in a HuJSON file. In order of
// precedence:
//
//	--cert-lifetime 1h          the command line
//	REDOUBT_CERT_LIFETIME=1h    the environment
//	{"cert-lifetime": "1h"}     the file named by --config or REDOUBT_CONFIG
//	the flag's default
//
// A flag's name means the same in every command of a program, so the file is flat, and a daemon and its client commands can share
// one. The whole file is read and checked before a command runs: a key that no command knows, a value of the wrong type or a
// syntax error is reported with line and column, and nothing runs.
package settings

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Prefix is the prefix of every environment variable.
const Prefix = "REDOUBT_"

const configFlag = "config"

// Bind adds --config to root and makes every command below it read its flags from the environment and the file as well. Commands
// must not set their own PersistentPreRunE. lookup is os.LookupEnv, except in tests.
func Bind(root *cobra.Command, lookup func(string) (string, bool)) {
	root.PersistentFlags().String(configFlag, "", "`FILE` with settings (HuJSON; keys are names of flags)")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return resolve(cmd, lookup) }
}

// Variable returns the name of the environment variable for a flag.
func Variable(flag string) string {
	return Prefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// resolve sets the flags that the command line did not, first from the environment, then from the file.
func resolve(cmd *cobra.Command, lookup func(string) (string, bool)) error {
	mine := cmd.Flags()
	given := make(map[string]bool) // by the command line or the environment
	mine.Visit(func(f *pflag.Flag) { given[f.Name] = true })

	var failed error
	mine.VisitAll(func(f *pflag.Flag) {
		text, ok := lookup(Variable(f.Name))
		if !ok || given[f.Name] || failed != nil || internal(f.Name) {
			return
		}
		given[f.Name] = true
		if err := setText(mine, f, text); err != nil {
			failed = fmt.Errorf("%s: %w", Variable(f.Name), err)
		}
	})
	if failed != nil {
		return failed
	}
	path, err := mine.GetString(configFlag)
	if err != nil || path == "" {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	defer file.Close()
	entries, err := parse(path, file)
	if err != nil {
		return err
	}
	return apply(entries, path, known(cmd.Root()), mine, given)
}

// internal reports whether a flag cannot be set by the environment or the file.
func internal(name string) bool { return name == "help" || name == "version" }

// known collects the flags of all commands, by name.
func known(root *cobra.Command) map[string][]*pflag.Flag {
	all := make(map[string][]*pflag.Flag)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if !internal(f.Name) && f.Name != configFlag && !slices.Contains(all[f.Name], f) {
				all[f.Name] = append(all[f.Name], f)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	return all
}

// apply checks every entry, including those for other commands, and sets their flags unless they are in given.
func apply(entries []entry, path string, all map[string][]*pflag.Flag, mine *pflag.FlagSet, given map[string]bool) error {
	for _, e := range entries {
		flags := all[e.key]
		if len(flags) == 0 {
			return fmt.Errorf("%s:%d:%d: unknown key %q%s", path, e.line, e.column, e.key, nearest(e.key, all))
		}
		for _, f := range flags {
			if given[f.Name] && mine.Lookup(f.Name) == f {
				continue
			}
			if err := setValues(f, e); err != nil {
				return fmt.Errorf("%s:%d:%d: %q: %w", path, e.line, e.column, e.key, err)
			}
		}
	}
	return nil
}

func setText(set *pflag.FlagSet, f *pflag.Flag, text string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		parts := strings.Split(text, ",")
		if text == "" {
			parts = nil
		}
		if err := list.Replace(parts); err != nil {
			return err
		}
		f.Changed = true
		return nil
	}
	return set.Set(f.Name, text)
}

func setValues(f *pflag.Flag, e entry) error {
	list, isList := f.Value.(pflag.SliceValue)
	switch {
	case isList:
		if err := list.Replace(e.values); err != nil {
			return err
		}
	case e.list:
		return fmt.Errorf("takes one value, not a list")
	default:
		if f.Value.Type() != "bool" && e.bare == "bool" || f.Value.Type() == "bool" && e.bare != "bool" {
			return fmt.Errorf("want a %s", f.Value.Type())
		}
		if err := f.Value.Set(e.values[0]); err != nil {
			return fmt.Errorf("%q: %w", e.values[0], err)
		}
	}
	f.Changed = true
	return nil
}

// nearest suggests the known key with the longest common prefix.
func nearest(key string, all map[string][]*pflag.Flag) string {
	best, length := "", 1
	for name := range all {
		n := 0
		for n < len(name) && n < len(key) && name[n] == key[n] {
			n++
		}
		if n > length || n == length && best != "" && name < best {
			best, length = name, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}
