package agenttest

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Hosts behind the router, whose programs answer for all of them.
var (
	office = netip.MustParseAddr("10.33.1.1") // in 10.33.0.0/16
	vault  = netip.MustParseAddr("10.33.7.1") // in 10.33.7.0/24, within it
	out    = netip.MustParseAddr("9.9.9.9")
)

// routesPolicy lets ann and the interns into the office, and ann out, except for what is denied.
func routesPolicy(deny string) string {
	return `{
		"tagOwners": {"tag:router": []},
		"groups": {"group:intern": ["bob@example.com"]},
		"grants": [
			{"src": ["ann@example.com", "group:intern"], "dst": ["10.33.0.0/16"], "ip": ["tcp:22"]},
			{"src": ["ann@example.com"], "dst": ["autogroup:internet"], "ip": ["tcp:443"]},
		],
		"deny": [` + deny + `],
	}`
}

// Route changes a node's routing beyond the mesh.
func (n *node) Route(c *redoubtv1.RoutingChange) error {
	n.m.Helper()
	ctx, cancel := n.m.within(time.Minute)
	defer cancel()
	_, err := n.agent.Up(ctx, &redoubtv1.UpRequest{Routing: c}, func(string) {})
	return err
}

func (n *node) mustRoute(c *redoubtv1.RoutingChange) {
	n.m.Helper()
	if err := n.Route(c); err != nil {
		n.m.Fatalf("%s: %v", n.name, err)
	}
}

// Approve sets which routes of a node are approved, and waits until all nodes know.
func (m *mesh) Approve(n *node, prefixes ...string) {
	m.Helper()
	if _, err := m.center.admin().ApproveRoutes(m.Context(), &redoubtv1.ApproveRoutesRequest{Node: n.name, Prefixes: prefixes}); err != nil {
		m.Fatal(err)
	}
	m.Settle()
}

// Offers changes what a node offers, and waits until the coordinator knows.
func (n *node) Offers(c *redoubtv1.RoutingChange, count int) {
	n.m.Helper()
	n.mustRoute(c)
	n.m.Await(10*time.Second, "the coordinator knows what "+n.name+" offers", func() bool {
		offered := 0
		for _, r := range n.m.Nodes()[n.name].GetRoutes() {
			if r.GetAdvertised() {
				offered++
			}
		}
		return offered == count
	})
	n.m.Agree()
}

// leads reports whether the machine's network routes an address into the tunnel, and serves whether it routes others' packets
// there.
func (n *node) leads(a netip.Addr) bool {
	c, _ := n.network.Config()
	return slices.ContainsFunc(c.Routes, func(p netip.Prefix) bool { return p.Contains(a) }) || c.Exit.V4
}

func (n *node) serves(a netip.Addr) bool {
	c, _ := n.network.Config()
	return slices.ContainsFunc(c.Serve.Routes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// visits opens a connection to a host behind the router, if the machine's network routes it there.
func (n *node) visits(r *node, a netip.Addr, port uint16) error {
	if !n.leads(a) {
		return errors.New("the machine's network does not lead there")
	}
	if err := n.Visit(a, port); err != nil {
		return err
	}
	if !r.serves(a) {
		return errors.New("the router's network does not lead there")
	}
	return nil
}

func advertise(prefixes ...string) *redoubtv1.RoutingChange {
	return &redoubtv1.RoutingChange{Advertise: &redoubtv1.RoutingChange_Prefixes{Prefixes: prefixes}}
}

func accept(yes bool) *redoubtv1.RoutingChange { return &redoubtv1.RoutingChange{Accept: &yes} }

func exitNode(name string) *redoubtv1.RoutingChange { return &redoubtv1.RoutingChange{ExitNode: &name} }

// TestRoutesByPolicy checks that the policy decides who reaches what behind a router, denials included, from the approval until
// its end.
func TestRoutesByPolicy(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		ann, bob, r := m.Join("ann", user("ann@example.com")), m.Join("bob", user("bob@example.com")), m.Join("r", tags("tag:router"))
		m.Policy(routesPolicy(""))
		r.Listen(22, 80, 443)
		try := func(when string, n *node, a netip.Addr, port uint16, want bool) {
			m.Helper()
			if err := n.visits(r, a, port); (err == nil) != want {
				m.Errorf("%s: %s visits %v port %d: %v, want %v", when, n.name, a, port, err, want)
			}
		}
		for _, n := range []*node{ann, bob} {
			n.mustRoute(accept(true))
		}
		r.Offers(advertise("10.33.0.0/16"), 1)
		try("before the approval", ann, office, 22, false)
		if o := r.Status().GetRouting().GetOffered(); len(o) != 1 || o[0].GetServed() {
			t.Errorf("before the approval the router offers %v", o)
		}

		m.Approve(r, "10.33.0.0/16")
		try("approved", ann, office, 22, true)
		try("approved", ann, vault, 22, true)
		try("approved", ann, office, 80, false)
		try("approved", bob, office, 22, true)
		try("approved", bob, vault, 22, true)
		m.Policy(routesPolicy(`{"src": ["group:intern"], "dst": ["10.33.7.0/24"], "ip": ["*"]}`))
		try("approved", bob, office, 22, true)
		try("approved and denied", bob, vault, 22, false)
		if used := ann.Status().GetRouting().GetRoutes(); len(used) != 1 || !used[0].GetUsed() || used[0].GetPeerName() != "r" {
			t.Errorf("ann uses %v", used)
		}

		// A denial ends live connections, and so does the end of the approval.
		atVault, err := ann.Connect(vault, 22)
		if err != nil {
			t.Fatal(err)
		}
		atOffice, err := ann.Connect(office, 22)
		if err != nil {
			t.Fatal(err)
		}
		dies := func(c *sim.TCPConn) {
			m.Helper()
			m.Await(time.Second, "the connection is reset", func() bool { return errors.Is(c.Err(), sim.ErrReset) })
		}
		m.Policy(routesPolicy(`{"src": ["*"], "dst": ["10.33.7.0/24"], "ip": ["*"]}`))
		dies(atVault)
		if err := ann.Talk(atOffice); err != nil {
			t.Errorf("a connection that nobody denies: %v", err)
		}
		m.Policy(routesPolicy(""))
		m.Approve(r)
		dies(atOffice)
		try("no more approved", ann, office, 22, false)
		if ann.leads(office) || r.serves(office) {
			t.Error("the hosts' networks go on as if it were approved")
		}

		// Both ends restart, and know without being told.
		m.Approve(r, "10.33.0.0/16")
		r.restart()
		ann.restart()
		m.Agree()
		m.Await(forgotten, "the office is reached again", func() bool { return ann.visits(r, office, 22) == nil })

		// A node that does not accept routes uses none, even where its network is told otherwise.
		ann.mustRoute(accept(false))
		if ann.leads(office) || ann.Visit(office, 22) == nil {
			t.Error("a network is used that was not accepted")
		}
		ann.mustRoute(accept(true))
		try("accepted again", ann, office, 22, true)
		r.Offers(advertise(), 0)
		try("offered no more", ann, office, 22, false)
	})
}

// TestExitNode checks that the Internet is reached through the exit node that was named, and through nothing else.
func TestExitNode(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		ann, bob, r := m.Join("ann", user("ann@example.com")), m.Join("bob", user("bob@example.com")), m.Join("r", tags("tag:router"))
		m.Policy(routesPolicy(""))
		r.Listen(22, 443)
		yes := true
		r.Offers(&redoubtv1.RoutingChange{AdvertiseExitNode: &yes}, 2)
		if err := ann.Route(exitNode("r")); err == nil || !strings.Contains(err.Error(), "not a node") {
			t.Errorf("an exit node that is not approved: %v", err)
		}
		m.Approve(r, "0.0.0.0/0", "::/0")
		if ann.leads(out) || ann.Visit(out, 443) == nil {
			t.Error("an exit node is used that nobody asked for")
		}
		for who, says := range map[string]string{"nobody": "not a node", "ann": "its own", "bob": "not a node"} {
			if err := ann.Route(exitNode(who)); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s as the exit node: %v", who, err)
			}
		}
		if err := bob.Route(exitNode("r")); err == nil {
			t.Error("bob may leave, says the agent; the policy does not")
		}
		ann.mustRoute(exitNode(r.V4().String()))
		if err := ann.visits(r, out, 443); err != nil {
			t.Error(err)
		}
		if err := ann.Visit(office, 443); err == nil {
			t.Error("a private address is reached by the exit node")
		}
		c, _ := ann.network.Config()
		if !c.Exit.On || !c.Exit.V4 || !c.Exit.V6 || c.Exit.LAN {
			t.Errorf("the host's network is told %+v", c.Exit)
		}

		// After a restart without a coordinator the way out is as it was; after one without an exit node, it is closed.
		m.center.stop()
		ann.restart()
		m.Await(forgotten, "the way out is open again", func() bool { return ann.visits(r, out, 443) == nil })
		m.center.start()
		m.Agree()
		live, err := ann.Connect(out, 443)
		if err != nil {
			t.Fatal(err)
		}
		m.Approve(r)
		m.Await(time.Second, "the connection is reset", func() bool { return errors.Is(live.Err(), sim.ErrReset) })
		closed := func() {
			m.Helper()
			if c, _ := ann.network.Config(); !c.Exit.On || c.Exit.V4 || c.Exit.V6 || !ann.Problem("exit node "+r.V4().String()+" is not reachable") {
				m.Errorf("without an exit node the host's network is told %+v, and people %q", c.Exit, ann.Status().GetProblems())
			}
		}
		closed()
		ann.restart()
		closed()
		ann.mustRoute(exitNode(""))
		if c, _ := ann.network.Config(); c.Exit.On {
			t.Error("the exit node was given up, and the way out is closed")
		}
	})
}
