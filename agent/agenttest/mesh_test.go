package agenttest

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Policies that tests share.
const (
	// open lets everyone reach everyone.
	open = `{"tagOwners": {"tag:db": [], "tag:web": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`
	// closed lets no one reach anyone.
	closed = `{"tagOwners": {"tag:db": [], "tag:web": []}, "grants": []}`
)

// latency is how long a packet takes from one machine to another.
const latency = 5 * time.Millisecond

// mesh is a coordinator, its nodes, and the Internet between them.
type mesh struct {
	*testing.T
	net    *sim.Internet
	center *center
	nodes  []*node
	after  []func() // what else to end
}

// inBubble runs f with a running coordinator, in virtual time. What f started is stopped after it; if anything is still running
// then, the bubble does not end and the test fails.
func inBubble(t *testing.T, f func(m *mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t)
		defer m.close()
		f(m)
	})
}

func newMesh(t *testing.T) *mesh {
	m := &mesh{T: t, net: sim.New(1)}
	m.net.SetDefault(sim.Link{Latency: latency})
	m.center = newCenter(m)
	m.center.start()
	return m
}

func (m *mesh) close() {
	for _, f := range m.after {
		f()
	}
	for _, n := range m.nodes {
		n.stop()
	}
	m.center.stop()
}

// logger is silent unless the test is verbose.
func (m *mesh) logger(who string) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(m.Output(), &slog.HandlerOptions{Level: logLevel()})).With("at", who)
}

// who is the identity that a join code gives.
type who func(*redoubtv1.CreateTokenRequest)

func user(name string) who { return func(r *redoubtv1.CreateTokenRequest) { r.User = name } }

func tags(names ...string) who { return func(r *redoubtv1.CreateTokenRequest) { r.Tags = names } }

// Code makes a join code.
func (m *mesh) Code(options ...who) string {
	m.Helper()
	r := &redoubtv1.CreateTokenRequest{TtlSeconds: uint64(30 * 24 * 3600)}
	for _, o := range options {
		o(r)
	}
	answer, err := m.center.admin().CreateToken(m.Context(), r)
	if err != nil {
		m.Fatal(err)
	}
	return answer.GetCode()
}

// Machine adds a machine with an agent that is not in a mesh yet.
func (m *mesh) Machine(name string) *node {
	m.Helper()
	n := newNode(m, name, len(m.nodes)+1)
	m.nodes = append(m.nodes, n)
	n.start()
	return n
}

// Join adds a machine and makes it a node.
func (m *mesh) Join(name string, options ...who) *node {
	m.Helper()
	n := m.Machine(name)
	n.Up(m.Code(options...))
	return n
}

// Policy puts a policy in force, and waits until all nodes enforce it.
func (m *mesh) Policy(source string) {
	m.Helper()
	if _, err := m.center.admin().ApplyPolicy(m.Context(), &redoubtv1.ApplyPolicyRequest{Source: source}); err != nil {
		m.Fatal(err)
	}
	m.Settle()
}

// Settle waits until all connected nodes enforce what they should.
func (m *mesh) Settle() {
	m.Helper()
	for _, l := range m.laggards(10 * time.Second) {
		if l.GetConnected() {
			m.Fatalf("%s enforces version %q after 10 s, not %q", l.GetName(), l.GetApplied(), l.GetWanted())
		}
	}
}

// Agree waits, for longer, until all nodes are connected and enforce what they should.
func (m *mesh) Agree() {
	m.Helper()
	for _, l := range m.laggards(10 * time.Minute) {
		m.Fatalf("after ten minutes %s lags: %v", l.GetName(), l)
	}
}

func (m *mesh) laggards(within time.Duration) []*redoubtv1.Laggard {
	m.Helper()
	status, err := m.center.admin().PolicyStatus(m.Context(), &redoubtv1.PolicyStatusRequest{WaitMs: uint64(within.Milliseconds())})
	if err != nil {
		m.Fatal(err)
	}
	return status.GetLaggards()
}

// Nodes returns the nodes that the coordinator knows, by name.
func (m *mesh) Nodes() map[string]*redoubtv1.Node {
	m.Helper()
	list, err := m.center.admin().ListNodes(m.Context(), &redoubtv1.ListNodesRequest{})
	if err != nil {
		m.Fatal(err)
	}
	nodes := map[string]*redoubtv1.Node{}
	for _, n := range list.GetNodes() {
		nodes[n.GetName()] = n
	}
	return nodes
}

// Await waits until a condition holds.
func (m *mesh) Await(within time.Duration, what string, so func() bool) {
	m.Helper()
	for end := time.Now().Add(within); !so(); time.Sleep(50 * time.Millisecond) {
		if !time.Now().Before(end) {
			m.Fatalf("after %v it is not so that %s", within, what)
		}
	}
}

// within returns a context for something that must not take longer.
func (m *mesh) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(m.Context(), d)
}

// underlay returns the addresses of host number n on the Internet.
func underlay(n int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}),
		netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n)),
	}
}

func version(t *testing.T, text string) proto.Version {
	t.Helper()
	v, err := proto.ParseVersion(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// logLevel returns the level of a verbose run's log: REDOUBT_TEST_LOG=debug shows more.
func logLevel() slog.Level {
	if os.Getenv("REDOUBT_TEST_LOG") == "debug" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}
