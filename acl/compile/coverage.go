package compile

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// covered is a rule and how one of its sides covers a node.
type covered struct {
	rule int32
	in   families // in which the node's own addresses are covered
	// parts of the node's routes that are covered, and the routes that they are part of; both sorted.
	parts, routes []netip.Prefix
	// withheld reports whether the node does not meet the rule's condition on its source; missing is what it lacks.
	withheld bool
	missing  string
}

// families returns the families in which anything is covered.
func (c *covered) families() families {
	in := c.in
	for _, p := range c.parts {
		in |= family(p.Addr())
	}
	return in
}

// covers reports whether an address of the node, or one behind it, is covered.
func (c *covered) covers(a netip.Addr, own bool) bool {
	if own {
		return c.in&family(a) != 0
	}
	return slices.ContainsFunc(c.parts, func(p netip.Prefix) bool { return p.Contains(a) })
}

// coverage lists the rules that cover a node.
type coverage struct {
	src, dst []covered // ascending by rule
	// user is the set of its user's nodes if it has a user; rules about autogroup:self use it.
	user string
}

// coverage returns the coverage of a node. The node must be from the inventory, or have an ID that no node in it has.
func (b *Bound) coverage(n proto.Identity) coverage {
	c, ok := b.covers[n.ID]
	if !ok {
		c = b.cover(n, b.factsOf(n))
		b.covers[n.ID] = c
	}
	return c
}

func (b *Bound) factsOf(n proto.Identity) facts {
	return factsOf(n, b.inv.Traits(n.ID).Facts, b.inv.Now())
}

// cover computes the coverage of a node with some facts.
func (b *Bound) cover(n proto.Identity, f facts) coverage {
	sets, routes := b.setsOf(n), b.Approved(n.ID)
	c := coverage{src: b.prog.find(&b.prog.src, sets, n.Addrs, routes, false), dst: b.prog.find(&b.prog.dst, sets, n.Addrs, routes, true)}
	if member(n) {
		c.user = acl.UserSet(n.User.Name)
	}
	now := b.inv.Now()
	ended := func(x covered) bool {
		r := &b.prog.rules[x.rule]
		return r.action == proto.Monitor && !now.IsZero() && !now.Before(r.until)
	}
	c.src, c.dst = slices.DeleteFunc(c.src, ended), slices.DeleteFunc(c.dst, ended)
	out := c.src[:0]
	for _, x := range c.src {
		if r := &b.prog.rules[x.rule]; r.cond != nil {
			ok, missing := r.cond.holds(n, f)
			switch {
			case r.action != proto.Deny: // nothing is known about hosts behind a router
				x.withheld, x.missing = !ok, missing
				x.parts, x.routes = nil, nil
			case !ok && r.self:
				x.withheld = true
			case !ok: // hosts behind it are denied nevertheless
				x.in = 0
			}
			if x.in == 0 && len(x.parts) == 0 {
				continue
			}
		}
		out = append(out, x)
	}
	c.src = out
	out = c.dst[:0]
	for _, x := range c.dst {
		if r := &b.prog.rules[x.rule]; len(r.via) > 0 {
			x.in = 0
			if len(x.parts) == 0 || !slices.ContainsFunc(r.via, n.HasTag) {
				continue
			}
		}
		out = append(out, x)
	}
	c.dst = out
	return c
}

// hit is one way in which a rule covers a node.
type hit struct {
	rule        int32
	in          families
	part, route netip.Prefix
}

// find lists the rules that cover a node, in ascending order.
func (p *Program) find(x *sideIndex, sets []string, addrs proto.Addrs, routes []netip.Prefix, dst bool) []covered {
	var hits []hit
	own := func(rules []int32, in families) {
		for _, r := range rules {
			hits = append(hits, hit{rule: r, in: in})
		}
	}
	for _, name := range sets {
		own(x.bySet[name], both)
	}
	own(x.everything, both)
	for _, a := range addrs.Slice() {
		if slices.ContainsFunc(p.any, func(p netip.Prefix) bool { return p.Contains(a) }) {
			own(x.any, family(a))
		}
		if !a.IsValid() {
			continue
		}
		for _, rules := range x.prefixes.Supernets(netip.PrefixFrom(a, a.BitLen())) {
			for _, r := range rules {
				in := family(a)
				if p.rules[r].action == proto.Deny {
					in = both
				}
				hits = append(hits, hit{rule: r, in: in})
			}
		}
	}
	for _, route := range routes {
		hits = p.findRoute(x, hits, route, dst)
	}
	return fold(hits)
}

// findRoute adds the rules that cover part of a route. The route of an exit node stands for the internet.
func (p *Program) findRoute(x *sideIndex, hits []hit, route netip.Prefix, dst bool) []hit {
	parts := []netip.Prefix{route}
	exit := route.Bits() == 0
	if exit {
		parts = internetIn(family(route.Addr()))
	}
	for _, part := range parts {
		add := func(rules []int32, part netip.Prefix) {
			for _, r := range rules {
				hits = append(hits, hit{rule: r, part: part, route: route})
			}
		}
		add(x.everything, part)
		if !exit || dst {
			add(x.any, part)
		}
		if exit && dst {
			add(x.internet, part)
		}
		for _, rules := range x.prefixes.Supernets(part) {
			add(rules, part)
		}
		for narrower, rules := range x.prefixes.Subnets(part) {
			if narrower != part {
				add(rules, narrower)
			}
		}
	}
	return hits
}

// fold merges hits of the same rule.
func fold(hits []hit) []covered {
	slices.SortStableFunc(hits, func(a, b hit) int { return int(a.rule) - int(b.rule) })
	var out []covered
	for _, h := range hits {
		if n := len(out); n == 0 || out[n-1].rule != h.rule {
			out = append(out, covered{rule: h.rule})
		}
		c := &out[len(out)-1]
		c.in |= h.in
		if h.part.IsValid() {
			c.parts, c.routes = append(c.parts, h.part), append(c.routes, h.route)
		}
	}
	for i := range out {
		if c := &out[i]; len(c.parts) > 0 {
			slices.SortFunc(c.parts, proto.ComparePrefix)
			slices.SortFunc(c.routes, proto.ComparePrefix)
			c.parts, c.routes = slices.Compact(c.parts), slices.Compact(c.routes)
		}
	}
	return out
}

// setsOf returns the names of the sets that a node is in by identity.
func (b *Bound) setsOf(id proto.Identity) []string {
	if len(id.Tags) > 0 {
		out := []string{"autogroup:tagged"}
		for _, t := range id.Tags {
			if strings.HasPrefix(t, "tag:") { // anything else must not be taken for another set
				out = append(out, t)
			}
		}
		return out
	}
	if !member(id) {
		return nil
	}
	login := id.User.Name
	out := []string{"autogroup:member", acl.UserSet(login)}
	if domain := acl.DomainOf(login); domain != "" {
		out = append(out, "user:*@"+domain)
	}
	for _, role := range b.inv.Roles(login) {
		if slices.Contains(acl.Roles, role) {
			out = append(out, "autogroup:"+role)
		}
	}
	return append(out, b.prog.groups[login]...)
}
