package agenttest

import (
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// shortLives has certificates that last for ten minutes, the shortest lifetime that a policy may request.
const shortLives = `{"tagOwners": {"tag:db": [], "tag:web": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
	"node": {"certLifetime": "10m"}}`

// count is a stream of numbered datagrams from one node to another, which sends them back.
type count struct {
	from, to *node
	sent     uint64

	mu            sync.Mutex
	there, back   map[uint64]bool // numbers that arrived, above the first that did not
	thereTo, upTo uint64          // all below have arrived
	doubled       int
}

const countPort = 7

// counts begins a stream. The first packet triggers a handshake, and is not counted.
func (m *mesh) counts(from, to *node) *count {
	m.Helper()
	to.Listen(countPort)
	if err := from.Ask(to.V4(), countPort); err != nil {
		m.Fatal(err)
	}
	c := &count{from: from, to: to, there: map[uint64]bool{}, back: map[uint64]bool{}}
	to.Watch(c.take(c.there, &c.thereTo, true))
	from.Watch(c.take(c.back, &c.upTo, false))
	return c
}

func (c *count) take(seen map[uint64]bool, upTo *uint64, request bool) func(sim.Packet) {
	return func(p sim.Packet) {
		if p.Proto != 17 || len(p.Payload) != 8 || (p.Dst.Port() == countPort) != request {
			return
		}
		n := binary.BigEndian.Uint64(p.Payload)
		c.mu.Lock()
		defer c.mu.Unlock()
		if n < *upTo || seen[n] {
			c.doubled++
			return
		}
		seen[n] = true
		for ; seen[*upTo]; *upTo++ {
			delete(seen, *upTo)
		}
	}
}

// send sends the next packet.
func (c *count) send(src, dst netip.Addr) {
	b := binary.BigEndian.AppendUint64(nil, c.sent)
	c.sent++
	c.from.mu.Lock()
	t := c.from.tun
	c.from.mu.Unlock()
	t.Send(sim.UDP(netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, countPort), b).Bytes())
}

// run sends a packet at each interval for some time.
func (c *count) run(every, during time.Duration) {
	src, dst := c.from.V4(), c.to.V4()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(every) {
		c.send(src, dst)
	}
}

// check checks that all packets arrived once, there and back.
func (c *count) check(m *mesh) {
	m.Helper()
	time.Sleep(time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.sent - c.thereTo - uint64(len(c.there)) + c.sent - c.upTo - uint64(len(c.back))
	if lost > 0 || c.doubled > 0 {
		m.Errorf("of %d packets there and as many back %d are lost and %d doubled", c.sent, lost, c.doubled)
	}
}

// engines holds the engine that a node runs, for inspection.
type engines struct {
	mu  sync.Mutex
	now wg.Engine
}

func (e *engines) serve(_ string, now wg.Engine) (agent.Closer, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now = now
	return nothing{}, nil
}

type nothing struct{}

func (nothing) Close() error { return nil }

// seesKey returns the key that a node's engine uses for its only peer.
func (e *engines) seesKey(t *testing.T) key.NodePublic {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	stats := must(e.now.Peers())(t)
	if len(stats) != 1 {
		t.Fatalf("%d peers", len(stats))
	}
	return stats[0].Key
}

// rotations returns how many key changes a test must see: REDOUBT_TEST_ROTATIONS sets another number than the usual one.
func rotations() int {
	if n, err := strconv.Atoi(os.Getenv("REDOUBT_TEST_ROTATIONS")); err == nil && n > 0 {
		return n
	}
	return 30
}

// TestRotationUnderTrafficLosesNothing has two nodes talk over a long path with jitter, while their keys change over and over.
func TestRotationUnderTrafficLosesNothing(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Machine("a"), m.Machine("b")
		sees := map[*node]*engines{a: {}, b: {}}
		for n, e := range sees {
			n.stop()
			n.configure = func(c *agent.Config) { c.Edges.ServeUAPI = e.serve }
			n.start()
		}
		a.Up(m.Code(user("ann@example.com")))
		b.Up(m.Code(tags("tag:db")))
		m.Policy(shortLives)
		m.net.SetLink(a.host, b.host, sim.Link{Latency: 45 * time.Millisecond, Jitter: 10 * time.Millisecond})
		c := m.counts(a, b)
		keys := map[*node]key.NodePublic{}
		for n, e := range sees {
			keys[n] = e.seesKey(t)
		}
		changes, want := 0, rotations()
		begun := time.Now()
		for changes < want {
			c.run(300*time.Millisecond, 30*time.Second)
			for n, e := range sees {
				if k := e.seesKey(t); k != keys[n] {
					keys[n], changes = k, changes+1
				}
			}
			if time.Since(begun) > 2*time.Hour+time.Duration(want)*3*time.Minute {
				t.Fatalf("%d changes of keys in %v", changes, time.Since(begun))
			}
		}
		c.check(m)
		t.Logf("%d changes of keys in %v, %d packets there and as many back", changes, time.Since(begun), c.sent)
		for _, n := range m.nodes {
			if st := n.Status(); len(st.GetProblems()) > 0 {
				t.Errorf("%s: %q", n.name, st.GetProblems())
			}
		}
	})
}

// TestRotationThroughAnOutage checks that traffic survives key changes before, during and after outages of the coordinator, and
// that agents reach each other after a restart.
func TestRotationThroughAnOutage(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		m.Policy(shortLives)
		c := m.counts(a, b)
		for i := range 8 {
			c.run(time.Second, time.Duration(7+i)*time.Minute)
			m.center.stop()
			c.run(time.Second, time.Duration(1+3*(i%4))*time.Minute)
			m.center.start()
		}
		c.run(time.Second, 10*time.Minute)
		c.check(m)
		for _, n := range m.nodes {
			if st := n.Status(); len(st.GetProblems()) > 0 {
				t.Errorf("%s: %q", n.name, st.GetProblems())
			}
		}
		// A restart ends sessions, but new ones can be made, whatever the age of the keys.
		for range 6 {
			a.restart()
			m.Await(time.Minute, "a reaches b after a restart", func() bool { return a.Ask(b.V4(), countPort) == nil })
			time.Sleep(3 * time.Minute)
			b.restart()
			m.Await(time.Minute, "b reaches a after a restart", func() bool { return b.Ping(a.V4()) == nil })
			time.Sleep(2 * time.Minute)
		}
	})
}

// TestIdlePeersReachEachOtherAtOnce checks that whoever sends first, and whatever the age of the keys, the first handshake is
// for a key that the other side has.
func TestIdlePeersReachEachOtherAtOnce(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		m.Policy(shortLives)
		b.Listen(countPort)
		a.Listen(countPort)
		begun := time.Now()
		for i := range 40 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			time.Sleep(4*time.Minute + 7*time.Second) // by then no session is left
			start := time.Now()
			if err := from.Ask(to.V4(), countPort); err != nil || time.Since(start) > time.Second {
				t.Errorf("after %v: the first packet took %v, %v", start.Sub(begun), time.Since(start), err)
			}
		}
		// The same while the coordinator is away, with keys in the middle of a change.
		m.center.stop()
		for i := range 20 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			time.Sleep(4*time.Minute + 7*time.Second)
			start := time.Now()
			if err := from.Ask(to.V4(), countPort); err != nil || time.Since(start) > time.Second {
				t.Errorf("in an outage of %v: the first packet took %v, %v", 4*time.Minute*time.Duration(i+1), time.Since(start), err)
			}
		}
	})
}

// copyState copies the files of a state directory to another.
func copyState(t *testing.T, from, to string) {
	t.Helper()
	for _, f := range must(os.ReadDir(from))(t) {
		content := must(os.ReadFile(filepath.Join(from, f.Name())))(t)
		if err := os.WriteFile(filepath.Join(to, f.Name()), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCopiedStateDirectory runs two machines on copies of one disk. Both are cut off, and told so, until one is released.
func TestCopiedStateDirectory(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		m.Policy(shortLives)
		a.Listen(countPort)
		b.Listen(countPort)
		if err := a.Ask(b.V4(), countPort); err != nil {
			t.Fatal(err)
		}
		thief := newNode(m, "thief", 99)
		a.stop()
		copyState(t, a.dir, thief.dir)
		a.start()
		time.Sleep(35 * time.Minute) // it renews once
		m.nodes = append(m.nodes, thief)
		thief.start()
		m.Await(3*time.Minute, "the copy is in quarantine", func() bool { return thief.Status().GetState() == string(machine.StateQuarantined) })
		m.Await(3*time.Minute, "so is the machine", func() bool { return a.Status().GetState() == string(machine.StateQuarantined) })
		for _, n := range []*node{a, thief} {
			if err := n.Ask(b.V4(), countPort); err == nil {
				t.Errorf("%s reaches others", n.name)
			}
			if !n.Problem("node release") {
				t.Errorf("%s says %q", n.name, n.Status().GetProblems())
			}
		}
		if p := b.Status().GetPeers(); len(p) != 0 {
			t.Errorf("b has the peers %v", p)
		}
		if s := m.Nodes()["a"].GetState(); s != "quarantined" {
			t.Errorf("the coordinator says %q", s)
		}
		time.Sleep(20 * time.Minute) // certificates end; the quarantine stays
		for _, n := range []*node{a, thief} {
			n.restart()
			m.Await(3*time.Minute, n.name+" is still in quarantine", func() bool { return n.Status().GetState() == string(machine.StateQuarantined) })
		}
		thief.stop()
		m.nodes = m.nodes[:2]
		if _, err := m.center.admin().ReleaseNode(m.Context(), &redoubtv1.ReleaseNodeRequest{Node: "a"}); err != nil {
			t.Fatal(err)
		}
		m.Await(3*time.Minute, "a is back", func() bool { return a.Status().GetState() == string(machine.StateRunning) })
		m.Await(3*time.Minute, "a reaches b", func() bool { return a.Ask(b.V4(), countPort) == nil })
		c := m.counts(a, b)
		c.run(time.Second, 20*time.Minute)
		c.check(m)
	})
}
