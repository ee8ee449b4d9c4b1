package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/explain"
	"github.com/redoubt-mesh/redoubt/proto"
)

// explanation is an answer of policyExplain as JSON shows it.
type explanation struct {
	From    string     `json:"from"`
	FromIP  netip.Addr `json:"fromAddress"`
	To      string     `json:"to"`
	ToIP    netip.Addr `json:"toAddress"`
	Service string     `json:"service"`
	Allowed bool       `json:"allowed"`
	Mode    string     `json:"mode"`
	Rule    string     `json:"rule,omitempty"`
	Line    int        `json:"line,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Nearest []nearest  `json:"nearest,omitempty"`
	Alike   int        `json:"alike"`
}

type nearest struct {
	Rule    string   `json:"rule"`
	Line    int      `json:"line"`
	Missing []string `json:"missing"`
}

func (p *program) policyExplain() *cobra.Command {
	var inv, protocol string
	cmd := &cobra.Command{
		Use: "explain FILE SRC DST:PORT", Short: "Explain why a connection is allowed, or what is missing", Args: cobra.ExactArgs(3),
		Long: `Says which rule allows a connection, which one denies it, or which rules are
nearest and what they miss. SRC and DST are an address, the name of a node, a
user (by name or login: all nodes) or a tag. An IPv6 address before a port is in
brackets. Protocols without ports are asked for as DST.

Exit code: 0 if all of it is allowed, 1 if not, 2 if it cannot be told.`,
		RunE: func(_ *cobra.Command, args []string) error {
			answers, service, err := p.explained(args, inv, protocol)
			if err != nil {
				return troubleError{err}
			}
			out, allowed := make([]explanation, 0, len(answers)), len(answers) > 0
			for _, a := range answers {
				e := explanation{
					From: a.From.String(), FromIP: a.From.Addr, To: a.To.String(), ToIP: a.To.Addr, Service: service,
					Allowed: a.Verdict.Allowed, Mode: string(a.Verdict.Mode), Reason: a.Reason, Alike: a.Alike,
				}
				if r := a.Verdict.Rule; r != nil {
					e.Rule, e.Line = r.Path, r.Line
				}
				for _, n := range a.Nearest {
					e.Nearest = append(e.Nearest, nearest{n.Rule.Path, n.Rule.Line, n.Missing})
				}
				allowed = allowed && e.Allowed
				out = append(out, e)
			}
			if p.json {
				err = p.print(map[string]any{"allowed": allowed, "answers": out})
			} else {
				p.tellAnswers(args[0], out)
			}
			if err == nil && !allowed {
				err = errSaid
			}
			return err
		},
	}
	inventoryFlag(cmd, &inv, true)
	cmd.Flags().StringVar(&protocol, "proto", "tcp", "`NAME` or number of the protocol")
	return cmd
}

func (p *program) explained(args []string, inv, protocol string) ([]explain.Answer, string, error) {
	number, err := acl.ParseProtocol(protocol)
	if err != nil {
		return nil, "", err
	}
	target, port, err := splitTarget(args[2], number)
	if err != nil {
		return nil, "", err
	}
	policy, err := p.load(args[0])
	if err != nil {
		return nil, "", err
	}
	mesh, err := p.readInventory(inv)
	if err != nil {
		return nil, "", err
	}
	book := explain.Open(policy, mesh)
	from, err := book.Find(args[1])
	if err != nil {
		return nil, "", err
	}
	to, err := book.Find(target)
	if err != nil {
		return nil, "", err
	}
	answers := book.Explain(from, to, number, port)
	if len(answers) == 0 {
		return nil, "", fmt.Errorf("%s and %s are the same node or of different families: nothing to open between them", args[1], target)
	}
	return answers, explain.ServiceName(proto.Service{Proto: number, First: port, Last: port}), nil
}

// splitTarget splits the port off a destination, if the protocol has ports.
func splitTarget(text string, protocol uint8) (string, uint16, error) {
	i := strings.LastIndexByte(text, ':')
	if !proto.HasPorts(protocol) {
		return strings.Trim(strings.TrimSuffix(text, ":*"), "[]"), 0, nil
	}
	if i < 0 {
		return "", 0, fmt.Errorf("%q has no port; want DST:PORT", text)
	}
	port, err := strconv.ParseUint(text[i+1:], 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no port; want DST:PORT, with a number from 0 to 65535", text[i+1:])
	}
	return strings.Trim(text[:i], "[]"), uint16(port), nil
}

func (p *program) tellAnswers(file string, list []explanation) {
	paint := p.paint()
	for _, e := range list {
		verdict := paint.wrap("31", "refused")
		if e.Allowed {
			verdict = paint.wrap("32", "allowed")
		}
		fmt.Fprintf(p.out, "%s  %s\n", verdict, e.Service)
		p.wrapped("  from  ", []string{fmt.Sprintf("%s, %s", e.From, e.FromIP)}, "")
		p.wrapped("  to    ", []string{fmt.Sprintf("%s, %s", e.To, e.ToIP)}, "")
		if e.Alike > 0 {
			fmt.Fprintf(p.out, "  and %d more like it between them\n", e.Alike)
		}
		switch {
		case e.Allowed && e.Mode == "monitor":
			fmt.Fprintf(p.out, "  only monitored, by %s (%s:%d): no rule allows it\n", e.Rule, file, e.Line)
		case e.Allowed:
			fmt.Fprintf(p.out, "  by %s (%s:%d)\n", e.Rule, file, e.Line)
		case e.Rule != "":
			fmt.Fprintf(p.out, "  denied by %s (%s:%d)\n", e.Rule, file, e.Line)
		}
		if e.Reason != "" {
			p.wrapped("  ", strings.Fields(e.Reason), " ")
		}
		for _, n := range e.Nearest {
			fmt.Fprintf(p.out, "  not by %s (%s:%d)\n", n.Rule, file, n.Line)
			for _, m := range n.Missing {
				p.wrapped("    ", strings.Fields(m), " ")
			}
		}
	}
}

// wrapped prints words after a title, wrapped at 80 columns; further lines are indented by the width of the title.
func (p *program) wrapped(title string, words []string, sep string) {
	const width = 80
	line, empty := title, true
	for i, w := range words {
		if i < len(words)-1 {
			w += strings.TrimRight(sep, " ")
		}
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) > width {
			fmt.Fprintln(p.out, line)
			line, empty = strings.Repeat(" ", len(title)), true
		}
		if !empty {
			line += " "
		}
		line, empty = line+w, false
	}
	fmt.Fprintln(p.out, line)
}
