package agenttest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestMeshAgreesWithThePolicy leads meshes through random lives, and checks after each step, for every pair of nodes, that
// exactly those packets get through that the policy lets through. REDOUBT_TEST_SEED runs a single life.
func TestMeshAgreesWithThePolicy(t *testing.T) {
	t.Parallel()
	seeds := []uint64{1, 2, 3, 4}
	if s, err := strconv.ParseUint(os.Getenv("REDOUBT_TEST_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(m *mesh) {
				l := &life{mesh: m, rnd: rand.New(rand.NewPCG(seed, 0)), members: map[*node]*member{}}
				for range 20 {
					l.step()
					l.check()
					if m.Failed() {
						return
					}
				}
			})
		})
	}
}

// life is a mesh, and its expected state.
type life struct {
	*mesh
	rnd     *rand.Rand
	joined  int
	members map[*node]*member
	policy  *acl.Policy // nil if there is none yet
	flows   []*flow

	mu      sync.Mutex
	arrived []arrival
}

// member is a node of the mesh in its expected state.
type member struct {
	proto.Identity
	up bool
}

// flow is a live TCP connection.
type flow struct {
	from, to *node
	dst      netip.Addr
	conn     *sim.TCPConn
}

// arrival is a packet that a machine's programs received.
type arrival struct {
	at     *node
	packet sim.Packet
}

const most = 6 // nodes

// ports are the ports that all nodes listen on.
var ports = []uint16{22, 53, 80}

// step makes something happen.
func (l *life) step() {
	l.Helper()
	if len(l.members) < 3 {
		l.join()
		return
	}
	steps := []func(){
		l.join, l.join, l.change, l.change, l.change, l.revoke, l.remove, l.leave, l.leave, l.restart, l.move, l.outage,
		func() {
			l.Log("time passes")
			l.pass(time.Duration(l.rnd.IntN(150)) * time.Minute)
		},
		func() {
			l.Log("the coordinator starts again")
			l.center.restart()
		},
	}
	steps[l.rnd.IntN(len(steps))]()
}

func pick[T any](rnd *rand.Rand, from ...T) T { return from[rnd.IntN(len(from))] }

// some returns the members, or those that are up, in an order that does not depend on the map's.
func (l *life) some(up bool) []*node {
	list := slices.Collect(maps.Keys(l.members))
	list = slices.DeleteFunc(list, func(n *node) bool { return up && !l.members[n].up })
	slices.SortFunc(list, func(a, b *node) int { return slices.Index(l.nodes, a) - slices.Index(l.nodes, b) })
	return list
}

func (l *life) join() {
	l.Helper()
	if len(l.members) >= most {
		l.change()
		return
	}
	l.joined++
	name := fmt.Sprintf("n%d", l.joined)
	who, id := user("ann@example.com"), proto.Identity{}
	switch l.rnd.IntN(6) {
	case 0, 1:
		person := pick(l.rnd, "ann@example.com", "bob@example.com", "eve@other.example")
		who, id.User = user(person), proto.User{Issuer: proto.IssuerToken, Subject: person, Name: person}
	case 2, 3, 4:
		id.Tags = []string{pick(l.rnd, "tag:db", "tag:web")}
		who = tags(id.Tags...)
	case 5:
		id.Tags = []string{"tag:db", "tag:web"}
		who = tags(id.Tags...)
	}
	n := l.Join(name, who)
	n.Listen(ports...)
	n.Watch(func(p sim.Packet) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.arrived = append(l.arrived, arrival{n, p})
	})
	id.ID, id.Name, id.Addrs = must(proto.ParseNodeID(n.Status().GetNode().GetId()))(l.T), name, addrsOf(n)
	l.members[n] = &member{id, true}
	l.Logf("%s joins: %q %v", name, id.User.Name, id.Tags)
}

// change puts another policy in force.
func (l *life) change() {
	l.Helper()
	src := func() string {
		return pick(l.rnd, "*", "ann@example.com", "eve@other.example", "group:dev", "tag:db", "tag:web", "autogroup:member", "autogroup:tagged", l.literal())
	}
	dst := func() string {
		return pick(l.rnd, "*", "ann@example.com", "group:dev", "tag:db", "tag:web", "autogroup:member", "autogroup:tagged", l.literal())
	}
	type grant struct {
		Src []string `json:"src"`
		Dst []string `json:"dst"`
		IP  []string `json:"ip"`
	}
	grants := []grant{}
	for range l.rnd.IntN(6) {
		g := grant{[]string{src()}, []string{dst()}, []string{pick(l.rnd, "*", "tcp:22", "tcp:22", "udp:53", "icmp:*", "80", "tcp:20-60")}}
		if l.rnd.IntN(3) == 0 {
			g.Src = append(g.Src, src())
		}
		if l.rnd.IntN(5) == 0 {
			g.Src, g.Dst = []string{"autogroup:member"}, []string{"autogroup:self"}
		}
		grants = append(grants, g)
	}
	source := string(must(json.Marshal(map[string]any{
		"groups": map[string]any{"group:dev": []string{"ann@example.com", "bob@example.com"}}, "tagOwners": map[string]any{"tag:db": []string{}, "tag:web": []string{}},
		"grants": grants,
	}))(l.T))
	l.Logf("policy: %v", grants)
	policy, wrong := acl.Parse("policy", []byte(source))
	if policy == nil {
		l.Fatalf("%s: %v", source, wrong)
	}
	l.policy = policy
	if _, err := l.center.admin().ApplyPolicy(l.Context(), &redoubtv1.ApplyPolicyRequest{Source: source}); err != nil {
		l.Fatal(err)
	}
}

// literal returns an address of a member, which may be down.
func (l *life) literal() string {
	all := l.some(false)
	if len(all) == 0 {
		return "*"
	}
	a := l.members[pick(l.rnd, all...)].Addrs
	return pick(l.rnd, a.V4.String(), a.V6.String())
}

func (l *life) revoke() {
	l.Helper()
	n := pick(l.rnd, l.some(false)...)
	l.Logf("%s is revoked", n.name)
	must(l.center.admin().RevokeNode(l.Context(), &redoubtv1.RevokeNodeRequest{Node: n.name}))(l.T)
	l.bid(n)
	n.AwaitState(machine.StateRevoked, 3*time.Minute)
}

func (l *life) remove() {
	l.Helper()
	n := pick(l.rnd, l.some(false)...)
	l.Logf("%s is deleted", n.name)
	must(l.center.admin().DeleteNode(l.Context(), &redoubtv1.DeleteNodeRequest{Node: n.name}))(l.T)
	l.bid(n)
}

// bid removes a node from the members.
func (l *life) bid(n *node) {
	if !l.members[n].up {
		ctx, cancel := l.within(time.Minute)
		defer cancel()
		// It is no longer a node, and must not become one by coming up again.
		_, _ = n.agent.Up(ctx, &redoubtv1.UpRequest{}, func(string) {})
	}
	delete(l.members, n)
}

// leave takes a node down, or up again.
func (l *life) leave() {
	l.Helper()
	n := pick(l.rnd, l.some(false)...)
	x := l.members[n]
	if x.up = !x.up; x.up {
		l.Logf("%s comes back", n.name)
		n.Up("")
		return
	}
	l.Logf("%s leaves", n.name)
	ctx, cancel := l.within(time.Minute)
	defer cancel()
	if err := n.agent.Down(ctx); err != nil {
		l.Fatal(err)
	}
	l.cut(n)
}

func (l *life) restart() {
	l.Helper()
	n := pick(l.rnd, l.some(false)...)
	l.Logf("%s starts again", n.name)
	n.restart()
	l.cut(n)
}

// cut drops the connections of a machine whose programs were restarted.
func (l *life) cut(n *node) {
	l.flows = slices.DeleteFunc(l.flows, func(f *flow) bool { return f.from == n || f.to == n })
}

func (l *life) move() {
	l.Helper()
	n := pick(l.rnd, l.some(false)...)
	l.Logf("%s moves", n.name)
	l.joined++
	n.Move(underlay(100 + l.joined)...)
}

// outage makes the coordinator unreachable for some time.
func (l *life) outage() {
	l.Helper()
	away := time.Duration(l.rnd.IntN(200)) * time.Minute
	l.Logf("the coordinator is away for %v", away)
	l.center.stop()
	l.pass(away)
	l.center.start()
}

// pass lets time pass. Connections are used meanwhile: those that are silent for long expire.
func (l *life) pass(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(min(time.Until(end), time.Hour)) {
		for _, f := range l.flows {
			_ = f.from.Talk(f.conn) // checkFlows checks whether it should be alive
		}
	}
}

// check waits until the mesh is in its expected state, and tests it.
func (l *life) check() {
	l.Helper()
	time.Sleep(time.Second) // nodes that are no longer connected know by then
	up := l.some(true)
	l.Await(3*time.Minute, "all are connected", func() bool {
		return !slices.ContainsFunc(up, func(n *node) bool { return !n.Status().GetCoordinator().GetConnected() })
	})
	l.Settle()
	time.Sleep(time.Second)
	l.checkStatus(up)
	bound := l.bind()
	l.checkFlows(bound)
	l.probe(bound, up)
	l.checkArrivals(bound)
	l.open(bound, up)
}

// bind returns the policy applied to the existing nodes.
func (l *life) bind() *compile.Bound {
	l.Helper()
	inventory := &compile.Memory{}
	for _, x := range l.members {
		if err := inventory.Put(x.Identity); err != nil {
			l.Fatal(err)
		}
	}
	return compile.New(l.policy, l.center.process.co.Mesh()).On(inventory)
}

// checkStatus checks that all nodes are well. For some minutes after they come back, nodes wait for others to do so as well.
func (l *life) checkStatus(up []*node) {
	l.Helper()
	for _, n := range up {
		l.Await(3*time.Minute, n.name+" has no problem", func() bool { return len(n.Status().GetProblems()) == 0 })
	}
	now := time.Now().Add(-time.Minute).Unix()
	for _, n := range up {
		st := n.Status()
		if st.GetState() != string(machine.StateRunning) || st.GetNode().GetCertificateExpires() < now {
			l.Errorf("%s: %v", n.name, st)
		}
		for _, p := range st.GetPeers() {
			if p.GetCertificateExpires() < now {
				l.Errorf("%s trusts %s, whose certificate has ended", n.name, p.GetName())
			}
		}
	}
}

// allowed reports whether the policy allows a packet that opens something.
func (l *life) allowed(b *compile.Bound, src, dst netip.Addr, protocol uint8, port uint16) bool {
	from, to := l.owner(src), l.owner(dst)
	if from == nil || to == nil {
		return false
	}
	out := b.Decide(from.ID, src, dst, protocol, port).Allowed
	in := b.Decide(to.ID, src, dst, protocol, port).Allowed
	if in != out {
		l.Errorf("%v to %v: one end says %v, the other %v", src, dst, out, in)
	}
	return in && out
}

func (l *life) owner(a netip.Addr) *member {
	for _, x := range l.members {
		if x.Addrs.Has(a) {
			return x
		}
	}
	return nil
}

// checkFlows checks the existing connections: they live exactly if they are still allowed.
func (l *life) checkFlows(b *compile.Bound) {
	l.Helper()
	l.flows = slices.DeleteFunc(l.flows, func(f *flow) bool {
		from, to := l.members[f.from], l.members[f.to]
		if from == nil || to == nil {
			if f.conn.Err() == nil && from != nil {
				l.Errorf("a connection of %s outlives its peer %s", f.from.name, f.to.name)
			}
			return true
		}
		src := from.Addrs.V4
		if f.dst.Is6() {
			src = from.Addrs.V6
		}
		if !l.allowed(b, src, f.dst, proto.ProtoTCP, 22) {
			if f.conn.Err() == nil {
				l.Errorf("a connection from %s to %s outlives its permission", f.from.name, f.to.name)
			}
			return true
		}
		var err error
		for range 4 {
			if err = f.from.Talk(f.conn); err == nil || !errors.Is(err, errSilence) {
				break
			}
		}
		if err != nil {
			l.Errorf("a connection from %s to %s that is allowed: %v", f.from.name, f.to.name, err)
		}
		return err != nil
	})
}

// probe tries every service of every node from every other one.
func (l *life) probe(b *compile.Bound, up []*node) {
	l.Helper()
	l.mu.Lock()
	l.arrived = nil
	l.mu.Unlock()
	var all sync.WaitGroup
	for _, from := range up {
		for _, to := range l.some(false) {
			if from == to {
				continue
			}
			for _, pair := range [][2]netip.Addr{
				{l.members[from].Addrs.V4, l.members[to].Addrs.V4}, {l.members[from].Addrs.V6, l.members[to].Addrs.V6},
			} {
				src, dst := pair[0], pair[1]
				icmp := uint8(proto.ProtoICMP)
				if dst.Is6() {
					icmp = proto.ProtoICMPv6
				}
				try := func(what string, protocol uint8, port uint16, f func() error) {
					want := l.members[to].up && l.allowed(b, src, dst, protocol, port)
					all.Go(func() { l.attempt(fmt.Sprintf("%s to %s (%v), %s", from.name, to.name, dst, what), want, f) })
				}
				try("ping", icmp, 0, func() error { return from.Ping(dst) })
				try("UDP 53", proto.ProtoUDP, 53, func() error { return from.Ask(dst, 53) })
				try("TCP 22", proto.ProtoTCP, 22, func() error { return from.Visit(dst, 22) })
				try("TCP 80", proto.ProtoTCP, 80, func() error { return from.Visit(dst, 80) })
			}
		}
	}
	all.Wait()
}

// attempt tries something that must work exactly if it is wanted. What is wanted may take some time: that a peer has forgotten
// a session is noticed only when WireGuard notices.
func (l *life) attempt(what string, want bool, f func() error) {
	var err error
	for range 5 {
		if err = f(); err == nil || !want {
			break
		}
	}
	if (err == nil) != want {
		l.Errorf("%s: allowed is %v, and what happens is: %v", what, want, err)
	}
}

// checkArrivals checks every packet that arrived under the current policy. It must be allowed, or answer one that is.
func (l *life) checkArrivals(b *compile.Bound) {
	l.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.arrived) == 0 && l.policy != nil && len(l.policy.Rules) > 0 {
		l.Log("no packet arrived anywhere")
	}
	for _, a := range l.arrived {
		p := a.packet
		icmp := p.Proto == proto.ProtoICMP || p.Proto == proto.ProtoICMPv6
		if icmp && p.Type == sim.Unreachable || p.Proto == proto.ProtoTCP && p.Flags&sim.RST != 0 {
			continue // the node's own filter refuses its programs
		}
		src, dst := p.Src.Addr(), p.Dst.Addr()
		if l.allowed(b, src, dst, p.Proto, p.Dst.Port()) || l.allowed(b, dst, src, p.Proto, p.Src.Port()) {
			continue
		}
		l.Errorf("%s was given %+v", a.at.name, p)
	}
}

// open opens a connection that the next step may end.
func (l *life) open(b *compile.Bound, up []*node) {
	l.Helper()
	for range 3 * len(up) {
		from, to := pick(l.rnd, up...), pick(l.rnd, up...)
		src, dst := l.members[from].Addrs.V4, l.members[to].Addrs.V4
		if l.rnd.IntN(2) == 0 {
			src, dst = l.members[from].Addrs.V6, l.members[to].Addrs.V6
		}
		if from == to || !l.allowed(b, src, dst, proto.ProtoTCP, 22) {
			continue
		}
		conn, err := from.Connect(dst, 22)
		if err != nil {
			l.Errorf("%s to %s: %v", from.name, to.name, err)
			continue
		}
		l.flows = append(l.flows, &flow{from, to, dst, conn})
	}
}
