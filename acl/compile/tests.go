package compile

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// TestFailure is a failed test of the policy.
type TestFailure struct {
	acl.Place        // of the destination that failed, or of the test if it cannot be run
	Source    string // the source of the test, as written
	Target    string // the destination, as written; empty if the test cannot be run
	// From and To are the first pair of addresses that shows it.
	From, To netip.Addr
	Message  string // what happened instead, and by which rule
}

// Diagnostic returns the failure as a message about the file.
func (f TestFailure) Diagnostic() acl.Diagnostic {
	return acl.Diagnostic{Severity: acl.Error, Line: f.Line, Column: f.Column, Path: f.Path, Message: f.Message}
}

// RunTests runs the tests in the policy against what the nodes of an inventory would enforce: the source's rules out, and the
// destination's rules in.
//
// A test that accepts passes if every address of its source reaches every address of the destination in the same family; one
// that denies passes if none reaches any. A node never opens connections to itself through the mesh, so such pairs do not
// count. If a selector matches nothing, stand-ins take the place of the nodes that it may select later (a node of that user, one
// with that tag): a policy can be tested before anyone has joined.
func RunTests(p *Program, inv Inventory) []TestFailure {
	if p.policy == nil {
		return nil
	}
	t := &tester{b: p.On(inv), classes: map[string]*class{}}
	var out []TestFailure
	for _, test := range p.policy.Tests {
		t.assume(test.Facts)
		out = append(out, t.run(test)...)
	}
	return out
}

// tester runs tests. Nodes that are covered by the same rules form one class: except for autogroup:self, which depends on
// whether two nodes belong to the same user, what holds for one of them holds for all.
type tester struct {
	b       *Bound
	classes map[string]*class
	byNode  map[proto.NodeID]*class // under the facts of the current test
	facts   map[string]string       // that its source is assumed to have
	last    int                     // number of the last stand-in
	lastAt  proto.Addrs             // and its addresses
}

// assume begins a test whose source is assumed to have some facts, whatever its real ones are.
func (t *tester) assume(set map[string]string) {
	t.byNode, t.facts = map[proto.NodeID]*class{}, set
}

type class struct {
	src, dst []covered
}

// party is a node, or a stand-in for one, and the families in which a selector selects it; or an address behind routers.
type party struct {
	node    proto.Identity // the first of routers, if there are any
	in      families
	user    string // as in coverage
	class   *class
	addr    netip.Addr // behind routers
	routers []proto.NodeID
}

// ends returns the party's ends of a connection over a family.
func (t *tester) ends(p party, over families) []end {
	if len(p.routers) == 0 {
		return []end{{p.node.ID, pickAddr(p.node.Addrs, over), true, &coverage{src: p.class.src, dst: p.class.dst, user: p.user}}}
	}
	return t.b.endsOf(p.addr, 0)
}

// at returns the address of the party in a family.
func (p party) at(over families) netip.Addr {
	if len(p.routers) > 0 {
		return p.addr
	}
	return pickAddr(p.node.Addrs, over)
}

// pair is the source and the destination of a connection.
type pair struct {
	from, to party
}

func (p pair) sameUser() bool { return p.from.user != "" && p.from.user == p.to.user }

func (t *tester) run(test acl.Test) []TestFailure {
	sources := t.parties(test.Src, nil)
	if len(sources) == 0 {
		return []TestFailure{{Place: test.Place, Source: test.Src.Text, Message: fmt.Sprintf(
			"the source %q matches nothing: %s", test.Src.Text, whyNobody(t.b.prog, test.Src),
		)}}
	}
	var out []TestFailure
	for _, target := range test.Accept {
		out = append(out, t.judge(test, target, sources, true)...)
	}
	for _, target := range test.Deny {
		out = append(out, t.judge(test, target, sources, false)...)
	}
	return out
}

// judge finds the first pair that contradicts a test. There is at most one failure per destination.
func (t *tester) judge(test acl.Test, target acl.Target, sources []party, accept bool) []TestFailure {
	fail := func(format string, args ...any) TestFailure {
		return TestFailure{Place: target.Place, Source: test.Src.Text, Target: target.Full, Message: fmt.Sprintf(format, args...)}
	}
	tried := false
	for _, p := range t.pairs(sources, target.Selector) {
		for _, over := range []families{v4, v6} {
			if p.from.in&p.to.in&over == 0 {
				continue
			}
			tried = true
			v := t.reaches(p, over, test.Protocols, target.Port)
			if v.Allowed == accept {
				continue
			}
			a, b := p.from.at(over), p.to.at(over)
			who := fmt.Sprintf("%s (%s) to %s (%s)", a, describe(p.from), b, describe(p.to))
			f := fail("the test wants %s to be refused, but %s allows it: %s", target.Full, originOf(v.Rule), who)
			switch {
			case accept && v.Rule != nil:
				f = fail("the test wants %s to be reached, but %s denies it: %s", target.Full, originOf(v.Rule), who)
			case accept:
				f = fail("the test wants %s to be reached, but no rule allows it (%s): %s", target.Full, protocolNames(test.Protocols), who)
			}
			f.From, f.To = a, b
			return []TestFailure{f}
		}
	}
	if !tried {
		return []TestFailure{fail("%q has no address that %q could reach: %s", target.Text, test.Src.Text, t.noPair(target.Selector))}
	}
	return nil
}

// pairs returns enough pairs of a source and a destination to try everything that can differ: each two classes, with nodes of
// the same user and of different users.
func (t *tester) pairs(sources []party, target acl.Selector) []pair {
	var out []pair
	seen := map[string]bool{}
	add := func(from, to party) {
		p := pair{from, to}
		key := fmt.Sprintf("%p %d %p %d %t", from.class, from.in, to.class, to.in, p.sameUser())
		if !to.onlyBehind(from) && !seen[key] {
			seen[key] = true
			out = append(out, p)
		}
	}
	if target.Kind == acl.Self {
		for _, from := range representatives(sources, true) {
			for _, to := range representatives(t.parties(target, &from), true) {
				add(from, to)
			}
		}
		return out
	}
	destinations := t.parties(target, nil)
	for _, from := range representatives(sources, false) {
		for _, to := range representatives(destinations, false) {
			if !(pair{from, to}).sameUser() {
				add(from, to)
			}
		}
	}
	byUser := map[string][]party{}
	for _, to := range representatives(destinations, true) {
		byUser[to.user] = append(byUser[to.user], to)
	}
	for _, from := range representatives(sources, true) {
		if from.user == "" {
			continue
		}
		for _, to := range byUser[from.user] {
			add(from, to)
		}
	}
	if len(out) == 0 { // the source is the only destination so far
		for _, to := range t.standIns(target, &sources[0]) {
			add(sources[0], to)
		}
	}
	return out
}

// representatives keeps two nodes of each class, so that one of them is not the other side itself: two of each user, or else two
// of different users.
func representatives(parties []party, perUser bool) []party {
	type key struct {
		class *class
		in    families
		user  string
	}
	kept := map[key][]party{}
	var out []party
	for _, p := range parties {
		k := key{class: p.class, in: p.in}
		if perUser {
			k.user = p.user
		}
		before := kept[k]
		if len(before) == 2 || !perUser && len(before) == 1 && (pair{before[0], p}).sameUser() {
			continue
		}
		kept[k] = append(before, p)
		out = append(out, p)
	}
	return out
}

// parties returns the nodes that a selector selects, or stand-ins if there are none. Self is relative to from.
func (t *tester) parties(s acl.Selector, from *party) []party {
	var ids []proto.NodeID
	switch {
	case s.Kind != acl.Self:
		ids = t.b.pick(s)
	case from.user != "":
		ids = without1(t.b.members(from.user), from.node.ID)
	}
	out := make([]party, 0, len(ids))
	for _, id := range ids {
		if n, ok := t.b.node(id); ok {
			out = append(out, t.party(n, t.picked(s, n.Addrs)))
		}
	}
	if len(out) == 0 {
		return t.standIns(s, from)
	}
	return out
}

// picked returns the families in which a selector selects a node that it selects.
func (t *tester) picked(s acl.Selector, a proto.Addrs) families {
	prefixes := literals(s)
	switch s.Kind {
	case acl.Literal, acl.AddressSet:
	case acl.Any:
		prefixes = t.b.prog.any
	default:
		return both
	}
	var in families
	for _, x := range a.Slice() {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(x) }) {
			in |= family(x)
		}
	}
	return in
}

func (t *tester) party(n proto.Identity, in families) party {
	c, ok := t.byNode[n.ID]
	user := ""
	if member(n) {
		user = acl.UserSet(n.User.Name)
	}
	if !ok {
		cov := t.b.cover(n, t.factsOf(n))
		key := classKey(cov)
		if c, ok = t.classes[key]; !ok {
			c = &class{src: cov.src, dst: cov.dst}
			t.classes[key] = c
		}
		t.byNode[n.ID] = c
	}
	return party{node: n, in: in, user: user, class: c}
}

// factsOf returns the facts of a node, overridden by those that the test assumes. Its user has just logged in unless the test
// assumes otherwise: that someone has been away does not make the policy wrong.
func (t *tester) factsOf(n proto.Identity) facts {
	set := t.b.inv.Traits(n.ID).Facts
	return func(name string) (string, bool) {
		if v, ok := t.facts[name]; ok {
			return v, true
		}
		if name == authAge {
			return "0", member(n)
		}
		v, ok := set[name]
		return v, ok
	}
}

// onlyBehind reports whether p is q itself, or can only be reached through q.
func (p party) onlyBehind(q party) bool {
	if len(q.routers) > 0 {
		return len(p.routers) > 0 && p.addr == q.addr
	}
	if len(p.routers) == 0 {
		return p.node.ID == q.node.ID
	}
	return len(p.routers) == 1 && p.routers[0] == q.node.ID
}

// classKey is the same for nodes of one class.
func classKey(c coverage) string {
	key := make([]byte, 0, 6*(len(c.src)+len(c.dst)+1))
	for _, side := range [][]covered{c.src, c.dst} {
		for _, x := range side {
			key = append(binary.BigEndian.AppendUint32(key, uint32(x.rule)), byte(x.in))
			if x.withheld {
				key = append(key, 'w')
			}
		}
		key = append(key, "     "...) // no rule has this number
	}
	return string(key)
}

// reaches returns whether, and by which rule, one party may open a port of another over one of the protocols.
func (t *tester) reaches(p pair, over families, protocols []uint8, port uint16) Verdict {
	var last Verdict
	for _, protocol := range protocols {
		for _, from := range t.ends(p.from, over) {
			for _, to := range t.ends(p.to, over) {
				if from.id == to.id {
					continue
				}
				v := t.b.judge(from, to, protocol, port)
				if v.Allowed {
					return v
				}
				if v.Rule != nil {
					last = v
				}
			}
		}
	}
	return last
}

func originOf(o *proto.Origin) string {
	if o == nil {
		return "no rule"
	}
	return fmt.Sprintf("%s (line %d)", o.Path, o.Line)
}

func pickAddr(a proto.Addrs, over families) netip.Addr {
	if over == v4 {
		return a.V4
	}
	return a.V6
}

func describe(p party) string {
	n := p.node
	if len(p.routers) > 0 {
		return "behind " + n.Name
	}
	if who := n.Who(); who != "" {
		return n.Name + ", " + who
	}
	return n.Name
}

func protocolNames(protocols []uint8) string {
	names := make([]string, len(protocols))
	for i, p := range protocols {
		names[i] = acl.ProtocolName(p)
	}
	return strings.Join(names, " or ")
}

// noPair explains why a source and a destination make no pair that could be tried.
func (t *tester) noPair(s acl.Selector) string {
	switch {
	case s.Kind == acl.Self:
		return "autogroup:self is about nodes of users"
	case t.b.resolves(s):
		return "it picks only the source itself, or addresses of the other family"
	}
	return whyNobody(t.b.prog, s)
}
