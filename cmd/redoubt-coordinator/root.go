package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// maxAnswer limits the size of the files that read reads, in bytes.
const maxAnswer = 1 << 20

func (p *program) rootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "root", Short: "Replace the mesh's root, or move its key offline",
		Long: `All machines trust the root; its key signs the intermediate with which the
coordinator issues certificates. Both can be replaced while the mesh runs, and
the root's key can be moved off this machine.`,
	}
	cmd.AddCommand(p.rootList(), p.rootRotate(), p.rootRetire(), p.rootExport(), p.rootRequest(), p.rootSign(), p.rootInstall())
	return cmd
}

type rootJSON struct {
	Fingerprint string `json:"fingerprint"`
	Since       string `json:"since,omitempty"`
	Expires     string `json:"expires"`
	State       string `json:"state"`
	KeyHere     bool   `json:"keyHere"`
}

type rootsJSON struct {
	Roots        []rootJSON `json:"roots"`
	Intermediate struct {
		Serial    string `json:"serial"`
		Expires   string `json:"expires"`
		Due       string `json:"due"`
		Requested bool   `json:"requested"`
	} `json:"intermediate"`
	Nodes    []string `json:"nodes"`
	Tokens   []string `json:"tokens"`
	Warnings []string `json:"warnings"`
}

// States of roots, for people.
const (
	rootIssues  = "issues"
	rootTrusted = "trusted"
)

func rootsOf(r *redoubtv1.GetRootsResponse) rootsJSON {
	out := rootsJSON{Roots: []rootJSON{}, Nodes: orNone(r.GetNodes()), Tokens: orNone(r.GetTokens()), Warnings: orNone(r.GetWarnings())}
	for _, x := range r.GetRoots() {
		state := rootTrusted
		if x.GetIssues() {
			state = rootIssues
		}
		out.Roots = append(out.Roots, rootJSON{
			Fingerprint: x.GetFingerprint(), Since: stamp(x.GetSince()), Expires: stamp(x.GetExpires()), State: state, KeyHere: x.GetKeyHere(),
		})
	}
	i := &out.Intermediate
	i.Serial, i.Expires, i.Due, i.Requested = r.GetIntermediate(), stamp(r.GetIntermediateExpires()), stamp(r.GetIntermediateDue()), r.GetRequested()
	return out
}

// orNone replaces nil by an empty list, so that JSON has [] instead of null.
func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// showRoots prints the roots for people.
func (p *program) showRoots(r *redoubtv1.GetRootsResponse) {
	var rows [][]string
	for i, x := range rootsOf(r).Roots {
		key := "offline"
		switch {
		case x.KeyHere:
			key = "here"
		case i > 0:
			key = "not needed"
		}
		rows = append(rows, []string{x.Fingerprint[:16], x.State, key, clock(r.GetRoots()[i].GetSince()), clock(r.GetRoots()[i].GetExpires())})
	}
	p.table(rootColumns, rows)
	fmt.Fprintf(p.out, "intermediate %.16s, until %s\n  to be replaced from %s on\n", r.GetIntermediate(), clock(r.GetIntermediateExpires()), clock(r.GetIntermediateDue()))
	if r.GetRequested() {
		fmt.Fprintln(p.out, "the next one is requested, but the answer is not installed yet")
	}
	if len(r.GetNodes())+len(r.GetTokens()) > 0 {
		fmt.Fprintf(p.out, "%s and %s still depend on the old root:\n", machines(uint32(len(r.GetNodes()))), codes(len(r.GetTokens())))
		for _, n := range r.GetNodes() {
			fmt.Fprintf(p.out, "  node %s\n", n)
		}
		for _, t := range r.GetTokens() {
			fmt.Fprintf(p.out, "  join code %s\n", t)
		}
	}
	p.warn(r.GetWarnings())
}

// warn prints what an administrator must do soon.
func (p *program) warn(list []string) {
	for _, w := range list {
		fmt.Fprintf(p.err, "# warning: %s\n", w)
	}
}

func codes(n int) string {
	if n == 1 {
		return "1 join code"
	}
	return fmt.Sprintf("%d join codes", n)
}

func (p *program) rootList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the trusted roots and the state of their keys", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().GetRoots(cmd.Context(), &redoubtv1.GetRootsRequest{})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(rootsOf(a))
			}
			p.showRoots(a)
			return nil
		},
	}
}

func (p *program) rootRotate() *cobra.Command {
	return &cobra.Command{
		Use: "rotate", Short: "Create a new root; the old one stays trusted while it is needed", Args: cobra.NoArgs,
		Long: `Creates a new root, which the old one cross-signs, and issues all certificates
under it from now on. Nothing is interrupted: machines accept the new root when
they renew, and older join codes stay valid. When no machine and no join code
depends on the old root any more, it is retired automatically ('root list').`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().RotateRoot(cmd.Context(), &redoubtv1.RotateRootRequest{})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(rootsOf(a.GetRoots()))
			}
			fmt.Fprintln(p.out, "There is a new root. Make a new copy of the keys:")
			fmt.Fprintf(p.out, "  %s\n", p.keys())
			p.showRoots(a.GetRoots())
			return nil
		},
	}
}

func (p *program) rootRetire() *cobra.Command {
	q := &redoubtv1.RetireRootRequest{}
	cmd := &cobra.Command{
		Use: "retire", Short: "Stop trusting the old root", Args: cobra.NoArgs,
		Long: `Ends the trust in the root before the newest one. This happens automatically
when nothing depends on it any more. It is refused, naming what still does.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().RetireRoot(cmd.Context(), q)
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(map[string]any{"nodes": orNone(a.GetNodes()), "tokens": orNone(a.GetTokens())})
			}
			fmt.Fprintln(p.out, "the old root is retired: machines stop trusting it when they renew")
			for _, n := range a.GetNodes() {
				fmt.Fprintf(p.out, "  node %s may have to join again\n", n)
			}
			for _, t := range a.GetTokens() {
				fmt.Fprintf(p.out, "  join code %s is void\n", t)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&q.Force, "force", false, "retire it even if something depends on it")
	return cmd
}

func (p *program) rootRequest() *cobra.Command {
	return &cobra.Command{
		Use: "request FILE", Short: "Request the next intermediate from the machine with the root's key", Args: cobra.ExactArgs(1),
		Long: `Creates the key of the next intermediate, which stays here, and writes a request
for the root to sign to FILE ('-' for standard output). It contains no secrets.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := p.client().RequestIntermediate(cmd.Context(), &redoubtv1.RequestIntermediateRequest{})
			if err != nil {
				return p.explain(err)
			}
			if err := p.write(args[0], a.GetRequest()); err != nil {
				return err
			}
			fmt.Fprintf(p.err, "# on the machine with the root's key: redoubt-coordinator root sign --key KEY %s --out ANSWER\n", args[0])
			return nil
		},
	}
}

func (p *program) rootInstall() *cobra.Command {
	return &cobra.Command{
		Use: "install ANSWER", Short: "Install the intermediate that the root has signed", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := p.read(args[0])
			if err != nil {
				return err
			}
			a, err := p.client().InstallIntermediate(cmd.Context(), &redoubtv1.InstallIntermediateRequest{Answer: b})
			if err != nil {
				return p.explain(err)
			}
			if p.json {
				return p.print(struct {
					Rotated bool `json:"rotated"`
					rootsJSON
				}{a.GetRotated(), rootsOf(a.GetRoots())})
			}
			if a.GetRotated() {
				fmt.Fprintln(p.out, "the intermediate is installed, and there is a new root")
			} else {
				fmt.Fprintln(p.out, "the intermediate is installed")
			}
			p.showRoots(a.GetRoots())
			return nil
		},
	}
}

// read reads a small file, or standard input if name is "-".
func (p *program) read(name string) ([]byte, error) {
	in := p.in
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxAnswer+1))
	if err == nil && len(b) > maxAnswer {
		err = fmt.Errorf("%s is longer than %d bytes", name, maxAnswer)
	}
	return b, err
}

// write writes a file, or standard output if name is "-".
func (p *program) write(name string, b []byte) error {
	if name == "-" {
		_, err := p.out.Write(b)
		return err
	}
	_, err := replace(name, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	return err
}

// fresh returns an error if the file already exists: it may be the only copy of a key.
func fresh(name string) error {
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s already exists, and may be a key: move it away, or give another file", name)
	}
	return nil
}
