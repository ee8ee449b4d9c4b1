package posture

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// firewall reports whether unsolicited incoming packets are dropped. The mesh's device, whose packets are filtered already,
// needs no firewall.
func firewall(device string) func(context.Context, Host) []Reading {
	return func(ctx context.Context, h Host) []Reading {
		chains, err := h.Filters()
		if err != nil {
			return []Reading{unknown(fact.FirewallOn, err.Error())}
		}
		for _, legacy := range []struct{ names, program, family string }{
			{"proc/net/ip_tables_names", "iptables-legacy-save", "ip"},
			{"proc/net/ip6_tables_names", "ip6tables-legacy-save", "ip6"},
		} {
			if !slices.Contains(strings.Fields(h.text(legacy.names)), "filter") {
				continue
			}
			b, err := h.Run(ctx, legacy.program, "-t", "filter")
			if errors.Is(err, fs.ErrNotExist) {
				b, err = h.Run(ctx, strings.Replace(legacy.program, "-legacy", "", 1), "-t", "filter")
			}
			if err != nil {
				return []Reading{unknown(fact.FirewallOn, err.Error())}
			}
			chains = append(chains, iptablesChains(b, legacy.family)...)
		}
		return []Reading{judgeFirewall(chains, reachableV6(h.text("proc/net/if_inet6"), device))}
	}
}

// judgeFirewall requires a dropping default in each family by which strangers can reach the host.
func judgeFirewall(chains []osnet.FilterChain, v6 bool) Reading {
	by4, by6 := stopper(chains, "ip"), stopper(chains, "ip6")
	switch {
	case by4 == "" && by6 == "":
		return yesNo(fact.FirewallOn, false, "incoming packets are not dropped by default")
	case by4 == "":
		return yesNo(fact.FirewallOn, false, "incoming packets are not dropped by default by IPv4")
	case v6 && by6 == "":
		return yesNo(fact.FirewallOn, false, "incoming packets are not dropped by default by IPv6")
	}
	return yesNo(fact.FirewallOn, true, by4)
}

// stopper returns a chain that drops incoming packets of a family that no rule matches; empty if there is none.
func stopper(chains []osnet.FilterChain, family string) string {
	w := walker{chains, maxSteps}
	for i := range chains {
		c := &chains[i]
		if !c.Input || c.Family != family && c.Family != "inet" {
			continue
		}
		if end := w.walk(c, 0); end == stops || end == goesOn && c.Drops {
			return fmt.Sprintf("%s %s %s", c.Family, c.Table, c.Name)
		}
	}
	return ""
}

// end is what happens in a chain to a packet that meets no condition.
type end uint8

const (
	goesOn end = iota // it reaches the end of the chain, or returns
	stops
	passes
)

const (
	// maxJumps is how deeply chains may be nested: the kernel has the same limit.
	maxJumps = 16
	// maxSteps is how many rules are followed, since chains may jump to one another again and again. A firewall with more is
	// not one that anybody could vouch for.
	maxSteps = 100_000
)

// walker follows a packet through chains.
type walker struct {
	chains []osnet.FilterChain
	left   int // steps left, of maxSteps
}

func (w *walker) walk(c *osnet.FilterChain, depth int) end {
	if depth > maxJumps {
		return goesOn
	}
	for _, r := range c.Rules {
		if w.left--; w.left < 0 {
			return passes
		}
		if r.Conditional {
			continue
		}
		switch r.Verdict {
		case osnet.VerdictDrop:
			return stops
		case osnet.VerdictAccept:
			return passes
		case osnet.VerdictReturn:
			return goesOn
		case osnet.VerdictJump, osnet.VerdictGoto:
			i := slices.IndexFunc(w.chains, func(x osnet.FilterChain) bool {
				return x.Name == r.Target && x.Table == c.Table && x.Family == c.Family
			})
			if i < 0 {
				continue
			}
			if e := w.walk(&w.chains[i], depth+1); e != goesOn || r.Verdict == osnet.VerdictGoto {
				return e
			}
		}
	}
	return goesOn
}

// reachableV6 reports, from /proc/net/if_inet6, whether the host has a global IPv6 address on a device other than the mesh's.
func reachableV6(table, mesh string) bool {
	for _, f := range fields([]byte(table), 6) {
		if f[3] == "00" && f[5] != "lo" && f[5] != mesh {
			return true
		}
	}
	return false
}

// iptablesChains parses the filter table in the output of iptables-save.
func iptablesChains(b []byte, family string) (out []osnet.FilterChain) {
	at := map[string]int{}
	inFilter := false
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxFile)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if table, ok := strings.CutPrefix(line, "*"); ok {
			inFilter = table == "filter"
		}
		f := words(line)
		switch {
		case !inFilter || len(f) < 2:
		case strings.HasPrefix(f[0], ":"):
			name := f[0][1:]
			at[name] = len(out)
			out = append(out, osnet.FilterChain{Family: family, Table: "filter", Name: name, Input: name == "INPUT", Drops: f[1] == "DROP"})
		case f[0] == "-A":
			if i, ok := at[f[1]]; ok {
				out[i].Rules = append(out[i].Rules, iptablesRule(f[2:]))
			}
		}
	}
	return out
}

// iptablesRule parses what follows the name of the chain. Options of targets come after the target.
func iptablesRule(f []string) (r osnet.FilterRule) {
	for i := 0; i < len(f); i++ {
		next := ""
		if i+1 < len(f) {
			next = f[i+1]
		}
		switch {
		case f[i] == "-j" || f[i] == "-g":
			r.Verdict, r.Target = iptablesVerdict(f[i] == "-g", next)
			return r
		case f[i] == "-m" && next == "comment", f[i] == "--comment":
			i++
		case f[i] == "-c":
			i += 2
		default:
			r.Conditional = true
		}
	}
	return r
}

func iptablesVerdict(leaves bool, target string) (verdict, to string) {
	switch {
	case leaves:
		return osnet.VerdictGoto, target
	case target == "DROP" || target == "REJECT":
		return osnet.VerdictDrop, ""
	case target == "ACCEPT" || target == "NFQUEUE" || target == "QUEUE": // a queue is judged by a program that nobody vouches for
		return osnet.VerdictAccept, ""
	case target == "RETURN":
		return osnet.VerdictReturn, ""
	}
	// A target such as LOG is not a chain, and is skipped.
	return osnet.VerdictJump, target
}

// words splits a line as a shell that only knows double quotes would.
func words(line string) (out []string) {
	var word strings.Builder
	some, quoted := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted, some = !quoted, true
		case c == '\\' && quoted && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case (c == ' ' || c == '\t') && !quoted:
			if some {
				out = append(out, word.String())
				word.Reset()
			}
			some = false
		default:
			word.WriteByte(c)
			some = true
		}
	}
	if some {
		out = append(out, word.String())
	}
	return out
}
