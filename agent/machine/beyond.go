package machine

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Beyond is what the host's network routes beyond the mesh. Values are shared and must not be changed.
type Beyond struct {
	// Routes are the networks behind peers that are routed to them, sorted. Default routes are not among them.
	Routes []netip.Prefix
	Exit   Exit
	// Serves are the networks into which this node forwards for others, sorted; none contains another.
	Serves []netip.Prefix
	// PlainSource turns off source NAT for what is forwarded there.
	PlainSource bool
}

// Exit is the route to everything that is neither in the mesh nor in one of the routes.
type Exit struct {
	On     bool // nothing goes there except through an exit node
	V4, V6 bool // what the exit node carries at the moment
	LAN    bool // the networks that this machine is in are left alone
}

func (b Beyond) equal(o Beyond) bool {
	return slices.Equal(b.Routes, o.Routes) && b.Exit == o.Exit && slices.Equal(b.Serves, o.Serves) && b.PlainSource == o.PlainSource
}

// maxParts is how many parts of the Internet rules may name before all of it is forwarded, for the filter to decide.
const maxParts = 512

// beyond is what was decided last.
type beyond struct {
	stale   bool // rules or routes changed since
	led     Beyond
	offered []netip.Prefix
	used    map[netip.Prefix]bool // those of offered that are served
}

// checkRouting checks whether the requested routing is possible. It is called before anything is changed.
func (m *Machine) checkRouting(e Up) error {
	r := e.Routing
	if r == nil {
		return nil
	}
	var mesh proto.Mesh
	if m.self != nil && m.wanted.Revoked == nil {
		mesh = m.self.Record.Mesh
	}
	if err := r.Check(mesh); err != nil {
		return err
	}
	if r.Exit == "" || r.Exit == m.wanted.Routing.Exit || m.State() != StateRunning {
		return nil
	}
	match := named(r.Exit)
	if match(m.self.Node) {
		return errors.New("this node cannot be its own exit node")
	}
	for _, p := range m.roster.peers {
		if p.live == nil || !match(p.live.node) {
			continue
		}
		if !slices.ContainsFunc(p.claim.Routes, everything) {
			return fmt.Errorf("%s is not an exit node for this one: it must run `redoubt up --advertise-exit-node`, an administrator must "+
				"approve 0.0.0.0/0 and ::/0 with `redoubt-coordinator node approve-routes`, and the policy must let this node reach "+
				"autogroup:internet", p.live.node.Name)
		}
		return nil
	}
	return fmt.Errorf("exit node %.100q is not a node that this one knows: `redoubt status` lists the nodes that a rule connects it with", r.Exit)
}

func everything(p netip.Prefix) bool { return p.Bits() == 0 }

// named returns a function that matches the node with the given name, ID or mesh address.
func named(who string) func(*cert.Node) bool {
	addr, _ := netip.ParseAddr(who)
	return func(n *cert.Node) bool {
		return n.Name == who || n.DNSName == who || n.ID.String() == who || addr.IsValid() && n.Addrs.Has(addr)
	}
}

// setRouting changes the routing settings while the node runs.
func (m *Machine) setRouting(r *state.Routing) {
	if r == nil || r.Equal(m.wanted.Routing) {
		return
	}
	m.wanted.Routing = *r
	m.beyond.stale = true
	m.do(SaveWanted{m.wanted})
	if m.offer() && m.contact.open {
		m.do(Redial{Reason: "the routes that this node offers changed"})
	}
	if m.self != nil {
		m.enforce(nil, false)
	}
}

// offer announces which routes the node offers, and reports whether they have changed.
func (m *Machine) offer() bool {
	var mesh proto.Mesh
	if m.self != nil {
		mesh = m.self.Record.Mesh
	}
	offers, _ := m.wanted.Routing.Offers(mesh)
	if slices.Equal(offers, m.beyond.offered) {
		return false
	}
	m.beyond.offered, m.beyond.stale = offers, true
	m.do(Offer{offers})
	return true
}

// startPath asks for a data path. What goes beyond the mesh is routed to it from the start: until the filter opens, it is
// refused there instead of leaving in clear.
func (m *Machine) startPath() {
	m.path = pathState{wanted: true}
	if m.netmap != nil {
		m.settle() // the engine is told of all peers once it runs
		m.assign()
	}
	m.beyond.led = m.ahead()
	m.do(StartPath{Self: m.self, Beyond: m.beyond.led})
}

// assign determines which peer each used route goes to: networks if the user accepts them and this node does not serve them
// itself, the Internet if the peer is the exit node.
func (m *Machine) assign() {
	exit, _ := m.exit()
	before := m.routes
	m.routes = m.roster.assign(func(id proto.NodeID, p netip.Prefix) bool {
		if everything(p) {
			return id == exit
		}
		_, own := slices.BinarySearchFunc(m.wanted.Routing.Advertise, p, proto.ComparePrefix)
		return m.wanted.Routing.Accept && !own
	})
	if !maps.EqualFunc(before, m.routes, slices.Equal) {
		m.beyond.stale = true
	}
}

// exit returns the wanted exit node, if it is a live peer that serves as one.
func (m *Machine) exit() (proto.NodeID, *cert.Node) {
	if m.wanted.Routing.Exit == "" {
		return 0, nil
	}
	match := named(m.wanted.Routing.Exit)
	for id := range m.roster.routers {
		if p := m.roster.peers[id]; p.live != nil && match(p.live.node) && slices.ContainsFunc(p.claim.Routes, everything) {
			return id, p.live.node
		}
	}
	return 0, nil
}

// lead has the host's network brought in line with the routes used and served. It comes after the effects that open and
// close the filter: what is routed to the filter too early or too late is refused there.
func (m *Machine) lead() {
	if !m.path.up || !m.beyond.stale {
		return
	}
	m.beyond.stale = false
	if b := m.ahead(); !b.equal(m.beyond.led) {
		m.beyond.led = b
		m.do(Lead{b})
	}
}

// ahead returns what should be routed beyond the mesh.
func (m *Machine) ahead() Beyond {
	r := m.wanted.Routing
	b := Beyond{Exit: Exit{On: r.Exit != "", LAN: r.ExitLAN}, Serves: m.serves()}
	b.PlainSource = r.PlainSource && len(b.Serves) > 0
	for _, prefixes := range m.routes {
		for _, p := range prefixes {
			switch p {
			case state.Everything4:
				b.Exit.V4 = true
			case state.Everything6:
				b.Exit.V6 = true
			default:
				b.Routes = append(b.Routes, p)
			}
		}
	}
	slices.SortFunc(b.Routes, proto.ComparePrefix)
	return b
}

// serves returns the offered routes that some rule names, which means that they are approved. Of the Internet, it is the
// parts that rules name.
func (m *Machine) serves() []netip.Prefix {
	m.beyond.used = map[netip.Prefix]bool{}
	if m.netmap == nil || len(m.beyond.offered) == 0 || m.wanted.Revoked != nil || len(m.missing) > 0 {
		return nil
	}
	var list []netip.Prefix
	seen, parts := map[netip.Prefix]bool{}, 0
	for _, rule := range m.netmap.Rules {
		for _, p := range rule.Local {
			// A rule about the Internet behind an exit node opens nothing on this host.
			if seen[p] || rule.Action == proto.Deny || everything(p) && rule.Direction != proto.In ||
				!everything(p) && m.netmap.Mesh.Contains(p.Addr()) {
				continue
			}
			seen[p] = true
			switch o, ok := m.offeredFor(p); {
			case !ok:
			case everything(o):
				m.beyond.used[o] = true
				list = append(list, p)
				parts++
			case !m.beyond.used[o]:
				m.beyond.used[o] = true
				list = append(list, o)
			}
		}
	}
	if parts > maxParts {
		for o := range m.beyond.used {
			if everything(o) {
				list = append(list, o)
			}
		}
	}
	return outermost(list)
}

// offeredFor returns the offered route that contains a prefix: the narrowest, since no other need be approved.
func (m *Machine) offeredFor(part netip.Prefix) (route netip.Prefix, ok bool) {
	for _, o := range m.beyond.offered {
		if o.Bits() <= part.Bits() && o.Contains(part.Addr()) && (!ok || o.Bits() > route.Bits()) {
			route, ok = o, true
		}
	}
	return route, ok
}

// outermost removes prefixes that lie in others, and sorts the rest.
func outermost(list []netip.Prefix) (out []netip.Prefix) {
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(cmp.Compare(a.Bits(), b.Bits()), proto.ComparePrefix(a, b))
	})
	held := map[netip.Prefix]bool{}
	for _, p := range list {
		inside := false
		for bits := 0; bits <= p.Bits() && !inside; bits++ {
			inside = held[netip.PrefixFrom(p.Addr(), bits).Masked()]
		}
		if !inside {
			held[p] = true
			out = append(out, p)
		}
	}
	slices.SortFunc(out, proto.ComparePrefix)
	return out
}

// RoutingView describes routing beyond the mesh, for people.
type RoutingView struct {
	Offered []OfferedRoute
	SNAT    bool
	Accept  bool
	Routes  []PeerRoute // served by peers, sorted
	Exit    *ExitView   // nil: none is wanted
}

// OfferedRoute is a route that this node offers.
type OfferedRoute struct {
	Prefix netip.Prefix
	Served bool
}

// PeerRoute is a route that a peer serves to this node.
type PeerRoute struct {
	Prefix netip.Prefix
	Peer   *cert.Node
	Used   bool
}

// ExitView describes the wanted exit node.
type ExitView struct {
	Wanted string
	Peer   *cert.Node // nil: there is none at the moment
	Exit
}

// routingView describes routing beyond the mesh.
func (m *Machine) routingView() RoutingView {
	r := m.wanted.Routing
	v := RoutingView{SNAT: !r.PlainSource, Accept: r.Accept}
	for _, p := range m.beyond.offered {
		v.Offered = append(v.Offered, OfferedRoute{p, m.path.up && m.beyond.used[p]})
	}
	for _, id := range slices.Sorted(maps.Keys(m.roster.routers)) {
		p := m.roster.peers[id]
		if p.live == nil {
			continue
		}
		for _, route := range p.claim.Routes {
			v.Routes = append(v.Routes, PeerRoute{route, p.live.node, m.path.up && slices.Contains(m.routes[id], route)})
		}
	}
	slices.SortStableFunc(v.Routes, func(a, b PeerRoute) int { return proto.ComparePrefix(a.Prefix, b.Prefix) })
	if r.Exit != "" {
		v.Exit = &ExitView{Wanted: r.Exit, Exit: m.beyond.led.Exit}
		if _, n := m.exit(); n != nil && m.path.up {
			v.Exit.Peer = n
		}
	}
	return v
}

// routingProblems reports what does not work about the routing.
func (m *Machine) routingProblems(add func(string, ...any)) {
	r := m.wanted.Routing
	if m.self != nil {
		if _, refused := r.Offers(m.self.Record.Mesh); len(refused) > 0 {
			add("the advertised route %v overlaps with the mesh's own addresses and is not offered: give --advertise-routes without it", refused[0])
		}
	}
	if r.Exit == "" || !m.path.up {
		return
	}
	switch e := m.beyond.led.Exit; {
	case !e.V4 && !e.V6:
		add("exit node %s is not reachable: Internet traffic of this machine is blocked until it comes back, or `redoubt up --exit-node=` "+
			"stops using it", r.Exit)
	case !e.V4:
		add("exit node %s does not carry IPv4: IPv4 to the Internet is blocked", r.Exit)
	case !e.V6:
		add("exit node %s does not carry IPv6: IPv6 to the Internet is blocked", r.Exit)
	}
}
