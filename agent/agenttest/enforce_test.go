package agenttest

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// dictation is a coordinator that sends one node what a test wants, while all others keep what they had.
type dictation struct {
	*impostor
	node *node
	base *proto.Netmap

	mu   sync.Mutex
	now  *proto.Netmap
	talk *talk // with the node; nil if there is none
}

// Dictate takes the coordinator's place for one node, starting with the netmap that the node has.
func (m *mesh) Dictate(n *node) *dictation {
	m.Helper()
	n.stop()
	d := &dictation{node: n, base: n.stored()}
	d.now = d.base
	n.start()
	m.Settle()
	leaf := coordinatorLeaf(m)
	m.center.stop()
	for _, other := range m.nodes {
		if other != n {
			m.net.Cut(other.host, m.center.host)
		}
	}
	d.impostor = m.Impostor(m.center.host, leaf, d.serve)
	m.Await(3*time.Minute, n.name+" is connected", func() bool { return n.Status().GetCoordinator().GetConnected() })
	return d
}

func (d *dictation) serve(t *talk, _ *redoubtv1.Up) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.talk = t
	t.welcome()
	d.send()
}

func (d *dictation) send() {
	for _, p := range wire.FromNetmap(d.now) {
		d.talk.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
	}
}

// Say sends the node its first netmap, with changes.
func (d *dictation) Say(change func(*proto.Netmap)) {
	d.m.Helper()
	d.mu.Lock()
	next := *d.base
	next.Peers, next.Sets, next.Rules = slices.Clone(d.base.Peers), slices.Clone(d.base.Sets), slices.Clone(d.base.Rules)
	change(&next)
	slices.SortFunc(next.Rules, func(a, b proto.Rule) int { return strings.Compare(a.Key, b.Key) })
	slices.SortFunc(next.Sets, func(a, b proto.Set) int { return strings.Compare(a.Name, b.Name) })
	next.Version = d.now.Version
	next.Version.N++
	d.now = &next
	d.send()
	d.mu.Unlock()
	version := next.Version.String()
	d.m.Await(time.Second, "version "+version+" is in force", func() bool { return d.node.Status().GetPolicyVersion() == version })
	time.Sleep(10 * latency) // resets are in flight
}

// between returns a rule about all traffic between this node and a peer.
func between(n *proto.Netmap, key string, dir proto.Direction, peer proto.NodeID, own ...netip.Addr) proto.Rule {
	n.Sets = append(n.Sets, proto.Set{Name: "peer:" + key, Members: []proto.NodeID{peer}})
	r := proto.Rule{
		Key: key, Origin: proto.Origin{Path: key, Line: 7}, Direction: dir, Peers: proto.Selector{Sets: []string{"peer:" + key}},
		Services: []proto.Service{{Proto: proto.ProtoTCP, Last: 65535}, {Proto: proto.ProtoUDP, Last: 65535}},
	}
	for _, a := range own {
		r.Local = append(r.Local, netip.PrefixFrom(a, a.BitLen()))
	}
	return r
}

// pair is a dictated node and a peer that lets everything in, with a connection from the first to the second.
type pair struct {
	*dictation
	a, b *node
	near *sim.TCPConn
	far  *sim.TCPConn
}

func (m *mesh) Pair() *pair {
	m.Helper()
	p := &pair{a: m.Join("a", user("ann@example.com")), b: m.Join("b", tags("tag:db"))}
	p.b.Listen(22)
	m.Policy(open)
	p.dictation = m.Dictate(p.a)
	p.connect()
	return p
}

func (p *pair) connect() {
	p.m.Helper()
	var err error
	if p.near, err = p.a.Connect(p.b.V4(), 22); err != nil {
		p.m.Fatal(err)
	}
	if err := p.a.Talk(p.near); err != nil {
		p.m.Fatal(err)
	}
	all := p.b.programs().Accepted()
	p.far = all[len(all)-1]
}

// rule returns a rule between the two.
func (p *pair) rule(n *proto.Netmap, key string) proto.Rule {
	return between(n, key, proto.Out, p.base.Peers[0].ID, p.a.V4(), p.a.V6())
}

func (p *pair) wantReset(why string) {
	p.m.Helper()
	for end, c := range map[string]*sim.TCPConn{"near": p.near, "far": p.far} {
		if err := c.Err(); !errors.Is(err, sim.ErrReset) {
			p.m.Errorf("%s: the %s end: %v", why, end, err)
		}
	}
	// Refusals come at once: nothing is left to hang.
	began := time.Now()
	if err := p.a.Visit(p.b.V4(), 22); err == nil || errors.Is(err, errSilence) || time.Since(began) > time.Second {
		p.m.Errorf("%s: a new connection: %v after %v", why, err, time.Since(began))
	}
}

func (p *pair) wantTalk(when string) {
	p.m.Helper()
	if err := p.a.Talk(p.near); err != nil {
		p.m.Errorf("%s: %v", when, err)
	}
}

func TestDenyCutsALiveFlow(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		p := m.Pair()
		p.Say(func(n *proto.Netmap) {
			r := p.rule(n, "deny[0]/out")
			r.Action = proto.Deny
			n.Rules = append(n.Rules, r)
		})
		p.wantReset("denied")
		w, err := p.a.agent.Why(m.Context(), &redoubtv1.WhyRequest{Destination: "b", Protocol: proto.ProtoTCP, Port: 22})
		if err != nil || w.GetAllowed() || w.GetRule().GetPath() != "deny[0]/out" || w.GetRule().GetAction() != "deny" {
			m.Errorf("%v, %v", w, err)
		}
		p.Say(func(*proto.Netmap) {})
		p.connect()
	})
}

// TestSetMembersComeAndGo checks that a set's permissions apply to nodes for as long as they are members.
func TestSetMembersComeAndGo(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		p := m.Pair()
		only := func(members ...proto.NodeID) func(*proto.Netmap) {
			return func(n *proto.Netmap) {
				n.Rules = nil
				n.Rules = append(n.Rules, p.rule(n, "grants[0]/out"))
				n.Sets[len(n.Sets)-1].Members = members
			}
		}
		p.Say(only(p.base.Peers[0].ID))
		p.wantTalk("as a member")
		p.Say(only())
		p.wantReset("no member any more")
		p.Say(only(p.base.Peers[0].ID))
		p.connect()
	})
}

func TestWatchingEnds(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		p := m.Pair()
		until := time.Now().Add(10 * time.Minute).Truncate(time.Second)
		p.Say(func(n *proto.Netmap) {
			n.Rules = nil
			r := p.rule(n, "enforcement[0]/out")
			r.Action, r.Until = proto.Monitor, until
			n.Rules = append(n.Rules, r)
		})
		p.wantTalk("watched")
		w, err := p.a.agent.Why(m.Context(), &redoubtv1.WhyRequest{Destination: "b", Protocol: proto.ProtoTCP, Port: 22})
		if err != nil || !w.GetAllowed() || w.GetRule().GetUntil() != until.Unix() || w.GetReason() == "" {
			m.Errorf("%v, %v", w, err)
		}
		time.Sleep(time.Until(until) - time.Second)
		p.wantTalk("just before the end")
		time.Sleep(2 * time.Second)
		p.wantReset("after the end")
	})
}

// TestOutageClosesWhatIsConditional checks that a node without its coordinator relies on what it was told about the state of
// machines for a limited time only, and that everything else stays.
func TestOutageClosesWhatIsConditional(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		p := m.Pair()
		p.b.Listen(80)
		say := func() {
			p.Say(func(n *proto.Netmap) {
				n.Outage.Posture = 15 * time.Minute
				n.Rules = nil
				ssh, web := p.rule(n, "grants[0]/out"), p.rule(n, "grants[1]/out")
				ssh.Services, ssh.Conditional = []proto.Service{{Proto: proto.ProtoTCP, First: 22, Last: 22}}, true
				web.Services = []proto.Service{{Proto: proto.ProtoTCP, First: 80, Last: 80}}
				n.Rules = append(n.Rules, ssh, web)
			})
		}
		say()
		web, err := p.a.Connect(p.b.V4(), 80)
		if err != nil {
			m.Fatal(err)
		}
		p.wantTalk("in contact")
		p.Close()
		lost := time.Now()
		time.Sleep(14 * time.Minute)
		p.wantTalk("before the time is over")
		if !p.a.Problem("depend on the state of machines apply for") {
			m.Errorf("nothing counts down: %q", p.a.Status().GetProblems())
		}
		time.Sleep(time.Until(lost.Add(15*time.Minute + time.Second)))
		p.wantReset("out of contact for too long")
		if err := p.a.Talk(web); err != nil {
			m.Errorf("what is not conditional: %v", err)
		}
		w, err := p.a.agent.Why(m.Context(), &redoubtv1.WhyRequest{Destination: "b", Protocol: proto.ProtoTCP, Port: 22})
		if err != nil || w.GetAllowed() || len(w.GetMissing()) != 1 || w.GetMissing()[0].GetPath() != "grants[0]/out" {
			m.Errorf("%v, %v", w, err)
		}
		if !p.a.Problem("are suspended since") {
			m.Errorf("the status says nothing: %q", p.a.Status().GetProblems())
		}
		p.impostor = m.Impostor(m.center.host, p.leaf, p.serve)
		m.Await(3*time.Minute, "a is connected", func() bool { return p.a.Status().GetCoordinator().GetConnected() })
		p.connect()
		if st := p.a.Status(); st.GetState() != string(machine.StateRunning) {
			m.Error(st)
		}
	})
}
