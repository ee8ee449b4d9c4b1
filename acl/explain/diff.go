package explain

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Change is connections that one policy allows and the other does not.
type Change struct {
	Gained   bool         // else lost
	Src, Dst []string     // users, tags, or what is behind routers
	Services []string     // such as tcp:443
	Rule     proto.Origin // of the policy that allows them
}

// Diff lists the connections that differ between two policies on one mesh. Nodes that no rule of either policy tells apart
// are asked about once, and so are ports, so that its cost is that of what the policies name and not of the mesh.
//
// That cost grows with the square of the identities. Where it would be too much, Diff compares none and returns a TooWideError:
// a list that leaves some out would pass for "no difference" where it matters.
func Diff(before, after *acl.Policy, inv *inventory.Inventory) ([]Change, error) {
	return diff(before, after, inv, maxQuestions)
}

// maxQuestions is how many pairs of ends and ports are asked about. One takes a few microseconds.
const maxQuestions = 10_000_000

// TooWideError says that two policies have too much to compare on a mesh.
type TooWideError struct {
	Identities int // kinds of nodes that the policies tell apart
	Behind     int // networks behind routers
	Segments   int // ranges of ports that the policies tell apart
	Fit        int // how many identities could be compared
}

func (e *TooWideError) Error() string {
	return fmt.Sprintf("%d identities, %d networks behind routers and %d ranges of ports are too many to compare each with each: "+
		"%d identities would do, so %d have to be left out; nothing was compared; use an inventory with fewer of them",
		e.Identities, e.Behind, e.Segments, e.Fit, e.Identities-e.Fit)
}

func diff(before, after *acl.Policy, inv *inventory.Inventory, most int) ([]Change, error) {
	d := &differ{
		inv: inv, books: [2]*Book{Open(before, inv), Open(after, inv)},
		segments: segments(before, after), changes: map[string]*Change{},
	}
	d.classify(literals(before, after))
	behind := d.behind()
	if fit := fitting(len(behind), len(d.segments), most); len(d.classes) > fit {
		return nil, &TooWideError{Identities: len(d.classes), Behind: len(behind), Segments: len(d.segments), Fit: fit}
	}
	ends := slices.Concat(d.classes, behind)
	for _, from := range d.classes {
		for _, to := range ends {
			d.compare(from, to)
		}
	}
	return d.folded(), nil
}

// fitting is how many identities can be compared with each other and with what is behind routers.
func fitting(behind, segments, most int) int {
	pairs := float64(most / max(segments, 1))
	half := float64(behind) / 2
	return int(math.Sqrt(pairs+half*half) - half) // of n*(n+behind) <= pairs
}

type differ struct {
	inv      *inventory.Inventory
	books    [2]*Book
	segments []segment
	classes  []*class
	byWho    map[string]int // how many classes of one identity there are
	changes  map[string]*Change
	order    []string
}

// class is nodes of one identity that both policies treat alike, two of which stand for all.
type class struct {
	who   string
	nodes []proto.Identity
	addr  netip.Addr // behind routers; then there are no nodes
}

// segment is protocols and ports that both policies treat alike; the first of each stands for all.
type segment struct {
	protocols []uint8
	first     uint16
	last      uint16
}

// literals are the ranges that rules name, each once.
func literals(policies ...*acl.Policy) []netip.Prefix {
	var out []netip.Prefix
	add := func(s acl.Selector) {
		if s.Kind == acl.Literal {
			out = append(out, s.Prefix)
		}
		if s.Kind == acl.AddressSet {
			out = append(out, s.Prefixes...)
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
	slices.SortFunc(out, proto.ComparePrefix)
	return slices.Compact(out)
}

// segments cuts protocols and ports where a rule begins or ends.
func segments(policies ...*acl.Policy) []segment {
	cuts := map[uint8][]int{}
	uses := map[uint8]*strings.Builder{}
	for n, p := range policies {
		for i, r := range p.Rules {
			for j, d := range r.Dst {
				for _, s := range d.Services {
					cuts[s.Proto] = append(cuts[s.Proto], int(s.First), int(s.Last)+1)
					if uses[s.Proto] == nil {
						uses[s.Proto] = &strings.Builder{}
					}
					fmt.Fprint(uses[s.Proto], n, i, j, s.First, s.Last, ";")
				}
			}
			if r.Action == acl.Monitor { // about every protocol
				cuts[proto.ProtoTCP] = append(cuts[proto.ProtoTCP], 0)
				cuts[proto.ProtoUDP] = append(cuts[proto.ProtoUDP], 0)
			}
		}
	}
	alike := map[string][]uint8{}
	for protocol := range cuts {
		key := fmt.Sprint(proto.HasPorts(protocol))
		if protocol == proto.ProtoICMP || protocol == proto.ProtoICMPv6 {
			key = fmt.Sprint(protocol)
		}
		if uses[protocol] != nil {
			key += uses[protocol].String()
		}
		alike[key] = append(alike[key], protocol)
	}
	var out []segment
	for _, protocols := range alike {
		slices.Sort(protocols)
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

// classify sorts the nodes into classes.
func (d *differ) classify(named []netip.Prefix) {
	byKey := map[string]*class{}
	d.byWho = map[string]int{}
	for _, n := range d.inv.Nodes {
		key := []byte(n.Who() + "\x00")
		for _, p := range named {
			if slices.ContainsFunc(n.Addrs.Slice(), p.Contains) {
				key = append(key, p.String()...)
			}
		}
		key = fmt.Append(key, "\x00", d.inv.Traits(n.ID), n.User.AuthTime.Unix())
		c, ok := byKey[string(key)]
		if !ok {
			c = &class{who: n.Who()}
			byKey[string(key)] = c
			d.classes = append(d.classes, c)
			d.byWho[c.who]++
		}
		c.nodes = append(c.nodes, n)
	}
}

// behind is what routers serve under either policy, cut where rules name parts of it.
func (d *differ) behind() []*class {
	var routes []netip.Prefix
	for id := range d.inv.Routers() {
		for _, b := range d.books {
			routes = append(routes, b.bound.Approved(id)...)
		}
	}
	var out []*class
	seen := map[netip.Prefix]bool{}
	add := func(p netip.Prefix, a netip.Addr, who string) {
		if _, taken := d.inv.ByAddr(a); !taken && !seen[p] {
			seen[p] = true
			out = append(out, &class{who: who, addr: a})
		}
	}
	named := literals(d.books[0].policy, d.books[1].policy)
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
			if p.Bits() > r.Bits() && r.Contains(p.Addr()) && (!exit || isInternet(p.Addr())) && !d.inv.Mesh.Contains(p.Addr()) {
				add(p, p.Addr(), p.String())
			}
		}
	}
	slices.SortFunc(out, func(a, b *class) int { return a.addr.Compare(b.addr) })
	return out
}

// label names a class by its identity, and by its nodes where others of the identity are treated differently.
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

// compare asks both policies about the connections from one class to another.
func (d *differ) compare(from, to *class) {
	src, dst := from.nodes[0], proto.Identity{}
	if !to.addr.IsValid() {
		dst = to.nodes[0]
		if from == to {
			if len(from.nodes) < 2 {
				return
			}
			dst = from.nodes[1]
		}
	}
	type key struct {
		gained bool
		rule   proto.Origin
		over   string
	}
	found := map[key][]string{}
	var order []key
	for _, s := range d.segments {
		verdict := [2]struct{ v4, v6 compile.Verdict }{}
		for i, b := range d.books {
			ask := func(a, z netip.Addr) compile.Verdict {
				if to.addr.IsValid() {
					z = to.addr
				}
				if wrongFamily(End{Addr: z}, s.protocols[0]) {
					return compile.Verdict{}
				}
				return b.bound.Decide(src.ID, a, z, s.protocols[0], s.first)
			}
			verdict[i].v4, verdict[i].v6 = ask(src.Addrs.V4, dst.Addrs.V4), ask(src.Addrs.V6, dst.Addrs.V6)
		}
		note := func(gained bool, v compile.Verdict, over string) {
			k := key{gained, origin(v.Rule), over}
			if found[k] == nil {
				order = append(order, k)
			}
			found[k] = append(found[k], s.names()...)
		}
		was, is := verdict[0], verdict[1]
		v4, v6 := was.v4.Allowed != is.v4.Allowed, was.v6.Allowed != is.v6.Allowed
		one := proto.HasPorts(s.protocols[0]) && !to.addr.IsValid()
		switch {
		case v4 && v6 && is.v4.Allowed == is.v6.Allowed:
			note(is.v4.Allowed, either(was.v4, is.v4), "")
		default:
			if v4 {
				note(is.v4.Allowed, either(was.v4, is.v4), only("IPv4", one))
			}
			if v6 {
				note(is.v6.Allowed, either(was.v6, is.v6), only("IPv6", one))
			}
		}
	}
	for _, k := range order {
		services := found[k]
		if k.over != "" {
			services = append(services, k.over)
		}
		id := fmt.Sprint(k, d.label(to), services)
		c, ok := d.changes[id]
		if !ok {
			c = &Change{Gained: k.gained, Dst: []string{d.label(to)}, Services: services, Rule: k.rule}
			d.changes[id] = c
			d.order = append(d.order, id)
		}
		if !slices.Contains(c.Src, d.label(from)) {
			c.Src = append(c.Src, d.label(from))
		}
	}
}

func only(family string, one bool) string {
	if one {
		return "over " + family + " only"
	}
	return ""
}

// either is the verdict that allows.
func either(a, b compile.Verdict) compile.Verdict {
	if a.Allowed {
		return a
	}
	return b
}

// names are the services of a segment. Many protocols at once are all those that have no name of their own here.
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

// folded joins changes that differ in their destinations only, names groups for their members, and sorts.
func (d *differ) folded() []Change {
	byRest := map[string]*Change{}
	var out []*Change
	for _, id := range d.order {
		c := d.changes[id]
		c.Src = d.grouped(c.Src)
		key := fmt.Sprint(c.Gained, c.Src, c.Services, c.Rule)
		if first, ok := byRest[key]; ok {
			first.Dst = append(first.Dst, c.Dst...)
			continue
		}
		byRest[key] = c
		out = append(out, c)
	}
	list := make([]Change, len(out))
	for i, c := range out {
		c.Dst = d.grouped(c.Dst)
		list[i] = *c
	}
	slices.SortStableFunc(list, func(a, b Change) int {
		return cmp.Or(-compareBool(a.Gained, b.Gained), cmp.Compare(a.Rule.Line, b.Rule.Line))
	})
	return list
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// grouped puts autogroup:member for all users, if there are several.
func (d *differ) grouped(list []string) []string {
	slices.Sort(list)
	list = slices.Compact(list)
	users := map[string]bool{}
	for _, c := range d.classes {
		if person(c.nodes[0]) {
			users[d.label(c)] = true
		}
	}
	rest := slices.DeleteFunc(slices.Clone(list), func(s string) bool { return users[s] })
	if len(users) < 2 || len(list)-len(rest) != len(users) {
		return list
	}
	return append([]string{"autogroup:member"}, rest...)
}
