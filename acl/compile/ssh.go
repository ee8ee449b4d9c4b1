package compile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// sshReaches reports whether a rule lets a node that is among its sources, with some facts, log in to another one.
func (b *Bound) sshReaches(r acl.SSHRule, from, to proto.Identity, f facts) bool {
	if names := r.Postures; len(names) > 0 {
		c := &cond{}
		for _, name := range names {
			c.postures = append(c.postures, b.prog.policy.Postures[name])
		}
		if ok, _ := c.holds(from, f); !ok {
			return false
		}
	}
	sameUser := member(from) && member(to) && from.User.Name == to.User.Name
	sets := b.setsOf(to)
	return slices.ContainsFunc(r.Dst, func(d acl.Selector) bool {
		return d.Kind == acl.Self && sameUser || d.Set() != "" && slices.Contains(sets, d.Set())
	})
}

// sshAs reports whether a rule lets the user of a node log in under a login name.
func sshAs(r acl.SSHRule, from proto.Identity, user string) bool {
	return slices.ContainsFunc(r.Users, func(u string) bool {
		switch {
		case u == "autogroup:nonroot":
			return user != "root"
		case acl.LocalpartDomain(u) != "":
			local, domain, _ := strings.Cut(from.User.Name, "@")
			return member(from) && domain == acl.LocalpartDomain(u) && local == user
		}
		return u == user
	})
}

// sshVerdict is how a login may happen. If one rule accepts what another one checks, the stricter one wins: it is checked.
type sshVerdict uint8

const (
	sshDenied sshVerdict = iota
	sshChecked
	sshAccepted
)

// RunSSHTests runs the policy's tests of SSH rules, as RunTests does for the others. A test that accepts passes if every node of
// its source may log in as each user everywhere, with or without a check; one that checks requires the check.
func RunSSHTests(p *Program, inv Inventory) []TestFailure {
	if p.policy == nil {
		return nil
	}
	t := &tester{b: p.On(inv), classes: map[string]*class{}}
	var out []TestFailure
	for _, test := range p.policy.SSHTests {
		t.assume(test.Facts)
		out = append(out, t.runSSH(test)...)
	}
	return out
}

func (t *tester) runSSH(test acl.SSHTest) []TestFailure {
	sources := t.parties(test.Src, nil)
	if len(sources) == 0 {
		return []TestFailure{{Place: test.Place, Source: test.Src.Text, Message: fmt.Sprintf(
			"the source %q matches nothing: %s", test.Src.Text, whyNobody(t.b.prog, test.Src),
		)}}
	}
	var out []TestFailure
	for _, dst := range test.Dst {
		tried := false
		var failures []TestFailure
		for _, claim := range []struct {
			users []string
			want  string
			holds func(sshVerdict) bool
		}{
			{test.Accept, "accepted", func(v sshVerdict) bool { return v != sshDenied }},
			{test.Check, "accepted after a check", func(v sshVerdict) bool { return v == sshChecked }},
			{test.Deny, "refused", func(v sshVerdict) bool { return v == sshDenied }},
		} {
			for _, user := range claim.users {
				f, any := t.claim(dst, sources, user, claim.want, claim.holds)
				tried = tried || any
				failures = append(failures, f...)
			}
		}
		if !tried && len(test.Accept)+len(test.Check)+len(test.Deny) > 0 {
			failures = []TestFailure{{Place: dst.Place, Source: test.Src.Text, Target: dst.Text, Message: fmt.Sprintf(
				"%q has no node that %q could log in to: %s", dst.Text, test.Src.Text, t.noPair(dst),
			)}}
		}
		out = append(out, failures...)
	}
	return out
}

// claim tries one user on every pair, and reports whether there is any pair.
func (t *tester) claim(dst acl.Selector, sources []party, user, want string, holds func(sshVerdict) bool) (out []TestFailure, tried bool) {
	for _, from := range sources {
		destinations := t.parties(dst, &from)
		if len(destinations) == 1 && destinations[0].node.ID == from.node.ID { // the source is the only destination so far
			destinations = t.standIns(dst, &from)
		}
		for _, to := range destinations {
			if from.node.ID == to.node.ID {
				continue
			}
			tried = true
			v := t.login(from.node, to.node, user)
			if holds(v) {
				continue
			}
			a, b := from.node.Addrs.V4, to.node.Addrs.V4
			return []TestFailure{{
				Place: dst.Place, Target: dst.Text, From: a, To: b, Source: from.node.Name,
				Message: fmt.Sprintf("the test wants a login as %s to be %s, but it is %s: %s (%s) to %s (%s)",
					user, want, v, a, describe(from), b, describe(to)),
			}}, true
		}
	}
	return nil, tried
}

func (v sshVerdict) String() string {
	return [...]string{"refused", "accepted after a check", "accepted"}[v]
}

func (t *tester) login(from, to proto.Identity, user string) sshVerdict {
	best := sshDenied
	f := t.factsOf(from)
	for _, r := range t.b.prog.policy.SSH {
		if !slices.ContainsFunc(r.Src, func(s acl.Selector) bool { return t.b.selects(s, from) }) ||
			!t.b.sshReaches(r, from, to, f) || !sshAs(r, from, user) {
			continue
		}
		if r.Check {
			return sshChecked
		}
		best = sshAccepted
	}
	return best
}

// selects reports whether a selector selects a node, by identity or by one of its addresses.
func (b *Bound) selects(s acl.Selector, n proto.Identity) bool {
	prefixes := literals(s)
	switch s.Kind {
	case acl.Self:
		return member(n)
	case acl.DangerAll:
		return true
	case acl.Internet:
		return false
	case acl.Any:
		prefixes = b.prog.any
	case acl.Literal, acl.AddressSet:
	default:
		return slices.Contains(b.setsOf(n), s.Set())
	}
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(n.Addrs.V4) || p.Contains(n.Addrs.V6) })
}
