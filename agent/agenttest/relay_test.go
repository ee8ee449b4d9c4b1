package agenttest

import (
	"context"
	"crypto/rand"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// station is a relay on a machine of its own.
type station struct {
	m     *mesh
	name  string
	dir   string
	host  *sim.Host
	clock *clock
	stop  func()
	ended chan error
}

// Relay adds a relay, which joins and serves.
func (m *mesh) Relay(name string, number int) *station {
	m.Helper()
	s := &station{m: m, name: name, dir: m.TempDir(), host: m.net.Host(name+".example", underlay(number)...), clock: &clock{booted: time.Now()}}
	code, err := join.Parse(m.Code(func(r *redoubtv1.CreateTokenRequest) { r.Relay = true }))
	if err != nil {
		m.Fatal(err)
	}
	s.start(&state.Join{URLs: code.URLs, Root: code.Root, Secret: code.Secret})
	m.after = append(m.after, func() { s.end() })
	return s
}

// start starts the relay, with a join code if it is not in a mesh yet.
func (s *station) start(join *state.Join) {
	s.m.Helper()
	l, err := s.host.Listen("tcp", ":443")
	if err != nil {
		s.m.Fatal(err)
	}
	cfg := agent.RelayConfig{
		StateDir: s.dir, Join: join, Hostname: s.name, Program: "test", Port: 3478, Addresses: s.host.Addrs(),
		Listener: l, URLs: []string{"https://" + s.host.Name()}, Log: s.m.logger(s.name), Clock: s.clock, Dial: s.host.DialContext, UDP: s.host.Bind(),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.ended = make(chan error, 1)
	s.stop = cancel
	go func() { s.ended <- agent.RunRelay(ctx, cfg) }()
}

// end stops the relay cleanly, if it is running.
func (s *station) end() {
	s.m.Helper()
	if s.stop == nil {
		return
	}
	s.stop()
	s.stop = nil
	if err := <-s.ended; err != nil {
		s.m.Errorf("relay %s: %v", s.name, err)
	}
}

// Way returns how packets go from a node to another, according to its status.
func (n *node) Way(to *node) *redoubtv1.LocalPeer {
	for _, p := range n.Status().GetPeers() {
		if p.GetName() == to.name {
			return p
		}
	}
	return &redoubtv1.LocalPeer{}
}

// pings returns what a node's `ping` of another one reports.
func (n *node) pings(to *node, r *redoubtv1.PingRequest) (all []*redoubtv1.PingResponse) {
	n.m.Helper()
	r.Peer, r.IntervalMs = to.name, 1000
	err := n.agent.Ping(n.m.Context(), r, func(p *redoubtv1.PingResponse) error {
		all = append(all, p)
		if p.GetMoved() && p.GetPathSince() != time.Now().UnixMilli() {
			n.m.Errorf("told late: %v", p)
		}
		return nil
	})
	if err != nil {
		n.m.Error(err)
	}
	return all
}

// related adds a relay, and two nodes that have it as their home and know so of each other.
func (m *mesh) related() (relay *station, a, b *node) {
	m.Helper()
	relay = m.Relay("fra1", 200)
	a, b = m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
	m.Policy(open)
	time.Sleep(10 * time.Second) // until the nodes know each other's relay
	return relay, a, b
}

// TestPingTellsThePath checks that the first answer comes through the relay, and that each change of the path is reported when
// it happens.
func TestPingTellsThePath(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		_, a, b := m.related()
		if p := a.Way(b); p.GetPath() != "" || p.GetPathCause() != "unsent" {
			t.Errorf("before anything was sent: %v", p)
		}
		direct := netip.AddrPortFrom(b.host.Addrs()[0], uint16(b.Status().GetListenPort())).String()
		m.net.Cut(a.host, b.host)
		time.AfterFunc(2500*time.Millisecond, func() { m.net.Heal(a.host, b.host) })
		all := a.pings(b, &redoubtv1.PingRequest{Count: 10})
		i := slices.IndexFunc(all, (*redoubtv1.PingResponse).GetMoved)
		if i < 3 || len(all) != 11 {
			t.Fatalf("cut and healed: %v", all)
		}
		for _, p := range all[:i] {
			if p.GetPath() != "relay" || p.GetEndpoint() != "fra1" || p.GetPathTransport() != "udp" || p.GetPathWhy() == "" || p.GetLost() {
				t.Errorf("while cut: %v", p)
			}
		}
		moved := all[i]
		if moved.GetPath() != "direct" || moved.GetEndpoint() != direct || moved.GetPathSince() == 0 {
			t.Errorf("the change: %v, want direct %s", moved, direct)
		}
		for _, p := range all[i+1:] {
			rtt := time.Duration(p.GetPathRttUs()) * time.Microsecond
			if p.GetMoved() || p.GetLost() || p.GetEndpoint() != direct || rtt != 2*latency || p.GetPathWhy() != "" {
				t.Errorf("healed: %v", p)
			}
		}
		if p := a.Way(b); p.GetPath() != "direct" || p.GetEndpoint() != direct || p.GetPathSince() != moved.GetPathSince() {
			t.Errorf("the status: %v", p)
		}
		m.net.Cut(a.host, b.host)
		all = a.pings(b, &redoubtv1.PingRequest{Count: 8})
		i = slices.IndexFunc(all, (*redoubtv1.PingResponse).GetMoved)
		if i < 0 || all[i].GetPath() != "relay" || all[i].GetPathWhy() == "" {
			t.Fatalf("cut: %v", all)
		}
		if last := all[len(all)-1]; last.GetLost() || last.GetPath() != "relay" || last.GetPathCause() != "no-answer" {
			t.Errorf("cut: %v", last)
		}
		m.net.Heal(a.host, b.host)
		begun := time.Now()
		all = a.pings(b, &redoubtv1.PingRequest{Count: 20, UntilDirect: true})
		if last := all[len(all)-1]; last.GetPath() != "direct" || last.GetLost() || time.Since(begun) > 6*time.Second {
			t.Errorf("healed: %v after %v", last, time.Since(begun))
		}
	})
}

// TestRelayStartsWithoutTheCoordinator checks that a relay that starts while the coordinator is away carries packets for the
// nodes that were last allowed to meet, and for none once its own certificate has expired.
func TestRelayStartsWithoutTheCoordinator(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		relay := m.Relay("fra1", 200)
		end := time.Now().Add(time.Hour + cert.Skew)
		time.Sleep(25 * time.Minute) // so that the nodes' certificates outlive the relay's
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		m.Policy(open)
		time.Sleep(10 * time.Second)
		m.net.Cut(a.host, b.host)
		carried := func(within time.Duration) {
			m.Helper()
			m.Await(within, "a reaches b through the relay", func() bool { return a.Ping(b.V4()) == nil })
			m.Await(within, "it is reached by UDP", func() bool {
				p := a.Way(b)
				return p.GetPath() == "relay" && p.GetEndpoint() == "fra1" && p.GetPathTransport() == "udp"
			})
		}
		carried(10 * time.Second)
		m.center.stop()
		relay.end()
		if err := a.Ping(b.V4()); err == nil {
			t.Error("they reach each other without a relay")
		}
		relay.start(nil)
		carried(time.Minute)
		time.Sleep(time.Until(end) - time.Minute)
		carried(10 * time.Second)
		time.Sleep(2 * time.Minute)
		if err := a.Ping(b.V4()); err == nil {
			t.Error("a relay carries whose certificate has run out")
		}
		m.center.start()
		carried(15 * time.Minute)
	})
}

// TestRelayRefusesLockedNodes checks that a relay that has heard of a lock carries nothing for the node, although the node and
// its peer have not heard and trust each other, and although the relay is restarted where nobody can tell it again.
func TestRelayRefusesLockedNodes(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		relay, a, b := m.related()
		m.net.Cut(a.host, b.host)
		carried := func(within time.Duration) {
			m.Helper()
			m.Await(within, "a reaches b through the relay", func() bool { return a.Ping(b.V4()) == nil && a.Way(b).GetPath() == "relay" })
		}
		refused := func(when string) {
			m.Helper()
			for range 20 {
				if a.Ping(b.V4()) == nil || b.Ping(a.V4()) == nil {
					m.Fatalf("%s: the relay carries for a node that is locked", when)
				}
			}
			for _, n := range []*node{a, b} {
				if st := n.Status(); st.GetState() != string(machine.StateRunning) || len(st.GetPeers()) != 1 {
					m.Errorf("%s: %s has heard of the lock, and the test shows nothing: %v", when, n.name, st)
				}
			}
		}
		carried(10 * time.Second)
		m.net.Cut(a.host, m.center.host)
		m.net.Cut(b.host, m.center.host)
		carried(10 * time.Second)
		lock, err := m.center.admin().CreateLock(m.Context(), &redoubtv1.CreateLockRequest{Kind: "node", Subject: "a"})
		if err != nil {
			m.Fatal(err)
		}
		time.Sleep(time.Second)
		refused("locked")
		m.center.stop()
		relay.end()
		relay.start(nil)
		time.Sleep(time.Minute)
		refused("after a restart without the coordinator")

		m.center.start()
		if _, err := m.center.admin().DeleteLock(m.Context(), &redoubtv1.DeleteLockRequest{Id: lock.GetLock().GetId()}); err != nil {
			m.Fatal(err)
		}
		carried(5 * time.Minute)
	})
}

// without checks that the relay carries nothing although the nodes, which must be cut off from the coordinator and each other,
// trust each other still.
func (m *mesh) without(when string, a, b *node) {
	m.Helper()
	for range 20 {
		if a.Ping(b.V4()) == nil || b.Ping(a.V4()) == nil {
			m.Fatalf("%s: the relay forwards", when)
		}
	}
	for _, n := range []*node{a, b} {
		if st := n.Status(); st.GetState() != string(machine.StateRunning) || len(st.GetPeers()) != 1 {
			m.Errorf("%s: %s knows no peer, and the test shows nothing: %v", when, n.name, st)
		}
	}
}

// TestLockedRelayForwardsNothing checks that a relay that is locked forwards nothing, even after a restart where nobody can tell
// it again, until it is unlocked.
func TestLockedRelayForwardsNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		relay, a, b := m.related()
		m.net.Cut(a.host, b.host)
		m.net.Cut(a.host, m.center.host)
		m.net.Cut(b.host, m.center.host)
		carried := func(within time.Duration) {
			m.Helper()
			m.Await(within, "a reaches b through the relay", func() bool { return a.Ping(b.V4()) == nil && a.Way(b).GetPath() == "relay" })
		}
		carried(10 * time.Second)
		lock, err := m.center.admin().CreateLock(m.Context(), &redoubtv1.CreateLockRequest{Kind: "node", Subject: "fra1"})
		if err != nil {
			m.Fatal(err)
		}
		time.Sleep(time.Second)
		m.without("locked", a, b)
		m.center.stop()
		relay.end()
		relay.start(nil)
		time.Sleep(time.Minute)
		m.without("after a restart without the coordinator", a, b)
		m.center.start()
		time.Sleep(time.Minute)
		m.without("with the coordinator again", a, b)
		if _, err := m.center.admin().DeleteLock(m.Context(), &redoubtv1.DeleteLockRequest{Id: lock.GetLock().GetId()}); err != nil {
			m.Fatal(err)
		}
		carried(5 * time.Minute)
	})
}

// TestQuarantinedRelayForwardsNothing runs two relays on copies of one disk. Once that is noticed they forward nothing, though the
// coordinator is lost right then, until the relay is released.
func TestQuarantinedRelayForwardsNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		relay, a, b := m.related()
		relay.end()
		thief := &station{m: m, name: "thief", dir: m.TempDir(), host: m.net.Host("thief.example", underlay(201)...), clock: relay.clock}
		copyState(t, relay.dir, thief.dir)
		relay.start(nil)
		time.Sleep(35 * time.Minute) // it renews once
		m.net.Cut(a.host, b.host)
		m.net.Cut(a.host, m.center.host)
		m.net.Cut(b.host, m.center.host)
		carried := func(within time.Duration) {
			m.Helper()
			m.Await(within, "a reaches b through the relay", func() bool { return a.Ping(b.V4()) == nil && a.Way(b).GetPath() == "relay" })
		}
		carried(10 * time.Second)
		thief.start(nil)
		m.after = append(m.after, func() { thief.end() })
		m.Await(3*time.Minute, "the relay is in quarantine", func() bool { return m.Nodes()["fra1"].GetState() == "quarantined" })
		m.net.Cut(relay.host, m.center.host)
		m.without("in quarantine", a, b)
		time.Sleep(time.Minute)
		m.without("a minute later", a, b)
		m.net.Heal(relay.host, m.center.host)
		time.Sleep(2 * time.Minute)
		m.without("with the coordinator again", a, b)
		thief.end()
		if _, err := m.center.admin().ReleaseNode(m.Context(), &redoubtv1.ReleaseNodeRequest{Node: "fra1"}); err != nil {
			t.Fatal(err)
		}
		carried(5 * time.Minute)
	})
}

// TestRevokedRelayForgets checks that a revoked relay serves nobody, and does not after a restart either.
func TestRevokedRelayForgets(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		relay, _, _ := m.related()
		if _, err := m.center.admin().RevokeNode(m.Context(), &redoubtv1.RevokeNodeRequest{Node: "fra1"}); err != nil {
			t.Fatal(err)
		}
		ends := func(words string) {
			select {
			case err := <-relay.ended:
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("it ended with %v, not because it is %s", err, words)
				}
			case <-time.After(time.Minute):
				t.Error("it goes on, and is " + words)
				relay.stop()
				<-relay.ended
			}
			relay.stop()
			relay.stop = nil
		}
		ends("no longer belongs to the mesh")
		m.center.stop()
		relay.start(nil)
		ends("not in a mesh yet")
		m.center.start()
	})
}

// TestRelayKeepsNoToken checks that once a relay is in the mesh nothing on its disk can enrol another one, although an earlier
// run may have left the token there.
func TestRelayKeepsNoToken(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		relay := m.Relay("fra1", 200)
		time.Sleep(10 * time.Second)
		relay.end()
		clean := func(when string) {
			t.Helper()
			if j := loadJoin(t, relay.dir, nil); j == nil || len(j.URLs) == 0 || !j.Secret.IsZero() {
				t.Errorf("%s: %+v", when, j)
			}
		}
		clean("after it joined")
		loadJoin(t, relay.dir, func(j *state.Join) {
			var err error
			if j.Secret, err = key.NewToken(rand.Reader); err != nil {
				t.Fatal(err)
			}
		})
		relay.start(nil)
		time.Sleep(10 * time.Second)
		relay.end()
		clean("after a restart")
	})
}

// loadJoin returns what a state directory holds of the join code, changed first if change is not nil.
func loadJoin(t *testing.T, path string, change func(*state.Join)) *state.Join {
	t.Helper()
	dir, err := state.Open(path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	loaded, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(loaded.Join)
		if err := dir.SaveJoin(*loaded.Join); err != nil {
			t.Fatal(err)
		}
	}
	return loaded.Join
}
