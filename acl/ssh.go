package acl

import (
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Bounds of ssh.
const (
	maxSSHRules    = 1_000
	maxSSHUsers    = 256
	maxCheckPeriod = 7 * 24 * time.Hour
)

// CheckPeriodDefault is the maximum age of a login if a rule with action check does not set one.
const CheckPeriodDefault = 12 * time.Hour

// ssh reads "ssh": [{"action": "check", "src": [...], "dst": [...], "users": ["root"], "checkPeriod": "1h"}, ...].
func (p *parser) ssh(v value) {
	list, _ := p.list(v, "a list of rules")
	for i, e := range list {
		if i >= maxSSHRules {
			p.errorf(e, "more than %d rules; merge rules that differ in only one list", maxSSHRules)
			return
		}
		f, ok := p.fields(e, "an object with action, src, dst and users", sshKeys)
		if !ok {
			continue
		}
		r := SSHRule{Place: p.place(e)}
		known := p.sshAction(f, &r)
		if m, ok := f["src"]; ok {
			r.Src = p.readSelectors(m, inSSHSrc)
		}
		if m, ok := f["dst"]; ok {
			r.Dst = p.readSelectors(m, inSSHDst)
		}
		if m, ok := f["users"]; ok {
			r.Users = p.sshUsers(m)
		}
		if m, ok := f["checkPeriod"]; ok {
			p.checkPeriod(m, known, &r)
		}
		if m, ok := f["acceptEnv"]; ok {
			r.AcceptEnv = p.acceptEnv(m)
		}
		r.Postures = p.srcPosture(f)
		for _, side := range []string{"src", "dst"} {
			if _, ok := f[side]; !ok {
				p.report(Warning, r.Place, "%q is missing, so the rule allows nothing; name someone or remove the rule", side)
			}
		}
		p.sshSides(r)
		p.policy.SSH = append(p.policy.SSH, r)
	}
}

// sshAction reads accept or check, and reports whether it is one of them.
func (p *parser) sshAction(f map[string]member, r *SSHRule) bool {
	m, ok := f["action"]
	if !ok {
		return false
	}
	text, ok := p.str(m.value, `"accept" or "check"`)
	if !ok {
		return false
	}
	switch strings.TrimSpace(text) {
	case "accept":
	case "check":
		r.Check, r.CheckPeriod = true, CheckPeriodDefault
	default:
		p.errorf(m.value, "action %s is not supported; write \"accept\" or \"check\"", quote(text))
		return false
	}
	return true
}

// sshUsers reads login names, autogroup:nonroot and localpart:*@example.com.
func (p *parser) sshUsers(m member) []string {
	list, ok := p.list(m.value, `a list of login names such as ["root"]`)
	switch {
	case ok && len(list) == 0:
		p.errorf(m.value, `is empty; name who may be logged in as, such as "root" or "autogroup:nonroot"`)
	case len(list) > maxSSHUsers:
		p.errorf(m.value, "names %d users; at most %d are read", len(list), maxSSHUsers)
		return nil
	}
	var out []string
	for _, v := range list {
		text, ok := p.str(v, "a login name in quotes")
		if !ok {
			continue
		}
		user := strings.TrimSpace(text)
		switch {
		case user == "" || user == "*" || !proto.ValidText(user, proto.MaxName):
			p.errorf(v, "%s is not a login name; write one such as root, autogroup:nonroot, or localpart:*@example.com", quote(text))
			continue
		case user == "autogroup:nonroot" || LocalpartDomain(user) != "":
		case strings.Contains(user, ":"):
			p.report(Warning, p.place(v), "%s is read as a login name; others than autogroup:nonroot and localpart:*@DOMAIN have no meaning", quote(user))
		}
		if !slices.Contains(out, user) {
			out = append(out, user)
		}
	}
	return out
}

// LocalpartDomain returns the domain of localpart:*@example.com, with which somebody@example.com may log in as somebody. It is
// empty for any other entry of users.
func LocalpartDomain(user string) string {
	domain, ok := strings.CutPrefix(user, "localpart:*@")
	if !ok || strings.Contains(domain, "@") {
		return ""
	}
	return domain
}

// checkPeriod reads the maximum age of a login for connections that are checked.
func (p *parser) checkPeriod(m member, known bool, r *SSHRule) {
	text, ok := p.str(m.value, `a duration such as 12h, or "always"`)
	switch {
	case !ok:
	case known && !r.Check:
		p.errorf(m.value, `is for "action": "check" only; remove it, or let the rule check`)
	case text == "always":
		r.CheckPeriod, r.Always = 0, true
	default:
		if d, ok := p.duration(m.value, 0, maxCheckPeriod); ok {
			r.CheckPeriod = d
		}
	}
}

// acceptEnv reads the names of environment variables, in which * and ? are wildcards.
func (p *parser) acceptEnv(m member) []string {
	list, _ := p.list(m.value, "a list of names of variables")
	if len(list) > maxSSHUsers {
		p.errorf(m.value, "names %d variables; at most %d are read", len(list), maxSSHUsers)
		return nil
	}
	var out []string
	for _, v := range list {
		text, ok := p.str(v, "the name of a variable in quotes")
		if !ok {
			continue
		}
		if !proto.ValidText(text, proto.MaxName) || text == "" || strings.ContainsAny(text, "= ") {
			p.errorf(v, "%s is not the name of a variable; write one such as LANG, or a pattern such as LC_*", quote(text))
			continue
		}
		out = append(out, text)
	}
	return out
}

// sshSides checks what depends on both sides of a rule: nobody logs in to another person's machine over SSH, and tagged
// machines do not log in to those of people.
func (p *parser) sshSides(r SSHRule) {
	users := map[string]bool{}
	crowd, machine := false, false
	for _, s := range r.Src {
		switch s.Kind {
		case Tag, Tagged:
			machine = true
		case User:
			users[s.Name] = true
		default:
			crowd = true
		}
	}
	for _, d := range r.Dst {
		switch {
		case machine && (d.Kind == User || d.Kind == Member || d.Kind == Self):
			p.report(Error, d.Place, "%s are machines of people, and src has tags, which are none; split the rule, or use tags here", quote(d.Text))
		case d.Kind == User && (crowd || len(users) != 1 || !users[d.Name]):
			p.report(Error, d.Place, "%s in dst wants the same user alone in src; to let people log in to their own machines write autogroup:self", quote(d.Text))
		}
	}
}

// sshTests reads "sshTests": [{"src": "ann@example.com", "dst": ["tag:db"], "accept": ["root"], "deny": [...]}, ...].
func (p *parser) sshTests(v value) {
	list, _ := p.list(v, "a list of tests")
	for i, e := range list {
		if i >= maxTests {
			p.errorf(e, "more than %d tests; join tests of the same source", maxTests)
			return
		}
		f, ok := p.fields(e, "an object with src, dst and accept, deny or check", sshTestKeys)
		if !ok {
			continue
		}
		t := SSHTest{Place: p.place(e)}
		if m, ok := f["src"]; ok {
			t.Src, _ = p.readSelector(m.value, inSSHTestSrc)
		}
		if m, ok := f["dst"]; ok {
			list, ok := p.list(m.value, "a list of destinations")
			if ok && len(list) == 0 {
				p.errorf(m.value, "is empty; name where to log in")
			}
			for _, v := range list {
				if s, ok := p.readSelector(v, inSSHTestDst); ok {
					t.Dst = append(t.Dst, s)
				}
			}
		}
		for key, into := range map[string]*[]string{"accept": &t.Accept, "deny": &t.Deny, "check": &t.Check} {
			if m, ok := f[key]; ok {
				*into = p.logins(m)
			}
		}
		if entries(f["accept"].value)+entries(f["deny"].value)+entries(f["check"].value) == 0 {
			p.report(Warning, t.Place, `tests nothing; say in "accept", "deny" or "check" as whom logging in must or must not be possible`)
		}
		t.Facts = p.facts(f)
		p.policy.SSHTests = append(p.policy.SSHTests, t)
	}
}

// logins reads the login names of a test.
func (p *parser) logins(m member) []string {
	list, _ := p.list(m.value, `a list of login names such as ["root"]`)
	if len(list) > maxSSHUsers {
		p.errorf(m.value, "names %d users; at most %d are read", len(list), maxSSHUsers)
		return nil
	}
	var out []string
	for _, v := range list {
		text, ok := p.str(v, "a login name in quotes")
		if !ok {
			continue
		}
		if text == "" || text == "*" || !proto.ValidText(text, proto.MaxName) {
			p.errorf(v, "%s is not a login name; write one such as root", quote(text))
			continue
		}
		out = append(out, text)
	}
	return out
}
