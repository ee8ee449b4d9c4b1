package explain

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// class is a set of nodes with one identity that both policies treat alike; one or two of them stand for all.
type class struct {
	who   string
	nodes []proto.Identity
	addr  netip.Addr // of a network behind routers; then there are no nodes
}

// segment is a range of protocols and ports that both policies treat alike; the first of each stands for all.
type segment struct {
	protocols []uint8
	first     uint16
	last      uint16
}

// meets reports whether services include the segment. Each service includes all of it or nothing.
func (s segment) meets(services []proto.Service) bool {
	return slices.ContainsFunc(services, func(x proto.Service) bool {
		return slices.Contains(s.protocols, x.Proto) && (!proto.HasPorts(x.Proto) || x.First <= s.first && s.first <= x.Last)
	})
}

// literals returns the prefixes that rules name.
func literals(policies []*acl.Policy) *bart.Lite {
	out := new(bart.Lite)
	add := func(s acl.Selector) {
		if s.Kind == acl.Literal {
			out.Insert(s.Prefix)
		}
		if s.Kind == acl.AddressSet {
			for _, p := range s.Prefixes {
				out.Insert(p)
			}
		}
	}
	for _, p := range policies {
		for _, r := range p.Rules {
			for _, s := range r.Src {
				add(s)
			}
			for _, d := range r.Dst {
				add(d.Selector)
			}
		}
	}
	return out
}

// segments splits protocols and ports wherever a service of a rule begins or ends.
func segments(policies []*acl.Policy) []segment {
	var cuts [256][]int
	var uses [256][]byte // which rules use a protocol, and with which ports
	for n, p := range policies {
		for i, r := range p.Rules {
			for j, d := range r.Dst {
				for _, s := range d.Services {
					cuts[s.Proto] = append(cuts[s.Proto], int(s.First), int(s.Last)+1)
					for _, x := range []int{n, i, j, int(s.First), int(s.Last)} {
						uses[s.Proto] = append(strconv.AppendInt(uses[s.Proto], int64(x), 10), ' ')
					}
				}
			}
		}
	}
	alike := map[string][]uint8{}
	for n := range cuts {
		protocol := uint8(n)
		if cuts[protocol] == nil {
			continue
		}
		key := string(strconv.AppendBool(uses[protocol], proto.HasPorts(protocol)))
		if protocol == proto.ProtoICMP || protocol == proto.ProtoICMPv6 {
			key += strconv.Itoa(n) // each belongs to one family
		}
		alike[key] = append(alike[key], protocol)
	}
	var out []segment
	for _, protocols := range alike {
		if !proto.HasPorts(protocols[0]) {
			out = append(out, segment{protocols, 0, 65535})
			continue
		}
		at := append(cuts[protocols[0]], 0)
		slices.Sort(at)
		at = append(slices.Compact(at), 65536)
		for i, first := range at[:len(at)-1] {
			if first < 65536 {
				out = append(out, segment{protocols, uint16(first), uint16(min(at[i+1], 65536) - 1)})
			}
		}
	}
	slices.SortFunc(out, func(a, b segment) int {
		return cmp.Or(cmp.Compare(a.protocols[0], b.protocols[0]), cmp.Compare(a.first, b.first))
	})
	return out
}

// asked is what the conditions of rules depend on: only that can distinguish two nodes with the same identity.
type asked struct {
	facts  map[string]struct{}
	logins bool // login times
}

func askedBy(policies []*acl.Policy) asked {
	a := asked{facts: map[string]struct{}{"user:mfa": {}}}
	for _, p := range policies {
		a.logins = a.logins || p.Session.MaxAge > 0
		for _, r := range p.Rules {
			a.logins = a.logins || r.Auth != nil
			for _, name := range r.Postures {
				for _, c := range p.Postures[name].Conditions {
					a.facts[c.Fact] = struct{}{}
					a.logins = a.logins || c.Fact == "user:authAge"
				}
			}
		}
	}
	return a
}

// classify groups the touched nodes into classes.
func (d *differ) classify(touched []proto.NodeID) {
	named, asked := literals(d.policies), askedBy(d.policies)
	byKey := map[string]int{}
	for _, id := range touched {
		n, ok := d.inv.Node(id)
		if !ok {
			continue
		}
		key := fmt.Appendf(nil, "%s\x00%q", n.Who(), n.Tags)
		for _, a := range n.Addrs.Slice() {
			for p := range named.Supernets(netip.PrefixFrom(a, a.BitLen())) {
				key = fmt.Append(key, "\x00", p)
			}
		}
		set := d.inv.Traits(id).Facts
		for _, name := range slices.Sorted(maps.Keys(asked.facts)) {
			if v, ok := set[name]; ok {
				key = fmt.Appendf(key, "\x00%s=%s", name, v)
			}
		}
		if asked.logins {
			key = fmt.Append(key, "\x00", n.User.AuthTime.Unix())
		}
		i, ok := byKey[string(key)]
		if !ok {
			i = len(d.classes)
			byKey[string(key)] = i
			d.classes = append(d.classes, &class{who: n.Who()})
			d.byWho[n.Who()]++
		}
		d.classes[i].nodes = append(d.classes[i].nodes, n)
		d.classOf[id] = i
	}
	d.nodes, d.members = len(d.classes), true
	for id := range d.inv.All() {
		n, _ := d.inv.Node(id)
		if _, ok := d.classOf[id]; ok {
			continue
		}
		if who := n.Who(); d.byWho[who] == 1 {
			d.byWho[who]++ // some of its nodes are not touched, so the name alone would claim too much
		}
		d.members = d.members && !person(n)
	}
}

// behind adds the networks that routers serve under either policy, split where rules name parts of them.
func (d *differ) behind() {
	var routes []netip.Prefix
	for id := range d.inv.Routers() {
		for _, b := range d.bound {
			routes = append(routes, b.Approved(id)...)
		}
	}
	seen := map[netip.Prefix]bool{}
	add := func(p netip.Prefix, a netip.Addr, who string) {
		if _, taken := d.inv.ByAddr(a); !taken && !seen[p] {
			seen[p] = true
			d.classes = append(d.classes, &class{who: who, addr: a})
		}
	}
	var named []netip.Prefix
	if len(routes) > 0 {
		named = slices.Collect(literals(d.policies).All())
	}
	for _, r := range routes {
		exit := r.Bits() == 0
		switch {
		case exit && r.Addr().Is4():
			add(r, netip.MustParseAddr("8.8.8.8"), "autogroup:internet (IPv4)")
		case exit:
			add(r, netip.MustParseAddr("2001:4860:4860::8888"), "autogroup:internet (IPv6)")
		default:
			add(r, r.Addr(), r.String())
		}
		for _, p := range named {
			if p.Bits() > r.Bits() && r.Contains(p.Addr()) && (!exit || isInternet(p.Addr())) && !d.mesh.Contains(p.Addr()) {
				add(p, p.Addr(), p.String())
			}
		}
	}
	slices.SortFunc(d.classes[d.nodes:], func(a, b *class) int { return a.addr.Compare(b.addr) })
}

// label names a class by its identity, and also by its nodes if others with the identity are treated differently.
func (d *differ) label(c *class) string {
	if d.byWho[c.who] < 2 {
		return c.who
	}
	const most = 3
	var nodes []string
	for _, n := range c.nodes[:min(len(c.nodes), most)] {
		nodes = append(nodes, n.Name)
	}
	if more := len(c.nodes) - most; more > 0 {
		nodes = append(nodes, fmt.Sprintf("%d more", more))
	}
	return fmt.Sprintf("%s (%s)", c.who, strings.Join(nodes, ", "))
}

// names returns the services of a segment. Many protocols at once are those without a name here, and are summarized.
func (s segment) names() []string {
	const most = 8
	var out []string
	for _, p := range s.protocols {
		out = append(out, ServiceName(proto.Service{Proto: p, First: s.first, Last: s.last}))
	}
	if more := len(out) - most; more > 0 {
		out = append(out[:most], fmt.Sprintf("%d more protocols", more))
	}
	return out
}
