package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Answer is what happens to connections from one end to another, and why.
type Answer struct {
	From, To End
	Verdict  compile.Verdict
	// Reason is set if no rule is the reason.
	Reason string
	// Nearest are the rules that come nearest to allowing the connection, with what they miss, nearest first.
	Nearest []Near
	// Alike is how many other pairs of ends have the same answer.
	Alike int
}

// Near is a rule that does not allow a connection, and why not.
type Near struct {
	Rule    proto.Origin
	Missing []string
	far     int
}

// maxNear is how many of the nearest rules are listed.
const maxNear = 3

// Explain reports what happens to connections between two lists of ends. Pairs with the same answer are listed once.
func (b *Book) Explain(from, to []End, protocol uint8, port uint16) []Answer {
	var out []Answer
	seen := map[string]int{}
	for _, f := range from {
		for _, t := range to {
			if f.Addr.Is4() != t.Addr.Is4() || f.Node.ID == t.Node.ID && f.Node.ID != 0 || wrongFamily(f, protocol) && len(from)+len(to) > 2 {
				continue
			}
			a := b.explain(f, t, protocol, port)
			key := fmt.Sprint(a.Verdict.Allowed, a.Verdict.Mode, origin(a.Verdict.Rule), a.Reason, a.Nearest)
			if n, ok := seen[key]; ok {
				out[n].Alike++
				continue
			}
			seen[key] = len(out)
			out = append(out, a)
		}
	}
	return out
}

// wrongFamily reports whether a protocol belongs to the other address family.
func wrongFamily(e End, protocol uint8) bool {
	return protocol == proto.ProtoICMP && !e.Addr.Is4() || protocol == proto.ProtoICMPv6 && e.Addr.Is4()
}

func origin(o *proto.Origin) proto.Origin {
	if o == nil {
		return proto.Origin{}
	}
	return *o
}

func (b *Book) explain(from, to End, protocol uint8, port uint16) Answer {
	a := Answer{From: from, To: to, Verdict: compile.Verdict{Mode: compile.Enforce}}
	for _, e := range []End{from, to} {
		if e.Node.ID != 0 {
			continue
		}
		a.Reason = fmt.Sprintf("no node has %s, and no approved route leads there", e.Addr)
		if by := b.offered(e.Addr); len(by) > 0 {
			a.Reason += "; " + strings.Join(by, ", ") + " offers one that is not approved"
		}
		return a
	}
	a.Verdict = b.bound.Decide(to.Node.ID, from.Addr, to.Addr, protocol, port)
	if a.Verdict.Allowed || a.Verdict.Rule != nil {
		return a
	}
	a.Nearest = b.nearest(from, to, protocol, port)
	if len(a.Nearest) == 0 {
		a.Reason = "no rule is about either end"
	}
	return a
}

// nearest returns the rules that miss the least.
func (b *Book) nearest(from, to End, protocol uint8, port uint16) []Near {
	var out []Near
	for _, r := range b.policy.Rules {
		if r.Action != acl.Allow {
			continue
		}
		if n, ok := b.misses(r, from, to, protocol, port); ok {
			out = append(out, n)
		}
	}
	slices.SortStableFunc(out, func(a, b Near) int { return cmp.Compare(a.far, b.far) })
	return out[:min(len(out), maxNear)]
}

// What each kind of mismatch adds to the distance between a rule and a connection.
const (
	farPosture = 1
	farService = 2
	farEnd     = 4
)

// misses returns what keeps a rule from allowing a connection; ok is false for a rule that is about neither end.
func (b *Book) misses(r acl.Rule, from, to End, protocol uint8, port uint16) (Near, bool) {
	n := Near{Rule: proto.Origin{Path: r.Path, Line: r.Line}}
	miss := func(far int, format string, args ...any) {
		n.far += far
		n.Missing = append(n.Missing, fmt.Sprintf(format, args...))
	}
	src := slices.ContainsFunc(r.Src, func(s acl.Selector) bool { return b.covers(s, from, to) })
	if !src {
		miss(farEnd, "source: %s is not in %s", from, names(r.Src))
	}
	var fits, near []acl.Destination
	for _, d := range r.Dst {
		if b.covers(d.Selector, to, from) {
			near = append(near, d)
			if serviceFits(d.Services, protocol, port) {
				fits = append(fits, d)
			}
		}
	}
	switch {
	case len(near) == 0 && !src:
		return n, false
	case len(near) == 0:
		miss(farEnd, "destination: %s is not in %s", to, names(selectors(r.Dst)))
		if !slices.ContainsFunc(r.Dst, func(d acl.Destination) bool { return serviceFits(d.Services, protocol, port) }) {
			miss(farService, "port: %s is not in %s", ServiceName(service(protocol, port)), services(r.Dst))
		}
	case len(fits) == 0:
		miss(farService, "port: %s is not in %s", ServiceName(service(protocol, port)), services(near))
	}
	if why := b.reason(from, r.Path); why != "" && src {
		miss(farPosture, "%s", why)
	}
	if len(r.Via) > 0 && !slices.ContainsFunc(r.Via, to.Node.HasTag) {
		miss(farPosture, "via: only through routers with %s", strings.Join(r.Via, " or "))
	}
	if len(n.Missing) == 0 {
		miss(farPosture, "it does not hold between these two ends")
	}
	return n, true
}

// reason returns why a rule is withheld from a source, empty if it is not.
func (b *Book) reason(from End, path string) string {
	reasons, ok := b.withheld[from.Node.ID]
	if !ok {
		reasons = map[string]string{}
		for _, w := range b.bound.For(from.Node.ID).Withheld {
			rule, _, _ := strings.Cut(w.Origin.Path, ".")
			reasons[rule] = w.Reason
		}
		b.withheld[from.Node.ID] = reasons
	}
	return reasons[path]
}

func service(protocol uint8, port uint16) proto.Service {
	return proto.Service{Proto: protocol, First: port, Last: port}
}

func serviceFits(list []proto.Service, protocol uint8, port uint16) bool {
	return slices.ContainsFunc(list, func(s proto.Service) bool {
		return s.Proto == protocol && (!proto.HasPorts(protocol) || s.First <= port && port <= s.Last)
	})
}

func selectors(list []acl.Destination) []acl.Selector {
	out := make([]acl.Selector, len(list))
	for i, d := range list {
		out[i] = d.Selector
	}
	return out
}

// maxNames is how many names of a rule are listed.
const maxNames = 5

func names(list []acl.Selector) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = s.Text
	}
	return joined(out)
}

func services(list []acl.Destination) string {
	var out []string
	for _, d := range list {
		for _, s := range d.Services {
			if name := ServiceName(s); !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return joined(out)
}

func joined(list []string) string {
	if more := len(list) - maxNames; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxNames], ", "), more)
	}
	return cmp.Or(strings.Join(list, ", "), "anything")
}

// ServiceName returns a service in the form that grants use: tcp:443, udp:1-9, tcp:*, icmp.
func ServiceName(s proto.Service) string {
	name := acl.ProtocolName(s.Proto)
	switch {
	case !proto.HasPorts(s.Proto):
		return name
	case s.First == s.Last:
		return fmt.Sprintf("%s:%d", name, s.First)
	case s.First == 0 && s.Last == 65535:
		return name + ":*"
	}
	return fmt.Sprintf("%s:%d-%d", name, s.First, s.Last)
}
