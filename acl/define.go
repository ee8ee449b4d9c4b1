package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// groups reads "groups": {"group:eng": ["ann@example.com", ...]}.
func (p *parser) groups(v value) {
	members, ok := p.object(v, "an object of groups and their members")
	if !ok {
		return
	}
	for _, m := range members {
		if err := checkGroup(m.key); err != nil {
			p.keyErrorf(m, "%v", err)
			continue
		}
		g := Group{Place: p.keyPlace(m), Name: m.key}
		users, _ := p.list(m.value, "a list of users")
		for _, u := range users {
			text, ok := p.str(u, "a user such as ann@example.com")
			if !ok {
				continue
			}
			if err := checkGroupMember(text); err != nil {
				p.errorf(u, "%v", err)
				continue
			}
			g.Members = append(g.Members, Selector{
				Place: p.place(u), Kind: User, Text: text, Name: strings.TrimSuffix(text, "@"),
			})
		}
		p.policy.Groups[m.key] = g
	}
}

func checkGroupMember(text string) error {
	switch {
	case strings.HasPrefix(text, "group:") && !strings.Contains(text, "@"):
		return fmt.Errorf("%s: groups cannot be nested; list its members here, or both groups in the rule", quote(text))
	case strings.HasPrefix(text, "tag:"), strings.HasPrefix(text, "autogroup:"), strings.HasPrefix(text, "user:*@"):
		return fmt.Errorf("%s: a group contains only users; name it in the rule next to the group", quote(text))
	}
	return CheckUser(text)
}

// hosts reads "hosts": {"web": "100.64.0.7", ...}.
func (p *parser) hosts(v value) {
	members, ok := p.object(v, "an object of names and addresses")
	if !ok {
		return
	}
	for _, m := range members {
		if err := checkHostName(m.key); err != nil {
			p.keyErrorf(m, "%v", err)
			continue
		}
		text, ok := p.str(m.value, "an address or a CIDR in quotes")
		if !ok {
			continue
		}
		prefix, ok, err := parseLiteral(text)
		if err == nil && !ok {
			err = fmt.Errorf("%s is not an address; want one such as 100.64.0.7, or a CIDR such as 10.0.0.0/8", quote(text))
		}
		if err != nil {
			p.errorf(m.value, "%v", err)
			continue
		}
		p.warnHostBits(m.value, text)
		p.policy.Hosts[m.key] = Host{Place: p.keyPlace(m), Name: m.key, Prefix: prefix}
	}
}

// warnHostBits warns if a CIDR covers more than it appears to.
func (p *parser) warnHostBits(v value, text string) {
	if prefix, err := netip.ParsePrefix(text); err == nil && prefix != prefix.Masked() {
		p.report(Warning, p.place(v), "%s covers all of %s; write that, or a single address without a length", quote(text), prefix.Masked())
	}
}

func checkHostName(name string) error {
	if _, ok, _ := parseLiteral(name); ok {
		return fmt.Errorf("%s is an address and cannot be a name for another; rename it", quote(name))
	}
	if !word(name) {
		return fmt.Errorf("%s cannot name a host; use letters, digits, -, _ and dots", quote(name))
	}
	return nil
}

// tagOwners reads "tagOwners": {"tag:db": ["group:admins", ...]}. Tags may own tags, so the names are read first.
func (p *parser) tagOwners(v value) {
	members, ok := p.object(v, "an object of tags and their owners")
	if !ok {
		return
	}
	for _, m := range members {
		if err := CheckTag(m.key); err != nil {
			p.keyErrorf(m, "%v", err)
			continue
		}
		p.policy.TagOwners[m.key] = TagOwner{Place: p.keyPlace(m), Tag: m.key}
	}
	for _, m := range members {
		t, ok := p.policy.TagOwners[m.key]
		if !ok {
			continue
		}
		owners, _ := p.list(m.value, "a list of owners")
		for _, o := range owners {
			if s, ok := p.readSelector(o, inOwners); ok {
				t.Owners = append(t.Owners, s)
			}
		}
		p.policy.TagOwners[m.key] = t
	}
	p.tagCycles()
}

// tagCycles reports tags that own each other in a cycle. A tag may own itself: that only lets its machines pass it on.
func (p *parser) tagCycles() {
	const (
		unseen = iota
		open
		done
	)
	state := map[string]int{}
	var path []string
	var visit func(tag string)
	visit = func(tag string) {
		state[tag] = open
		path = append(path, tag)
		for _, o := range p.policy.TagOwners[tag].Owners {
			switch {
			case o.Kind != Tag || o.Name == tag:
			case state[o.Name] == unseen:
				visit(o.Name)
			case state[o.Name] == open:
				circle := path[slices.Index(path, o.Name):]
				p.report(Error, o.Place, "tags own each other in a circle: %s; remove one of these owners", circleText(circle, o.Name))
			}
		}
		path = path[:len(path)-1]
		state[tag] = done
	}
	for _, tag := range sortedKeys(p.policy.TagOwners) {
		if state[tag] == unseen {
			visit(tag)
		}
	}
}

func circleText(circle []string, first string) string {
	const shownTags = 8
	if len(circle) > shownTags {
		circle = append(slices.Clone(circle[:shownTags]), "...")
	}
	return strings.Join(circle, " <- ") + " <- " + first
}
