package main

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
	"github.com/redoubt-mesh/redoubt/acl/probe"
)

func listOf(found acl.Diagnostics) []diagnostic {
	list := make([]diagnostic, 0, len(found))
	for _, d := range found {
		list = append(list, diagnostic{d.Severity.String(), uint32(d.Line), uint32(d.Column), d.Path, d.Message})
	}
	return list
}

// inventoryFlag adds the flag for the file that describes a mesh.
func inventoryFlag(cmd *cobra.Command, name *string, required bool) {
	cmd.Flags().StringVar(name, "inventory", "", "`FILE` that describes users and nodes (JSON)")
	if required {
		_ = cmd.MarkFlagRequired("inventory") // fails only for flags that do not exist
	}
}

func (p *program) readInventory(name string) (*inventory.Inventory, error) {
	src, err := p.readUpTo(name, inventory.MaxSize, "an inventory")
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Parse(src, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return inv, nil
}

// load reads a policy. If the policy has errors, load prints them and returns errSaid.
func (p *program) load(name string) (*acl.Policy, error) {
	src, err := p.readFile(name)
	if err != nil {
		return nil, err
	}
	policy, found := acl.Parse(name, src)
	if found.HasErrors() {
		p.tell(name, listOf(found))
		return nil, errSaid
	}
	return policy, nil
}

// loadBoth reads a policy and the inventory of the mesh to try it on.
func (p *program) loadBoth(file, inv string) (*compile.Program, *inventory.Inventory, error) {
	policy, err := p.load(file)
	if err != nil {
		return nil, nil, err
	}
	mesh, err := p.readInventory(inv)
	if err != nil {
		return nil, nil, err
	}
	return mesh.Program(policy), mesh, nil
}

func (p *program) policyCheck() *cobra.Command {
	var inv string
	cmd := &cobra.Command{
		Use: "check FILE", Short: "List every error in a policy file; needs no coordinator", Args: cobra.ExactArgs(1),
		Long: `Lists every error in a policy file, with line and column, and warnings. With
--inventory also the selectors that match nothing, and the nodes that do not
meet the requirements of "admission".

Exit code: 0 without errors, 1 with errors.`,
		RunE: func(_ *cobra.Command, args []string) error {
			src, err := p.readFile(args[0])
			if err != nil {
				return err
			}
			policy, found := acl.Check(args[0], src, time.Now())
			if inv != "" {
				mesh, err := p.readInventory(inv)
				if err != nil {
					return err
				}
				if policy != nil {
					prog := mesh.Program(policy)
					found = append(found, compile.Unresolved(prog, mesh)...)
					found = append(found, compile.AdmissionWarnings(prog, mesh)...)
					found.Sort()
				}
			}
			list := listOf(found)
			if p.json {
				err = p.print(map[string]any{"ok": !found.HasErrors(), "diagnostics": list})
			} else if p.tell(args[0], list); !found.HasErrors() {
				fmt.Fprintf(p.out, "%s: no errors\n", args[0])
			}
			if found.HasErrors() {
				return errSaid
			}
			return err
		},
	}
	inventoryFlag(cmd, &inv, false)
	return cmd
}

// failure is a failed test, as JSON shows it.
type failure struct {
	diagnostic
	Source string `json:"source"`
	Target string `json:"target,omitempty"`
}

func (p *program) policyTest() *cobra.Command {
	var inv string
	cmd := &cobra.Command{
		Use: "test FILE", Short: "Run the tests in a policy file; needs no coordinator", Args: cobra.ExactArgs(1),
		Long: `Runs the tests and sshTests of a policy file against what the nodes of an
inventory would enforce.

Exit code: 0 if all pass, 1 if one fails or the policy does not load.`,
		RunE: func(_ *cobra.Command, args []string) error {
			policy, err := p.load(args[0])
			if err != nil {
				return err
			}
			mesh, err := p.readInventory(inv)
			if err != nil {
				return err
			}
			prog := mesh.Program(policy)
			failed := []failure{}
			for _, f := range append(compile.RunTests(prog, mesh), compile.RunSSHTests(prog, mesh)...) {
				failed = append(failed, failure{listOf(acl.Diagnostics{f.Diagnostic()})[0], f.Source, f.Target})
			}
			tests := len(policy.Tests) + len(policy.SSHTests)
			switch {
			case p.json:
				err = p.print(map[string]any{"ok": len(failed) == 0, "tests": tests, "failures": failed})
			case len(failed) == 0:
				fmt.Fprintf(p.out, "%s: %s\n", args[0], testsHold(tests))
			default:
				for _, f := range failed {
					p.tell(args[0], []diagnostic{f.diagnostic})
				}
			}
			if len(failed) > 0 {
				return errSaid
			}
			return err
		},
	}
	inventoryFlag(cmd, &inv, true)
	return cmd
}

func testsHold(n int) string {
	switch n {
	case 0:
		return "there are no tests"
	case 1:
		return "the test passes"
	}
	return fmt.Sprintf("all %d tests pass", n)
}

func (p *program) policyEval() *cobra.Command {
	var inv, probes string
	cmd := &cobra.Command{
		Use: "eval FILE", Short: "Check whether a policy allows many connections", Args: cobra.ExactArgs(1),
		Long: `Answers questions, a JSON object a line, whether the filter of a node would let
the first packet of a connection pass:

  {"at":"n2","src_ip":"100.64.0.1","dst_ip":"100.64.0.2","proto":"tcp",
   "port":22}                          (in one line)
  {"allowed":true,"rule":"grants[0]","mode":"enforce"}

Exit code: 0; 1 if the policy does not load; 2 if one of the questions was none
(its answer is {"error":"..."}).`,
		RunE: func(_ *cobra.Command, args []string) error {
			prog, mesh, err := p.loadBoth(args[0], inv)
			if err != nil {
				return err
			}
			r := p.in
			if probes != "-" {
				f, err := os.Open(probes)
				if err != nil {
					return err
				}
				defer f.Close()
				r = f
			}
			bad, err := evaluate(prog.On(mesh), mesh, r, p.out)
			if err == nil && bad > 0 {
				err = troubleError{errSaid}
			}
			return err
		},
	}
	inventoryFlag(cmd, &inv, true)
	cmd.Flags().StringVar(&probes, "probes", "", "`FILE` with questions; - for standard input")
	_ = cmd.MarkFlagRequired("probes") // fails only for flags that do not exist
	return cmd
}

// evaluate writes one answer to out for each line of in, and returns the number of lines that are not valid probes. It flushes
// when no more input is buffered, so a client that sends one probe at a time gets each answer before it sends the next.
func evaluate(b *compile.Bound, inv *inventory.Inventory, in io.Reader, out io.Writer) (bad int, err error) {
	r, w := bufio.NewReaderSize(in, probe.MaxLine), bufio.NewWriterSize(out, probe.MaxLine)
	var answer []byte
	for {
		line, readErr := r.ReadSlice('\n')
		tooLong := errors.Is(readErr, bufio.ErrBufferFull)
		for errors.Is(readErr, bufio.ErrBufferFull) {
			_, readErr = r.ReadSlice('\n')
		}
		ended := errors.Is(readErr, io.EOF)
		if readErr != nil && !ended {
			return bad, errors.Join(fmt.Errorf("reading probes: %w", readErr), w.Flush())
		}
		if len(line) > 0 {
			var good bool
			if answer, good = answerTo(answer[:0], b, inv, line, tooLong); !good {
				bad++
			}
			if _, err := w.Write(answer); err != nil {
				return bad, fmt.Errorf("writing answers: %w", err)
			}
		}
		if ended || r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return bad, fmt.Errorf("writing answers: %w", err)
			}
		}
		if ended {
			return bad, nil
		}
	}
}

func answerTo(out []byte, b *compile.Bound, inv *inventory.Inventory, line []byte, tooLong bool) ([]byte, bool) {
	if tooLong {
		return probe.AppendError(out, fmt.Errorf("longer than %d bytes", probe.MaxLine)), false
	}
	q, err := probe.Parse(line)
	at, known := inv.ByName(q.At)
	if err == nil && !known {
		err = fmt.Errorf("at: the inventory has no node %q", cmp.Or(q.At, "(empty)"))
	}
	if err != nil {
		return probe.AppendError(out, err), false
	}
	return probe.AppendVerdict(out, b.Decide(at, q.Src, q.Dst, q.Protocol, q.Port)), true
}
