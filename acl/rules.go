package acl

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/tailscale/hujson"

	"github.com/redoubt-mesh/redoubt/proto"
)

// readSelector reads a string that is a selector.
func (p *parser) readSelector(v value, where use) (Selector, bool) {
	text, ok := p.str(v, "a selector in quotes")
	if !ok {
		return Selector{}, false
	}
	return p.checkedSelector(v, text, where)
}

// checkedSelector parses a selector at v, possibly surrounded by spaces, and reports what is wrong with it.
func (p *parser) checkedSelector(v value, text string, where use) (Selector, bool) {
	text = strings.TrimSpace(text)
	s, err := p.selector(text, where)
	if err != nil {
		p.errorf(v, "%v", err)
		return Selector{}, false
	}
	s.Place = p.place(v)
	if s.Kind == Literal {
		p.warnHostBits(v, text)
	}
	return s, true
}

// readSelectors reads a list of selectors.
func (p *parser) readSelectors(m member, where use) []Selector {
	var out []Selector
	list, ok := p.list(m.value, "a list of selectors")
	for _, v := range list {
		if s, ok := p.readSelector(v, where); ok {
			out = append(out, s)
		}
	}
	if ok && len(list) == 0 {
		p.report(Warning, p.place(m.value), "is empty, so the rule allows nothing; name someone or remove the rule")
	}
	p.boundSide(m.value, len(out), func(i int) Selector { return out[i] })
	return out
}

// boundSide limits the side of a rule to what a netmap can carry.
func (p *parser) boundSide(v value, n int, at func(int) Selector) {
	sets, prefixes := map[string]struct{}{}, 0
	for i := range n {
		s := at(i)
		prefixes += prefixesOf(s)
		if name := s.Set(); name != "" {
			sets[name] = struct{}{}
			p.sets[name] = struct{}{}
		}
	}
	if len(sets) > proto.MaxRuleSets {
		p.errorf(v, "names %d users, groups and tags, and a rule has at most %d; put users into a group, or split the rule", len(sets), proto.MaxRuleSets)
	}
	if prefixes > maxSidePrefixes {
		p.errorf(v, "names %d addresses, and a rule has at most %d; use ranges, or split the rule", prefixes, maxSidePrefixes)
	}
}

// prefixesOf returns how many prefixes a selector takes in a netmap.
func prefixesOf(s Selector) int {
	if s.Kind == Literal {
		return 1
	}
	return len(s.Prefixes)
}

// boundServices limits the services of a destination to what a netmap can carry.
func (p *parser) boundServices(v value, list []proto.Service) bool {
	if len(list) <= proto.MaxServices {
		return true
	}
	p.errorf(v, "names %d ports and ranges of ports, and a rule has at most %d; use wider ranges, or split the rule", len(list), proto.MaxServices)
	return false
}

// acls reads "acls": [{"action": "accept", "src": [...], "dst": ["SEL:PORTS", ...], "proto": "tcp"}, ...].
func (p *parser) acls(v value) {
	list, _ := p.list(v, "a list of rules")
	for _, e := range list {
		if !p.roomForRule(e) {
			return
		}
		f, ok := p.fields(e, "an object with action, src and dst", aclKeys)
		if !ok {
			continue
		}
		p.action(f)
		named, protoOK := p.protocol(f["proto"])
		r := Rule{Place: p.place(e), Postures: p.srcPosture(f)}
		if m, ok := f["src"]; ok {
			r.Src = p.readSelectors(m, inSrc)
		}
		if m, ok := f["dst"]; ok {
			r.Dst = p.aclDestinations(m, named, protoOK)
		}
		p.selfSources(r, true)
		p.addRule(r)
	}
}

// roomForRule reports whether there is room for another rule; if there is not, it adds an error.
func (p *parser) roomForRule(v value) bool {
	if len(p.policy.Rules) < maxRules {
		return !p.full
	}
	p.errorf(v, "more than %d rules; merge rules that differ in only one list", maxRules)
	return false
}

// bound limits the policy to what a netmap can carry: there, each destination with services of its own is a rule, and a node
// on both sides has it twice.
func (p *parser) bound(r Rule) {
	n, services := parts(r.Dst)
	p.parts += n
	src, dst := len(r.Src), len(r.Dst)
	for _, s := range r.Src {
		src += len(s.Prefixes)
	}
	for _, d := range r.Dst {
		dst += len(d.Prefixes)
	}
	p.weight += n*(src*selectorWeight+partWeight+appSize(r.App)) + dst*selectorWeight + services*serviceWeight
	p.full = true
	switch {
	case p.parts > proto.MaxRules/2:
		p.report(Error, r.Place, "with the rules before it there are more than %d destinations with their own ports; merge rules that differ in only one list",
			proto.MaxRules/2)
	case p.weight > maxWeight:
		p.report(Error, r.Place, "with the rules before it the policy is too large to send to a node; merge rules, or use ranges instead of many addresses and ports")
	case len(p.sets) > proto.MaxSets/2:
		p.report(Error, r.Place, "with the rules before it there are more than %d different users, groups and tags in rules; put users into groups",
			proto.MaxSets/2)
	default:
		p.full = false
	}
}

func appSize(app map[string][]json.RawMessage) int {
	n := 0
	for name, values := range app {
		n += len(name)
		for _, v := range values {
			n += len(v)
		}
	}
	return n
}

// addRule adds a rule and checks the limits.
func (p *parser) addRule(r Rule) {
	p.bound(r)
	p.policy.Rules = append(p.policy.Rules, r)
}

// selfSources checks the sources of a rule about autogroup:self, which must be people. If takesAny, * is allowed too, where it
// can only mean everybody.
func (p *parser) selfSources(r Rule, takesAny bool) {
	if !slices.ContainsFunc(r.Dst, func(d Destination) bool { return d.Kind == Self }) {
		return
	}
	for _, s := range r.Src {
		switch s.Kind {
		case User, Domain, GroupOf, Member, Role:
			continue
		case Any:
			if takesAny {
				continue
			}
		}
		p.report(Error, s.Place, "%s cannot be combined with autogroup:self in dst, which applies to nodes of users; "+
			"use users, groups or autogroup:member here, or split the rule", quote(s.Text))
	}
}

// parts returns how many rules the destinations become at most, and how many services these have in total.
func parts(dst []Destination) (n, services int) {
	for i, d := range dst {
		if i == 0 || !slices.Equal(dst[i-1].Services, d.Services) || (dst[i-1].Kind == Self) != (d.Kind == Self) {
			n++
			services += len(d.Services)
		}
	}
	return n, services
}

func (p *parser) action(f map[string]member) {
	m, ok := f["action"]
	if !ok {
		return
	}
	text, ok := p.str(m.value, `"accept"`)
	if ok && text != "accept" {
		p.errorf(m.value, "action %s is not supported: rules only permit, and anything else is refused; write \"accept\" or remove the rule", quote(text))
	}
}

// protocol reads the proto of an acl or a test; if it is missing, there are no protocols and no error.
func (p *parser) protocol(m member) ([]uint8, bool) {
	if m.Value.Value == nil {
		return nil, true
	}
	var text string
	if lit, ok := m.Value.Value.(hujson.Literal); ok && lit.Kind() == '0' {
		text = lit.String()
	} else if text, ok = p.str(m.value, "a protocol such as tcp, or a number from 0 to 255"); !ok {
		return nil, false
	}
	if text == "" {
		return nil, true
	}
	n, err := ParseProtocol(text)
	if err != nil {
		p.errorf(m.value, "%v", err)
		return nil, false
	}
	return []uint8{n}, true
}

func (p *parser) aclDestinations(m member, named []uint8, protoOK bool) []Destination {
	var out []Destination
	list, ok := p.list(m.value, "a list of destinations")
	for _, v := range list {
		text, ok := p.str(v, "SELECTOR:PORTS in quotes")
		if !ok {
			continue
		}
		if d, ok := p.aclDestination(v, text, named); ok && protoOK {
			out = append(out, d)
		}
	}
	p.boundSide(m.value, len(out), func(i int) Selector { return out[i].Selector })
	if ok && len(list) == 0 {
		p.report(Warning, p.place(m.value), "is empty, so the rule allows nothing; name a destination or remove the rule")
	}
	return out
}

// aclDestination reads one "SEL:PORTS", and reports what is wrong with it.
func (p *parser) aclDestination(v value, text string, named []uint8) (Destination, bool) {
	s, ports, ok := p.withPorts(v, text, inACLDst)
	if ports == "" {
		return Destination{}, false
	}
	ranges, err := parsePorts(ports)
	var svc []proto.Service
	if err == nil {
		svc, err = services(named, ranges)
	}
	if err != nil {
		p.errorf(v, "%v", err)
		return Destination{}, false
	}
	return Destination{Selector: s, Services: svc}, p.boundServices(v, svc) && ok
}

// withPorts splits "SELECTOR:PORTS" and reads the selector. It reports what is wrong with the selector and whether the ports
// are missing; in that case ports is empty.
func (p *parser) withPorts(v value, text string, where use) (s Selector, ports string, ok bool) {
	text = strings.TrimSpace(text)
	if !strings.Contains(text, ":") || portless(text) {
		p.errorf(v, "%s names no ports; write %s:* or %s:22", quote(text), shown(text), shown(text))
		p.checkedSelector(v, text, where)
		return Selector{}, "", false
	}
	sel, ports, err := splitPorts(text)
	if err != nil {
		p.errorf(v, "%v", err)
		return Selector{}, "", false
	}
	s, ok = p.checkedSelector(v, sel, where)
	return s, ports, ok
}

// portless reports whether the only colon of a text belongs to its kind, as in "tag:db".
func portless(text string) bool {
	kind, name, _ := strings.Cut(text, ":")
	return slices.Contains([]string{"group", "tag", "autogroup", "ipset"}, kind) && name != "" && !strings.Contains(name, ":")
}

// grants reads "grants": [{"src": [...], "dst": [...], "ip": ["tcp:443", ...], "app": {...}, "via": [...]}, ...].
func (p *parser) grants(v value) {
	list, _ := p.list(v, "a list of grants")
	for _, e := range list {
		if !p.roomForRule(e) {
			return
		}
		f, ok := p.fields(e, "an object with src, dst, and ip or app", grantKeys)
		if !ok {
			continue
		}
		r := Rule{Place: p.place(e), Postures: p.srcPosture(f), Auth: p.auth(f), Via: p.via(f)}
		if m, ok := f["src"]; ok {
			r.Src = p.readSelectors(m, inSrc)
		}
		var services []proto.Service
		ip, hasIP := f["ip"]
		app, hasApp := f["app"]
		if hasApp {
			before := len(p.diags)
			if r.App = p.capabilities(app, true); len(r.App) == 0 && !hasIP && len(p.diags) == before {
				p.errorf(app.value, `grants nothing; name a capability, or add "ip": ["tcp:443"]`)
			}
		}
		if hasIP {
			services = p.services(ip, nil, len(r.App) == 0)
		}
		if !hasIP && !hasApp {
			p.errorf(e, `"ip" is missing; specify what is granted, such as "ip": ["tcp:443"], or ["*"] for everything`)
		}
		if m, ok := f["dst"]; ok {
			r.Dst = destinations(p.readSelectors(m, inGrantDst), services)
		}
		p.selfSources(r, false)
		p.grantSides(r)
		p.addRule(r)
	}
}

// grantSides checks the parts of a grant that depend on its destinations.
func (p *parser) grantSides(r Rule) {
	if len(r.App) == 0 {
		return
	}
	for _, d := range r.Dst {
		if d.Kind == Internet {
			p.report(Error, d.Place, "capabilities cannot be granted on Internet destinations; split the grant")
		}
	}
}

// services reads the ip of a grant. all are the services that * stands for; nil means those of the usual protocols.
func (p *parser) services(m member, all []proto.Service, needed bool) []proto.Service {
	list, ok := p.list(m.value, `a list such as ["tcp:443"]`)
	if ok && len(list) == 0 && needed {
		p.errorf(m.value, `is empty; specify what is granted, such as ["tcp:443"], or ["*"] for everything`)
	}
	var out []proto.Service
	hasAll := false
	for _, v := range list {
		text, ok := p.str(v, "ports in quotes, such as tcp:443")
		if !ok {
			continue
		}
		if all != nil && text == "*" {
			hasAll = true
			continue
		}
		s, err := grantServices(text)
		if err != nil {
			p.errorf(v, "%v", err)
			continue
		}
		out = append(out, s...)
	}
	if hasAll {
		out = slices.Clone(all)
	}
	out = mergeServices(out)
	p.boundServices(m.value, out)
	return out
}
