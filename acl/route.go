package acl

import (
	"fmt"
	"net/netip"
)

// autoApprovers reads "autoApprovers": {"routes": {"10.0.0.0/8": ["tag:router"]}, "exitNode": ["tag:exit"]}.
func (p *parser) autoApprovers(v value) {
	f, ok := p.fields(v, "an object with routes and exitNode", approverKeys)
	if !ok {
		return
	}
	if m, ok := f["routes"]; ok {
		members, _ := p.object(m.value, "an object of ranges and who may route them")
		seen := map[netip.Prefix]string{}
		for _, m := range members {
			prefix, err := parseRoute(m.key)
			if err != nil {
				p.keyErrorf(m, "%v", err)
				continue
			}
			if before, twice := seen[prefix]; twice {
				p.keyErrorf(m, "%s is the same range as %s above; merge their lists", quote(m.key), quote(before))
				continue
			}
			seen[prefix] = m.key
			p.policy.Approvers.Routes = append(p.policy.Approvers.Routes, RouteApprover{
				Place: p.keyPlace(m), Prefix: prefix, By: p.approvers(m),
			})
		}
	}
	if m, ok := f["exitNode"]; ok {
		p.policy.Approvers.ExitNode = p.approvers(m)
	}
}

// parseRoute parses a prefix that routers may serve.
func parseRoute(text string) (netip.Prefix, error) {
	prefix, ok, err := parseLiteral(text)
	if err == nil && !ok {
		err = fmt.Errorf("%s is not a range of addresses; write one such as 10.0.0.0/8", quote(text))
	}
	return prefix, err
}

// approvers reads the selectors of nodes whose routes are approved automatically.
func (p *parser) approvers(m member) []Selector {
	list, ok := p.list(m.value, "a list of users, groups and tags")
	var out []Selector
	for _, v := range list {
		if s, ok := p.readSelector(v, inApprovers); ok {
			out = append(out, s)
		}
	}
	if ok && len(list) == 0 {
		p.report(Warning, p.place(m.value), "is empty, so it approves nothing; name someone or remove it")
	}
	return out
}

// via reads "via": ["tag:router"]: the routers through which a grant applies.
func (p *parser) via(f map[string]member) []string {
	m, ok := f["via"]
	if !ok || kindName(m.Value) == "null" {
		return nil
	}
	list, _ := p.list(m.value, `a list of tags such as ["tag:router"]`)
	if len(list) > maxVia {
		p.errorf(m.value, "names %d tags; at most %d are read", len(list), maxVia)
		return nil
	}
	var out []string
	for _, v := range list {
		text, ok := p.str(v, "a tag in quotes")
		if !ok {
			continue
		}
		if s, ok := p.checkedSelector(v, text, inVia); ok {
			out = append(out, s.Name)
		}
	}
	return out
}

// maxVia is the maximum number of tags in one via.
const maxVia = 64
