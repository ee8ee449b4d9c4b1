package agenttest

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// counted counts the datagrams sent by a socket.
type counted struct {
	conn.Bind
	sent *atomic.Int64
}

// Send implements conn.Bind.
func (c counted) Send(bufs [][]byte, to conn.Endpoint) error {
	c.sent.Add(int64(len(bufs)))
	return c.Bind.Send(bufs, to)
}

// JoinBehind adds a machine behind a NAT, makes it a node, and counts what it sends by UDP.
func (m *mesh) JoinBehind(nat *sim.NAT, name string, inside netip.Addr, options ...who) (*node, *atomic.Int64) {
	m.Helper()
	n, sent := newNode(m, name, len(m.nodes)+1), &atomic.Int64{}
	m.nodes = append(m.nodes, n)
	n.host.MoveTo(nat, inside)
	n.configure = func(c *agent.Config) {
		c.Edges.NewBind = func(b bind.Config) *bind.Bind {
			b.Inner = counted{n.host.Bind(), sent}
			return bind.New(b)
		}
	}
	n.start()
	n.Up(m.Code(options...))
	return n, sent
}

// TestIdleDatagrams checks that an agent behind a NAT, which knows a hundred peers and has talked with some, sends next to
// nothing while there is nothing to do, and that each of those it talked with last can still reach it at any time.
func TestIdleDatagrams(t *testing.T) {
	t.Parallel()
	for relays, peers := range []int{10, 100} { // without a relay only those heard last matter, not how many are known
		t.Run(fmt.Sprintf("%d relays", relays), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) { idle(m, relays, peers) })
		})
	}
}

func idle(m *mesh, relays, peers int) {
	m.Policy(open)
	for i := range relays {
		m.Relay(fmt.Sprintf("relay%d", i), 240+i)
	}
	nat := m.net.NAT("home", sim.NATConfig{Filtering: sim.AddressAndPortDependent, Timeout: 30 * time.Second}, netip.MustParseAddr("203.0.113.1"))
	n, sent := m.JoinBehind(nat, "idle", netip.MustParseAddr("10.0.0.2"), tags("tag:db"))
	var others []*node
	for i := range peers {
		o := m.Join(fmt.Sprintf("peer%d", i), tags("tag:web"))
		if others = append(others, o); i >= 4 {
			o.stop()
		}
	}
	m.Settle()
	if known := len(n.Status().GetPeers()); known != peers {
		m.Fatalf("it knows %d peers of %d", known, peers)
	}
	for _, o := range others[:4] {
		if err := n.Ping(o.V4()); err != nil {
			m.Fatal(err)
		}
	}
	time.Sleep(10 * time.Minute)
	before := sent.Load()
	time.Sleep(time.Hour)
	hour := sent.Load() - before
	m.Logf("%d datagrams an hour", hour)
	if hour > 300 {
		m.Errorf("%d datagrams an hour, want 300 at most", hour)
	}
	for _, o := range others[2:4] {
		if err := o.Ping(n.V4()); err != nil {
			m.Errorf("%s does not reach it after an hour: %v", o.name, err)
		}
	}
}

// TestRelayGoesWhileIdle removes a relay where nodes wait while nobody sends anything. If the coordinator notices, since the
// relay's process ended, they know at once, and not even a first packet goes there. If nobody does, since its machine is gone,
// the first sender finds out, and its move to another relay makes the others check.
func TestRelayGoesWhileIdle(t *testing.T) {
	t.Parallel()
	for name, within := range map[string]time.Duration{"process": 500 * time.Millisecond, "machine": 4 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) { relayGoes(m, name == "process", within) })
		})
	}
}

func relayGoes(m *mesh, seen bool, within time.Duration) {
	m.Policy(open)
	stations := []*station{m.Relay("relay0", 240), m.Relay("relay1", 241)}
	hard := sim.NATConfig{Mapping: sim.AddressAndPortDependent, Filtering: sim.AddressAndPortDependent, Ports: sim.Random}
	a, _ := m.JoinBehind(m.net.NAT("one", hard, netip.MustParseAddr("203.0.113.1")), "a", netip.MustParseAddr("10.0.0.2"), tags("tag:db"))
	b, _ := m.JoinBehind(m.net.NAT("two", hard, netip.MustParseAddr("203.0.113.2")), "b", netip.MustParseAddr("10.0.0.2"), tags("tag:db"))
	m.Settle()
	time.Sleep(time.Minute)
	if err := a.Ping(b.V4()); err != nil {
		m.Fatal(err)
	}
	time.Sleep(65 * time.Second) // not at a time when sessions send keepalives
	used := a.Way(b).GetEndpoint()
	for _, s := range stations {
		if s.name == used {
			for _, h := range []*sim.Host{a.host, b.host, m.center.host} {
				m.net.Cut(s.host, h)
			}
			if seen {
				m.net.ResetStreams(s.host, m.center.host)
			}
		}
	}
	time.Sleep(time.Second)
	begun := time.Now()
	m.Await(within, "they reach each other without "+used, func() bool {
		ctx, cancel := m.within(within / 10)
		defer cancel()
		_, err := a.programs().Ping(ctx, b.V4())
		return err == nil
	})
	m.Logf("reached %s after the first packet", time.Since(begun))
	if now := a.Way(b); now.GetPath() != "relay" || now.GetEndpoint() == used {
		m.Errorf("the way was by %q, and is %v", used, now)
	}
}
