package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/bits"
	randv2 "math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// acknowledged collects the nodes that the coordinator has confirmed.
type acknowledged struct {
	mu    sync.Mutex
	nodes map[string][]netip.Addr // by id
	grew  chan struct{}
}

func (a *acknowledged) add(id string, addrs ...netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.nodes[id] = addrs
	close(a.grew)
	a.grew = make(chan struct{})
}

// copy returns what has been acknowledged so far, and a channel that is closed when there is more.
func (a *acknowledged) copy() (map[string][]netip.Addr, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(map[string][]netip.Addr, len(a.nodes))
	for id, addrs := range a.nodes {
		c[id] = addrs
	}
	return c, a.grew
}

// TestCoordinatorKilledAmidEnrolments kills the coordinator with -9 repeatedly while fifty machines join: ten agents, and
// forty that only enrol. It checks that every machine that was told it is a node is one, and that no two have the same
// address. The range is small, so that conflicts are likely if they are possible.
func TestCoordinatorKilledAmidEnrolments(t *testing.T) {
	t.Parallel()
	const agents, others = 10, 40
	r := newRig(t, "--range", "100.64.128.0/25")
	r.apply(open)
	code := r.token("--tag", "tag:many", "--reusable")
	for i := range agents {
		r.machine(fmt.Sprint("agent", i))
	}
	crowd, err := r.World.AddHost("crowd", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := join.Parse(code)
	if err != nil {
		t.Fatal(err)
	}

	acks := &acknowledged{nodes: map[string][]netip.Addr{}, grew: make(chan struct{})}
	var wg sync.WaitGroup
	for _, m := range r.members {
		wg.Go(func() {
			if _, err := m.Up(r.ctx, code, "--timeout", "90s"); err != nil {
				t.Error(err)
				return
			}
			st := m.status()
			m.id, m.v4, m.v6 = st.Node.ID, st.V4(), st.V6()
			acks.add(m.id, m.v4, m.v6)
		})
	}
	for i := range others {
		wg.Go(func() {
			self, err := r.enrol(crowd, parsed, fmt.Sprint("other", i))
			if err != nil {
				t.Error(err)
				return
			}
			acks.add(self.Node.ID.String(), self.Node.Addrs.Slice()...)
		})
	}
	for _, n := range []int{1, 10, 20, 35} {
		known := r.killAfter(acks, n)
		r.startCoordinator()
		r.nodesAre(known, n, agents+others)
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	known, _ := acks.copy()
	r.nodesAre(known, agents+others, agents+others)
	for _, m := range r.members {
		m.awaitStatus("is in contact", func(st mesh.Status) bool { return st.State == "running" && st.Coordinator.Connected })
	}
	last := r.members[agents-1]
	r.await("the agents reach each other", func() error {
		_, err := r.members[0].Run(r.ctx, "ping", last.id, "-c", "1")
		return err
	})
}

// killAfter kills the coordinator once it has acknowledged n nodes, and returns these nodes.
func (r *rig) killAfter(acks *acknowledged, n int) map[string][]netip.Addr {
	r.Helper()
	for {
		known, more := acks.copy()
		if len(known) >= n {
			break
		}
		select {
		case <-more:
		case <-time.After(patience):
			r.Fatalf("only %d of %d nodes were acknowledged", len(known), n)
		}
	}
	if err := r.Serve.Kill(); err != nil {
		r.Fatal(err)
	}
	known, _ := acks.copy() // those of the last moment count, too
	return known
}

// nodesAre checks that the coordinator has all of these nodes with their addresses, and no address twice.
func (r *rig) nodesAre(known map[string][]netip.Addr, least, most int) {
	r.Helper()
	var list struct{ Nodes []nodeJSON }
	r.adminJSON(&list, "node", "list")
	if len(list.Nodes) < least || len(list.Nodes) > most {
		r.Errorf("%d nodes, want %d to %d", len(list.Nodes), least, most)
	}
	by := map[netip.Addr]string{}
	there := map[string][]netip.Addr{}
	for _, n := range list.Nodes {
		there[n.ID] = n.Addresses
		for _, a := range n.Addresses {
			if other, taken := by[a]; taken {
				r.Errorf("%s and %s have the address %v", other, n.ID, a)
			}
			by[a] = n.ID
		}
	}
	for id, addrs := range known {
		if fmt.Sprint(there[id]) != fmt.Sprint(addrs) {
			r.Errorf("%s was given the addresses %v; the coordinator has %v for it", id, addrs, there[id])
		}
	}
}

// enrol requests a certificate as an agent does, repeatedly until it gets one.
func (r *rig) enrol(h *lab.Host, code join.Code, name string) (*identity.Self, error) {
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		return nil, err
	}
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, 90*time.Second)
	defer cancel()
	self, held, err := control.Enrol(ctx, control.Config{
		Dial: h.Dial, Now: time.Now, Heard: func(time.Time) {}, Rand: randv2.New(randv2.NewPCG(randv2.Uint64(), bits.Reverse64(randv2.Uint64()))),
		URLs: code.URLs, Device: device, Program: "test", Hostname: name, Emit: func(context.Context, machine.Event) {},
	}, enroll.Request{Device: device, Node: node, Token: code.Secret, Root: code.Root, Hostname: name, Program: "test"})
	held.Close()
	return self, err
}

// TestOutage takes the coordinator away while data flows, and checks that none is lost, that an agent restarted meanwhile
// comes up from its disk, and that everything resumes when the coordinator is back.
func TestOutage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b", "c", "tag:b")
	a, b, c := nodes[0], nodes[1], nodes[2]
	flow := r.tcpFlow(a.Host, b.Host, netip.AddrPortFrom(b.v4, 80))
	packets := r.udpFlow(b.Host, a.Host, netip.AddrPortFrom(a.v6, 80))
	r.lives(flow, 20)
	r.arrives(packets, 20)

	if err := r.Serve.Kill(); err != nil {
		t.Fatal(err)
	}
	away := func(st mesh.Status) bool {
		return st.State == "running" && !st.Coordinator.Connected && len(st.Peers) == 2 && len(st.Problems) == 1
	}
	for _, n := range nodes {
		n.awaitStatus("knows that the coordinator is away", away)
		r.contains(n.status().Problems[0], "no coordinator")
	}
	if err := c.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.awaitStatus("comes up from its disk", away)
	for _, to := range []*member{a, b} {
		r.await("c reaches "+to.Name+" without a coordinator", func() error {
			_, err := c.Host.Ping(r.ctx, to.v4)
			return err
		})
	}
	// It can also be told to go down and up.
	c.do("down")
	c.do("up")
	r.lives(flow, 50)

	r.startCoordinator()
	for _, n := range nodes {
		n.awaitStatus("is in contact again", func(st mesh.Status) bool { return st.Coordinator.Connected && len(st.Problems) == 0 })
		if st := n.status(); st.Node.ID != n.id || st.V4() != n.v4 {
			t.Errorf("%s is %+v", n.Name, st.Node)
		}
	}
	r.lives(flow, 20)
	r.losesNothing(packets)
	// Decisions made afterwards are enforced by all, over the old connections.
	r.apply(`{"grants": []}`)
	r.reset(flow)
}

// TestBackup restores a backup: nodes continue, unused tokens are void, and later nodes must join again.
func TestBackup(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	unused := r.token("--user", "ann@example.com")
	file := r.World.Dir + "/backup"
	r.contains(r.admin("backup", file), file)
	later := r.join("later", "--user", "ann@example.com")
	epoch := func(st mesh.Status) string {
		e, _, _ := strings.Cut(st.PolicyVersion, ".")
		return e
	}
	before := epoch(a.status())
	r.contains(r.adminFails(1, "restore", file, "--data", r.Data()), r.Data())
	if err := r.Serve.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.contains(r.adminFails(1, "restore", file, "--data", r.Data()), r.Data())

	if err := r.moveAway(); err != nil {
		t.Fatal(err)
	}
	r.contains(r.admin("restore", file, "--data", r.Data()), "2 nodes", "1 join codes", "pki")
	if err := r.keysBack(); err != nil {
		t.Fatal(err)
	}
	r.startCoordinator()
	for _, n := range []*member{a, b} {
		n.awaitStatus("follows the new epoch", func(st mesh.Status) bool {
			return st.State == "running" && st.Coordinator.Connected && epoch(st) != before
		})
	}
	r.await("a reaches b", func() error {
		_, err := a.Host.Ping(r.ctx, b.v4)
		return err
	})
	later.awaitState("revoked")
	r.contains(later.fails(exitFalse, "status"), "new join code")
	fresh := r.machine("fresh")
	r.contains(fresh.fails(exitFalse, "up", unused), "revoked", "token create")
	fresh.join(r.token("--user", "ann@example.com"))
	if fresh.v4 == a.v4 || fresh.v4 == b.v4 {
		t.Errorf("fresh has the address %v of another node", fresh.v4)
	}
}

// TestKilledAgent kills an agent with -9, in the middle of things and repeatedly. It checks that the next one takes over what
// was left on the host, and removes it on `down`.
func TestKilledAgent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	m, b := r.machine("m"), r.machine("b")
	b.join(r.token("--tag", "tag:b"))
	furnish(r, m.Host)
	before := r.network(m.Host)
	code := r.token("--user", "ann@example.com")
	m.join(code)
	r.settle()
	r.await("m reaches b", func() error {
		_, err := m.Host.Ping(r.ctx, b.v4)
		return err
	})
	whole := r.network(m.Host)
	if whole == before {
		t.Fatal("an agent that runs leaves no trace: the test looks at the wrong thing")
	}
	for range 3 {
		if err := m.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Host.Ping(r.ctx, b.v4); err == nil {
			t.Error("m reaches b without an agent")
		}
		m.start()
		m.awaitState("running")
		r.same("after a restart", whole, m.Host)
		for _, to := range b.addrs() {
			r.await("m reaches b again", func() error {
				_, err := m.Host.Ping(r.ctx, to)
				return err
			})
		}
	}
	m.do("down")
	r.same("down", before, m.Host)
	// If it is killed while down, there is nothing to take over.
	if err := m.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.awaitState("down")
	r.same("started, and down", before, m.Host)
	m.do("up")
	r.same("up again", whole, m.Host)
	// Kill it at random moments of going down and up.
	for i := range 5 {
		ctx, cancel := context.WithCancel(r.ctx)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = m.Run(ctx, []string{"down", "up"}[i%2]) })
		r.await("the command is on its way", m.touched(i))
		if err := m.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		cancel()
		wg.Wait()
		m.start()
	}
	m.do("down")
	r.same("down in the end", before, m.Host)
	m.do("up")
	if err := m.Agent.Stop(r.ctx); err != nil {
		t.Error(err)
	}
	r.same("stopped", before, m.Host)
	m.start()
	m.awaitState("running")
	r.same("started, and up", whole, m.Host)
}

// touched returns an error a few times, so that commands are interrupted at different moments.
func (m *member) touched(turns int) func() error {
	return func() error {
		if turns--; turns < 0 {
			return nil
		}
		return errors.New("not yet")
	}
}

// TestCoordinatorKilledAmidPolicies kills the coordinator while policies are applied, and checks that afterwards one of them
// is in force, complete, and that the node enforces it.
func TestCoordinatorKilledAmidPolicies(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	ann, web := nodes[0], nodes[1]
	r.echo(web.Host, 1000, 1001, 1002, 1003)
	var number uint64
	for i := range 4 {
		port := uint16(1000 + i)
		mine := between(fmt.Sprint("tcp:", port))
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = r.Apply(r.ctx, mine) })
		r.await("the command is on its way", ann.touched(i))
		if err := r.Serve.Kill(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		r.startCoordinator()
		var now struct {
			Number uint64
			Source string
		}
		r.adminJSON(&now, "policy", "show")
		if now.Number < number || now.Number > number+2 || number == 0 && now.Source != open && now.Source != mine {
			t.Errorf("policy %d is in force, after number %d:\n%s", now.Number, number, now.Source)
		}
		// Applying it again works; it is no error if it was already applied.
		r.apply(mine)
		r.adminJSON(&now, "policy", "show")
		if now.Source != mine {
			t.Errorf("applied, and in force is\n%s", now.Source)
		}
		number = now.Number
		r.await("the port of this policy is open", func() error { return tcp(port)(r, ann.Host, web.v4) })
		if err := tcp(port-1)(r, ann.Host, web.v4); err == nil {
			t.Errorf("port %d is open as well", port-1)
		}
	}
}

// TestAgentKilledAmidEnrolment kills the agent at different moments of `up` with a single-use code, and checks that it ends
// up enrolled exactly once.
func TestAgentKilledAmidEnrolment(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const turns = 8
	for i := range turns {
		m := r.machine(fmt.Sprint("m", i))
		code := r.token("--user", "ann@example.com")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = m.Up(r.ctx, code) })
		r.await("the command is on its way", m.touched(i))
		if err := m.Agent.Kill(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		m.start()
		if i%2 == 0 {
			m.awaitStatus("settles by itself", func(st mesh.Status) bool { return st.State == "running" || st.State == "down" })
		}
		m.join(code)
	}
	known := map[string][]netip.Addr{}
	for _, m := range r.members {
		known[m.id] = m.addrs()
	}
	r.nodesAre(known, turns, turns)
	if spent := slices.DeleteFunc(r.tokens(), func(k tokenJSON) bool { return k.State != "spent" || k.Uses != 1 }); len(spent) != turns {
		t.Errorf("%d tokens were used once", len(spent))
	}
}
