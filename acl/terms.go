package acl

import (
	"fmt"
	"strings"
	"time"

	"github.com/tailscale/hujson"

	"github.com/redoubt-mesh/redoubt/proto"
)

// session reads "session": {"maxAge": "12h"}.
func (p *parser) session(v value) {
	f, ok := p.fields(v, "an object with maxAge", sessionKeys)
	if !ok {
		return
	}
	p.policy.Session = Session{Place: p.place(v)}
	if m, ok := f["maxAge"]; ok {
		p.policy.Session.MaxAge, _ = p.duration(m.value, time.Minute, maxAge)
	}
}

// auth reads the "auth": {"age": "1h", "mfa": true} of a grant.
func (p *parser) auth(f map[string]member) *Auth {
	m, ok := f["auth"]
	if !ok {
		return nil
	}
	before := len(p.diags)
	f, ok = p.fields(m.value, "an object with age, mfa or both", authKeys)
	if !ok {
		return nil
	}
	a := &Auth{Place: p.place(m.value)}
	if m, ok := f["age"]; ok {
		a.Age, _ = p.duration(m.value, time.Minute, maxAge)
	}
	if m, ok := f["mfa"]; ok {
		a.MFA = p.boolean(m.value)
	}
	if *a == (Auth{Place: a.Place}) && len(p.diags) == before {
		p.report(Warning, a.Place, `requires nothing; add "age", "mfa": true or both, or remove it`)
		return nil
	}
	return a
}

// outage reads "outage": {"grace": "8h", "posture": "15m"}.
func (p *parser) outage(v value) {
	f, ok := p.fields(v, "an object with grace, posture or both", outageKeys)
	if !ok {
		return
	}
	p.policy.Outage = Outage{Place: p.place(v)}
	for key, into := range map[string]**time.Duration{"grace": &p.policy.Outage.Grace, "posture": &p.policy.Outage.Posture} {
		if m, ok := f[key]; ok {
			if d, ok := p.duration(m.value, 0, proto.MaxGrace); ok {
				*into = &d
			}
		}
	}
}

// node reads "node": {"certLifetime": "1h"}, or with overrides by tag "node": {"certLifetime": {"*": "24h", "tag:ci": "1h"}}.
func (p *parser) node(v value) {
	f, ok := p.fields(v, "an object with certLifetime", nodeKeys)
	if !ok {
		return
	}
	terms := NodeTerms{Place: p.place(v), ByTag: map[string]time.Duration{}}
	if m, ok := f["certLifetime"]; ok {
		if _, isObject := m.Value.Value.(*hujson.Object); isObject {
			p.lifetimes(m, &terms)
		} else {
			terms.CertLifetime, _ = p.duration(m.value, minLifetime, maxLifetime)
		}
	}
	p.policy.Node = terms
}

// lifetimes reads the lifetimes of certificates by tag; * is every other node.
func (p *parser) lifetimes(m member, terms *NodeTerms) {
	members, _ := p.object(m.value, "an object of tags and lifetimes")
	for _, m := range members {
		d, ok := p.duration(m.value, minLifetime, maxLifetime)
		switch {
		case m.key == "*":
			terms.CertLifetime = d
		case !strings.HasPrefix(m.key, "tag:"):
			p.keyErrorf(m, "%s is not a tag; write tag:NAME, or * for every other node", quote(m.key))
		default:
			s, err := p.selector(m.key, inTarget)
			if err != nil {
				p.keyErrorf(m, "%v", err)
			} else if ok {
				terms.ByTag[s.Name] = d
			}
		}
	}
}

// Bounds of durations.
const (
	maxAge      = 366 * 24 * time.Hour
	minLifetime = 10 * time.Minute
	maxLifetime = 24 * time.Hour
)

// duration reads a text such as "90m", "12h" or "7d", a number of whole seconds.
func (p *parser) duration(v value, least, most time.Duration) (time.Duration, bool) {
	text, ok := p.str(v, "a duration such as 90m, 12h or 7d")
	if !ok {
		return 0, false
	}
	d, err := parseDuration(text)
	switch {
	case err != nil:
		p.errorf(v, "%v", err)
	case d < least || d > most:
		p.errorf(v, "%s is not from %s to %s", quote(text), shortly(least), shortly(most))
	case d%time.Second != 0:
		p.errorf(v, "%s is not a number of whole seconds", quote(text))
	default:
		return d, true
	}
	return 0, false
}

// parseDuration parses what time.ParseDuration parses, and days.
func parseDuration(text string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if d, err := time.ParseDuration(days + "h"); err == nil && number(days) && d.Abs() < 1<<62/24 {
			return d * 24, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration; write one such as 90m, 12h or 7d", quote(text))
	}
	return d, nil
}

// shortly formats a duration in days if possible, else without trailing zero minutes and seconds.
func shortly(d time.Duration) string {
	if day := 24 * time.Hour; d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// boolean reads true or false.
func (p *parser) boolean(v value) bool {
	lit, ok := v.Value.Value.(hujson.Literal)
	if !ok || lit.Kind() != 't' && lit.Kind() != 'f' {
		p.errorf(v, "is %s; want true or false", kindName(v.Value))
		return false
	}
	return lit.Kind() == 't'
}
