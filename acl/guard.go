package acl

import (
	"math"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// allServices is all services of all protocols.
var allServices = func() []proto.Service {
	out := make([]proto.Service, 0, 256)
	for n := range 256 {
		out = append(out, proto.Service{Proto: uint8(n), First: 0, Last: math.MaxUint16})
	}
	return out
}()

// deny reads "deny": [{"src": [...], "dst": [...], "ip": ["*"]}, ...]. A deny must not leave out protocols that nobody thought
// of: * means every protocol here, not only the usual ones. The default postures do not apply, since they would narrow what is
// denied.
func (p *parser) deny(v value) {
	list, _ := p.list(v, "a list of deny rules")
	for _, e := range list {
		if !p.roomForRule(e) {
			return
		}
		f, ok := p.fields(e, "an object with src, dst and ip", denyKeys)
		if !ok {
			continue
		}
		r := Rule{Place: p.place(e), Action: Deny}
		if m, ok := f["src"]; ok {
			r.Src = p.readSelectors(m, inSrc)
		}
		var services []proto.Service
		if m, ok := f["ip"]; ok {
			services = p.services(m, allServices, true)
		}
		if m, ok := f["dst"]; ok {
			r.Dst = destinations(p.readSelectors(m, inGrantDst), services)
		}
		if m, ok := f["srcPosture"]; ok {
			r.Postures = p.postureNames(m.value)
		}
		p.selfSources(r, true)
		p.addRule(r)
	}
}

// enforcement reads "enforcement": [{"src": [...], "dst": [...], "mode": "monitor", "until": "2027-01-31"}, ...].
func (p *parser) enforcement(v value) {
	list, _ := p.list(v, "a list of monitoring entries")
	for _, e := range list {
		if !p.roomForRule(e) {
			return
		}
		f, ok := p.fields(e, "an object with src, dst, mode and until", enforcementKeys)
		if !ok {
			continue
		}
		r := Rule{Place: p.place(e), Action: Monitor}
		if m, ok := f["src"]; ok {
			r.Src = p.readSelectors(m, inSrc)
		}
		if m, ok := f["dst"]; ok {
			r.Dst = destinations(p.readSelectors(m, inGrantDst), allServices)
		}
		if m, ok := f["mode"]; ok {
			text, ok := p.str(m.value, `"monitor"`)
			if ok && text != "monitor" {
				p.errorf(m.value, "there is no mode %s; write \"monitor\", or remove the entry to enforce", quote(text))
			}
		}
		if m, ok := f["until"]; ok {
			r.Until = p.until(m.value)
		}
		p.selfSources(r, true)
		p.addRule(r)
	}
}

// maxMonitor is how far ahead the end of monitoring may be.
const maxMonitor = 90 * 24 * time.Hour

// until reads the time when monitoring ends, or a day, at whose start in UTC it ends.
func (p *parser) until(v value) time.Time {
	text, ok := p.str(v, "a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z")
	if !ok {
		return time.Time{}
	}
	at, err := time.Parse(time.DateOnly, text)
	if err != nil {
		at, err = time.Parse(time.RFC3339, text)
	}
	if err != nil || at.Year() < 1970 {
		p.errorf(v, "%s is not a date or time; write 2027-01-31 or 2027-01-31T18:00:00Z", quote(text))
		return time.Time{}
	}
	at = at.UTC().Truncate(time.Second)
	switch {
	case p.now.IsZero():
	case at.After(p.now.Add(maxMonitor)):
		p.errorf(v, "is more than %d days ahead; monitor until %s at most, and apply the policy again then",
			int(maxMonitor/(24*time.Hour)), p.now.Add(maxMonitor).UTC().Format(time.DateOnly))
	case !at.After(p.now):
		p.report(Warning, p.place(v), "is in the past, so the policy is enforced; remove the entry")
	}
	return at
}

// destinations gives all selectors the same services.
func destinations(selectors []Selector, services []proto.Service) []Destination {
	out := make([]Destination, len(selectors))
	for i, s := range selectors {
		out[i] = Destination{Selector: s, Services: services}
	}
	return out
}
