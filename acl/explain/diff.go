package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Difference is how two policies differ on one mesh.
type Difference struct {
	// Touched is the number of nodes affected: something may change for them, if only the capabilities they are sent.
	Touched int
	// Changes are the connections that differ; gained ones come first.
	Changes []Change
}

// Change is a set of connections that one policy allows and the other does not.
type Change struct {
	Gained   bool         // else lost
	Src, Dst []string     // users, tags, or networks behind routers
	Services []string     // such as tcp:443
	Rule     proto.Origin // of the policy that allows them
}

// Diff lists the connections that differ between two policies on one mesh. It compares only connections covered by a rule that
// one policy has and the other does not, and only one node of several that no rule of either policy distinguishes, and likewise
// one port. So its cost depends on what changed, not on the size of the mesh.
//
// If more than most connections would still have to be compared, it compares none and returns a TooWideError along with the
// number of nodes touched: an incomplete list would be read as "no difference" for what it leaves out.
func Diff(before, after *compile.Program, inv compile.Inventory, most int) (Difference, error) {
	d := &differ{
		inv: inv, mesh: after.Mesh(), policies: policies(before, after), bound: [2]*compile.Bound{before.On(inv), after.On(inv)},
		byWho: map[string]int{}, classOf: map[proto.NodeID]int{}, changes: map[string]*Change{},
	}
	spans, touched := compile.Spans(d.bound[0], d.bound[1])
	out := Difference{Touched: len(touched)}
	if len(spans) == 0 {
		return out, nil
	}
	d.segments = segments(d.policies)
	d.classify(touched)
	d.behind()
	rules, err := d.narrowed(spans, most)
	if err != nil {
		return out, err
	}
	d.ask(rules)
	out.Changes = d.folded()
	return out, nil
}

// TooWideError reports that two policies differ in more connections than may be compared.
type TooWideError struct {
	Sources, Destinations int // classes of nodes that the policies distinguish, and networks behind routers
	Services              int // ranges of ports and protocols
	Connections, Most     int // the number to compare, and the limit
}

func (e *TooWideError) Error() string {
	return fmt.Sprintf("the policies differ about connections from %d identities to %d, in %d ranges of ports and protocols: "+
		"that is %d to compare, and %d is the most, so none was compared", e.Sources, e.Destinations, e.Services, e.Connections, e.Most)
}

type differ struct {
	inv      compile.Inventory
	mesh     proto.Mesh
	policies []*acl.Policy // those that are not nil
	bound    [2]*compile.Bound
	segments []segment
	classes  []*class // of nodes, then networks behind routers
	nodes    int      // how many of the classes are of nodes
	classOf  map[proto.NodeID]int
	byWho    map[string]int // how many labels an identity needs; 2 if some of its nodes are in no class
	members  bool           // every node of a person is in a class
	changes  map[string]*Change
	order    []string
}

func policies(programs ...*compile.Program) (out []*acl.Policy) {
	for _, p := range programs {
		if p.Policy() != nil {
			out = append(out, p.Policy())
		}
	}
	return out
}

// narrowed is a span in terms of classes and segments.
type narrowed struct {
	src, dst []int
	self     bool
	segments []int
}

// narrowed finds the classes and segments that each span covers.
func (d *differ) narrowed(spans []compile.Span, most int) ([]narrowed, error) {
	out := make([]narrowed, 0, len(spans))
	src, dst, kinds, questions := map[int]bool{}, map[int]bool{}, map[int]bool{}, 0
	for _, s := range spans {
		n := narrowed{src: d.numbers(s.Src), dst: d.numbers(s.Dst), self: s.Self}
		for i := d.nodes; i < len(d.classes); i++ {
			if s.Leads(d.classes[i].addr) {
				n.dst = append(n.dst, i)
			}
		}
		for i, x := range d.segments {
			if x.meets(s.Services) {
				n.segments = append(n.segments, i)
			}
		}
		to := len(n.dst)
		if n.self {
			to = 1
			note(dst, n.src)
		}
		questions += len(n.src) * to * len(n.segments)
		note(src, n.src)
		note(dst, n.dst)
		note(kinds, n.segments)
		out = append(out, n)
	}
	if questions > most {
		return nil, &TooWideError{Sources: len(src), Destinations: len(dst), Services: len(kinds), Connections: questions, Most: most}
	}
	return out, nil
}

func note(seen map[int]bool, list []int) {
	for _, i := range list {
		seen[i] = true
	}
}

// numbers returns the classes of nodes, sorted.
func (d *differ) numbers(ids []proto.NodeID) []int {
	var out []int
	for _, id := range ids {
		if i, ok := d.classOf[id]; ok {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// ask compares each pair of classes that a rule covers, in the segments that it covers.
func (d *differ) ask(rules []narrowed) {
	from := make([][]int, d.nodes)
	for i, r := range rules {
		for _, c := range r.src {
			from[c] = append(from[c], i)
		}
	}
	about := make([][]int, len(d.classes))
	for c, list := range from {
		var to []int
		add := func(class int, r *narrowed) {
			if about[class] == nil {
				to = append(to, class)
			}
			about[class] = append(about[class], r.segments...)
		}
		for _, i := range list {
			r := &rules[i]
			for _, x := range r.dst {
				add(x, r)
			}
			if r.self {
				for _, x := range r.src {
					if d.classes[x].who == d.classes[c].who {
						add(x, r)
					}
				}
			}
		}
		slices.Sort(to)
		for _, x := range to {
			slices.Sort(about[x])
			d.compare(d.classes[c], d.classes[x], slices.Compact(about[x]))
			about[x] = nil
		}
	}
}

// finding is how services between two classes change: by which rule and, if not over both, over which family.
type finding struct {
	gained bool
	rule   proto.Origin
	over   string
}

// compare asks both policies about the connections from one class to another in the segments about.
func (d *differ) compare(from, to *class, about []int) {
	src, dst, ok := pair(from, to)
	if !ok {
		return
	}
	found := map[finding][]string{}
	var order []finding
	for _, i := range about {
		s := d.segments[i]
		note := func(gained bool, v compile.Verdict, over string) {
			k := finding{gained, origin(v.Rule), over}
			if found[k] == nil {
				order = append(order, k)
			}
			found[k] = append(found[k], s.names()...)
		}
		was, is := s.decide(d.bound[0], src, dst, to.addr), s.decide(d.bound[1], src, dst, to.addr)
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
		d.record(k, from, to, found[k])
	}
}

// pair returns a node of each class, two different ones if the classes are the same. The destination is zero if it is an
// address outside the mesh.
func pair(from, to *class) (src, dst proto.Identity, ok bool) {
	switch {
	case to.addr.IsValid():
		return from.nodes[0], proto.Identity{}, true
	case from != to:
		return from.nodes[0], to.nodes[0], true
	case len(from.nodes) < 2:
		return src, dst, false
	}
	return from.nodes[0], from.nodes[1], true
}

// families holds the verdicts about one connection over each address family.
type families struct{ v4, v6 compile.Verdict }

// decide returns a policy's verdict about the segment, from one node to another, or to addr if that is valid.
func (s segment) decide(b *compile.Bound, src, dst proto.Identity, addr netip.Addr) families {
	ask := func(a, z netip.Addr) compile.Verdict {
		if addr.IsValid() {
			z = addr
		}
		if wrongFamily(End{Addr: z}, s.protocols[0]) {
			return compile.Verdict{}
		}
		return b.Decide(src.ID, a, z, s.protocols[0], s.first)
	}
	return families{ask(src.Addrs.V4, dst.Addrs.V4), ask(src.Addrs.V6, dst.Addrs.V6)}
}

// record adds the source to an otherwise equal change if there is one, so that one change names all sources.
func (d *differ) record(k finding, from, to *class, services []string) {
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

func only(family string, one bool) string {
	if one {
		return "over " + family + " only"
	}
	return ""
}

// either returns the verdict that allows.
func either(a, b compile.Verdict) compile.Verdict {
	if a.Allowed {
		return a
	}
	return b
}

// folded joins changes that differ only in their destinations, substitutes groups for their members, and sorts.
func (d *differ) folded() []Change {
	byRest := map[string]*Change{}
	var out []*Change
	for _, id := range d.order {
		c := d.changes[id]
		c.Src = d.grouped(c.Src, c.Dst)
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
		c.Dst = d.grouped(c.Dst, c.Src)
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

// grouped substitutes autogroup:member for all users if there are several and all are in list. A user who is alone on the other
// side and has only one node may be missing: there is nobody for them to connect to.
func (d *differ) grouped(list, other []string) []string {
	slices.Sort(list)
	list = slices.Compact(list)
	if !d.members {
		return list
	}
	users, here := map[string]*class{}, map[string]bool{}
	for _, c := range d.classes[:d.nodes] {
		if person(c.nodes[0]) {
			users[d.label(c)] = c
		}
	}
	rest := make([]string, 0, len(list))
	for _, s := range list {
		if users[s] == nil {
			rest = append(rest, s)
		}
		here[s] = true
	}
	missing := len(users) - (len(list) - len(rest))
	if len(other) == 1 && !here[other[0]] {
		if c := users[other[0]]; c != nil && len(c.nodes) == 1 {
			missing--
		}
	}
	if len(users) < 2 || missing > 0 || len(rest) == len(list) {
		return list
	}
	return append([]string{"autogroup:member"}, rest...)
}
