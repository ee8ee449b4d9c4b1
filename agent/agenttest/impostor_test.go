package agenttest

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// impostor answers at a coordinator's port, and sends what a test wants.
type impostor struct {
	m        *mesh
	listener net.Listener
	leaf     *tls.Certificate
	all      sync.WaitGroup

	mu     sync.Mutex
	script func(*talk, *redoubtv1.Up)
	served int
	conns  []net.Conn
}

// Impostor listens on a host with a certificate. It runs the script on every stream, with the node's first message.
func (m *mesh) Impostor(h *sim.Host, leaf *tls.Certificate, script func(*talk, *redoubtv1.Up)) *impostor {
	m.Helper()
	i := &impostor{m: m, listener: must(h.Listen("tcp", ":443"))(m.T), leaf: leaf, script: script}
	m.after = append(m.after, i.Close)
	i.all.Go(func() {
		for {
			conn, err := i.listener.Accept()
			if err != nil {
				return
			}
			i.mu.Lock()
			i.conns = append(i.conns, conn)
			i.mu.Unlock()
			i.all.Go(func() { i.serve(conn) })
		}
	})
	return i
}

func (i *impostor) serve(raw net.Conn) {
	defer raw.Close()
	config := cert.ServerConfig(*i.leaf, nil, func([][]byte) error { return nil })
	conn := tls.Server(raw, config)
	t := &talk{conn, bufio.NewReader(conn)}
	if _, err := http.ReadRequest(t.r); err != nil {
		return
	}
	_, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+wire.Protocol+"\r\n\r\n")
	if err != nil {
		return
	}
	first, err := t.up()
	if err != nil {
		return
	}
	i.mu.Lock()
	script := i.script
	i.served++
	i.mu.Unlock()
	if script != nil {
		script(t, first)
	}
	for err == nil {
		_, err = t.up()
	}
}

// up waits for a message from a node.
func (t *talk) up() (*redoubtv1.Up, error) {
	b, err := wire.ReadFrame(t.r, nil, wire.MaxFrame)
	if err != nil {
		return nil, err
	}
	return wire.DecodeUp(b)
}

// tell sends a message as a coordinator does. A node that hangs up has heard enough.
func (t *talk) tell(down *redoubtv1.Down) {
	if b, err := wire.AppendFrame(nil, down); err == nil {
		_, _ = t.conn.Write(b)
	}
}

func (t *talk) welcome() {
	t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Welcome{Welcome: &redoubtv1.Welcome{
		Protocol: proto.ProtocolMax, Features: proto.Features(), ServerTime: time.Now().UnixMilli(), KeepAliveSeconds: 25,
	}}})
}

// Script changes what happens on later streams, and ends the existing ones.
func (i *impostor) Script(script func(*talk, *redoubtv1.Up)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.script, i.served = script, 0
	for _, c := range i.conns {
		c.Close()
	}
	i.conns = nil
}

// Served returns how many streams got as far as a first message since the script was last changed.
func (i *impostor) Served() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.served
}

// Close stops the impostor, and waits. It may be called more than once.
func (i *impostor) Close() {
	i.listener.Close()
	i.Script(nil)
	i.all.Wait()
}

// selfMade returns a coordinator's certificate of a made-up mesh, with the true mesh's ID.
func selfMade(m *mesh) *tls.Certificate {
	m.Helper()
	root, intermediate := madeUp(m)
	return below(m, intermediate, root.Certificate().Raw, time.Now())
}

// madeUp returns made-up authorities with the true mesh's ID.
func madeUp(m *mesh) (root, intermediate *cert.Authority) {
	m.Helper()
	root = must(cert.NewRoot(rand.Reader, authority(m).Mesh(), time.Now(), 24*time.Hour))(m.T)
	return root, must(root.NewIntermediate(rand.Reader, time.Now(), 12*time.Hour))(m.T)
}

// below returns a coordinator's certificate issued by an authority.
func below(m *mesh, a *cert.Authority, root []byte, at time.Time) *tls.Certificate {
	m.Helper()
	k := must(key.NewDevice(rand.Reader))(m.T)
	leaf := must(a.IssueCoordinator(rand.Reader, a.Mesh(), "c1", k.Public(), at, time.Hour))(m.T)
	return &tls.Certificate{Certificate: [][]byte{leaf, a.Certificate().Raw, root}, PrivateKey: k}
}

// TestImpostorsEnrolNobody checks that a machine with a valid join code is not enrolled by another server that it was led to.
func TestImpostorsEnrolNobody(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		time.Sleep(2 * time.Hour)
		elsewhere := m.net.Host("elsewhere.example", underlay(200)...)
		node := m.Stranger("node", 66).Join(tags("tag:db"))
		asNode := node.leaf(node.device)
		asNode.Certificate = append(asNode.Certificate, node.result.GetRoots()...)
		trueRoot, now := node.result.GetRoots()[0], time.Now()
		_, made := madeUp(m)
		for name, c := range map[string]struct {
			leaf  *tls.Certificate
			words string
			final bool // it is not tried again
		}{
			"another root":                          {selfMade(m), "the join code names root", true},
			"another root, and the true one beside": {below(m, made, trueRoot, now), "TLS with elsewhere.example", false},
			"a node's certificate":                  {asNode, "TLS with elsewhere.example", false},
			"a certificate that has expired":        {below(m, authority(m), trueRoot, now.Add(-2*time.Hour)), "expired", false},
		} {
			i := m.Impostor(elsewhere, c.leaf, nil)
			code := m.parse(m.Code(user("ann@example.com")))
			code.URLs = []string{"https://elsewhere.example"}
			n := m.Machine(strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), ",", ""))
			_, err := n.TryUp(must(code.Encode())(t), 20*time.Second)
			switch {
			case err == nil:
				t.Errorf("%s: enrolled as %v", name, n.Status())
			case c.final && !strings.Contains(err.Error(), c.words), !c.final && !n.Problem(c.words):
				t.Errorf("%s: %v; %q", name, err, n.Status().GetProblems())
			}
			if i.Served() > 0 {
				t.Errorf("%s: it is spoken with", name)
			}
			if st := n.Status(); st.GetNode() != nil || len(m.Nodes()) != 1 {
				t.Errorf("%s: %v, %v", name, st, m.Nodes())
			}
			i.Close()

			// The code is still good.
			code.URLs = []string{centerURL}
			n.Up(must(code.Encode())(t))
			if _, err := m.center.admin().DeleteNode(m.Context(), &redoubtv1.DeleteNodeRequest{Node: n.Status().GetNode().GetId()}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestImpostorsOfACoordinator checks that nodes of the mesh do not listen to others in the place of their coordinator.
func TestImpostorsOfACoordinator(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		time.Sleep(2 * time.Hour)
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		stranger := m.Stranger("node", 66).Join(tags("tag:db"))
		asNode := stranger.leaf(stranger.device)
		asNode.Certificate = append(asNode.Certificate, stranger.result.GetRoots()...)
		m.Await(time.Second, "both know of it", func() bool { return len(a.Status().GetPeers()) == 2 && len(b.Status().GetPeers()) == 2 })
		expired := below(m, authority(m), stranger.result.GetRoots()[0], time.Now().Add(-2*time.Hour))
		made := selfMade(m)
		m.center.stop()
		version := a.Status().GetPolicyVersion()
		for name, leaf := range map[string]*tls.Certificate{"another root": made, "a node": asNode, "one that has expired": expired} {
			i := m.Impostor(m.center.host, leaf, nil)
			time.Sleep(3 * time.Minute)
			if n := i.Served(); n > 0 {
				t.Errorf("%s: %d streams were opened", name, n)
			}
			if st := a.Status(); st.GetCoordinator().GetConnected() || st.GetPolicyVersion() != version || !a.Problem("TLS with coordinator.example") {
				t.Errorf("%s: %v", name, st)
			}
			a.Reaches(b, 22)
			i.Close()
		}
		m.center.start()
		m.Await(2*time.Minute, "they are connected", func() bool {
			return a.Status().GetCoordinator().GetConnected() && b.Status().GetCoordinator().GetConnected()
		})
	})
}

// stored returns the netmap that an agent has on its disk.
func (n *node) stored() *proto.Netmap {
	n.m.Helper()
	d := must(state.Open(n.dir, time.Now()))(n.m.T)
	defer d.Close()
	return must(d.Load())(n.m.T).Netmap
}

// TestNetmapsThatAreNone checks that a coordinator with a valid certificate that sends nonsense changes nothing.
func TestNetmapsThatAreNone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		a.stop()
		good := a.stored()
		a.start()
		m.Settle()
		leaf := coordinatorLeaf(m)
		m.center.stop()
		m.net.Cut(b.host, m.center.host)
		i := m.Impostor(m.center.host, leaf, nil)
		before := a.Status().GetPolicyVersion()

		next := func(change func(*proto.Netmap)) *proto.Netmap {
			bad := *good
			bad.Version.N += 1 << 20
			bad.Peers, bad.Sets, bad.Rules = slices.Clone(good.Peers), slices.Clone(good.Sets), slices.Clone(good.Rules)
			change(&bad)
			return &bad
		}
		parts := func(nm *proto.Netmap) func(*talk, *redoubtv1.Up) {
			return func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				for _, p := range wire.FromNetmap(nm) {
					t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
				}
			}
		}
		closing := func(nm *proto.Netmap) { nm.Rules = nil }
		whole := wire.FromNetmap(next(closing))
		for name, script := range map[string]func(*talk, *redoubtv1.Up){
			"another node's":           parts(next(func(nm *proto.Netmap) { closing(nm); nm.Self++ })),
			"another mesh's":           parts(next(func(nm *proto.Netmap) { closing(nm); nm.Mesh.Domain = "other.internal" })),
			"an older one":             parts(next(func(nm *proto.Netmap) { closing(nm); nm.Version = proto.Version{Epoch: good.Version.Epoch, N: 1} })),
			"one without a version":    parts(next(func(nm *proto.Netmap) { closing(nm); nm.Version = proto.Version{} })),
			"a rule of an unknown set": parts(next(func(nm *proto.Netmap) { nm.Rules[0].Peers = proto.Selector{Sets: []string{"nobody"}} })),
			"a peer twice":             parts(next(func(nm *proto.Netmap) { closing(nm); nm.Peers = append(nm.Peers, nm.Peers[0]) })),
			"an endpoint in the mesh": parts(next(func(nm *proto.Netmap) {
				closing(nm)
				nm.Peers[0].Endpoints = []proto.Endpoint{{Addr: netip.AddrPortFrom(nm.Mesh.V4.Addr().Next(), 1), Kind: proto.EndpointInterface}}
			})),
			"authorities that are none": parts(next(func(nm *proto.Netmap) { closing(nm); nm.Authorities = [][]byte{[]byte("garbage")} })),
			"half of one": func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				half := &redoubtv1.NetmapPart{Head: whole[0].GetHead(), Peers: whole[0].GetPeers()}
				t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: half}})
				t.conn.Close()
			},
			"a change of something else": func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				other := next(func(nm *proto.Netmap) { nm.Version.N++ })
				for _, p := range wire.FromDelta(proto.Diff(other, next(func(nm *proto.Netmap) { closing(nm); nm.Version.N += 2 }))) {
					t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Delta{Delta: p}})
				}
			},
			"a frame that is too large": func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				_, _ = t.conn.Write([]byte{0, 0x10, 0, 1})
			},
			"a frame that ends early": func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				_, _ = t.conn.Write([]byte{0, 0, 4, 0, 1, 2, 3})
				t.conn.Close()
			},
			"garbage": func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				_, _ = t.conn.Write([]byte{0, 0, 0, 3, 0xff, 0xff, 0xff})
			},
			"a certificate that nobody asked for": func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Result{Result: &redoubtv1.Result{}}})
			},
			"no welcome": func(t *talk, _ *redoubtv1.Up) {
				for _, p := range whole {
					t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
				}
			},
		} {
			i.Script(script)
			m.Await(3*time.Minute, name+" was heard", func() bool { return i.Served() > 0 })
			time.Sleep(30 * time.Second)
			st := a.Status()
			if st.GetPolicyVersion() != before || st.GetState() != string(machine.StateRunning) || len(st.GetPeers()) != 1 {
				t.Errorf("%s: %v", name, st)
			}
			if len(st.GetProblems()) == 0 {
				t.Errorf("%s: the status says nothing of it", name)
			}
			a.Reaches(b, 22)
			a.restart() // nothing of it is on the disk either
			a.AwaitState(machine.StateRunning, time.Second)
			if now := a.Status().GetPolicyVersion(); now != before {
				t.Errorf("%s: after a restart it is version %s, not %s", name, now, before)
			}
		}
		i.Close()
		m.net.Heal(b.host, m.center.host)
		m.center.start()
		m.Await(2*time.Minute, "they are connected", func() bool {
			return a.Status().GetCoordinator().GetConnected() && b.Status().GetCoordinator().GetConnected()
		})
		m.Settle()
		m.Await(forgotten, "they reach each other", func() bool { return a.Ping(b.V4()) == nil })
		if p := a.Status().GetProblems(); len(p) > 0 {
			t.Errorf("afterwards: %q", p)
		}
	})
}

// TestNetmapOfTheFuture checks that a netmap which requires an unknown feature closes the agent, and that the status says what
// to do.
func TestNetmapOfTheFuture(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		a.stop()
		future := a.stored()
		future.Version.N++
		future.Requires = append(slices.Clone(future.Requires), "rules/99")
		slices.Sort(future.Requires)
		a.start()
		leaf := coordinatorLeaf(m)
		m.center.stop()
		i := m.Impostor(m.center.host, leaf, func(t *talk, _ *redoubtv1.Up) {
			t.welcome()
			for _, p := range wire.FromNetmap(future) {
				t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Netmap{Netmap: p}})
			}
		})
		defer i.Close()
		m.Await(3*time.Minute, "it says so", func() bool { return a.Problem("requires feature rules/99") && a.Problem("upgrade it") })
		a.ReachesNot(b, 22)
		a.restart()
		m.Await(time.Second, "it says so after a restart", func() bool { return a.Problem("requires feature rules/99") })
		a.ReachesNot(b, 22)
	})
}

// TestCertificatesThatAreNone checks that an agent accepts no invalid certificate in place of its next one.
func TestCertificatesThatAreNone(t *testing.T) {
	t.Parallel()
	// A renewal may be some minutes late if it has to be requested again, and a certificate lasts for an hour.
	const together = 3
	for group := range 3 {
		t.Run(fmt.Sprint(group), func(t *testing.T) { certificatesThatAreNone(t, group*together, together) })
	}
}

func certificatesThatAreNone(t *testing.T, first, count int) {
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22)
		m.Policy(open)
		a.stop()
		d := must(state.Open(a.dir, time.Now()))(t)
		loaded := must(d.Load())(t)
		d.Close()
		a.start()
		m.Settle()
		leaf, signer := coordinatorLeaf(m), authority(m)
		m.center.stop()
		m.net.Cut(b.host, m.center.host)
		self := loaded.Self
		var asked key.NodePublic // that the certificate must name
		result := func(change func(*cert.Node)) *redoubtv1.Result {
			n := *self.Node
			n.Sequence++
			n.NotBefore, n.NotAfter = time.Now().Truncate(time.Second), time.Now().Truncate(time.Second).Add(2*time.Hour)
			n.Keys = []cert.NodeKey{{Public: asked, NotBefore: n.NotBefore, NotAfter: n.NotAfter}}
			change(&n)
			return &redoubtv1.Result{
				Certificate: must(signer.IssueNode(rand.Reader, n))(t).Raw, Chain: [][]byte{signer.Certificate().Raw},
				Roots: self.Record.Roots, Mesh: wire.FromMesh(self.Record.Mesh),
			}
		}
		// renewing answers a request for a certificate with a result that may be invalid.
		renewing := func(answer func() *redoubtv1.Result) func(*talk, *redoubtv1.Up) {
			return func(t *talk, _ *redoubtv1.Up) {
				t.welcome()
				for {
					up, err := t.up()
					switch {
					case err != nil:
						return
					case up.GetRenew() != nil:
						k, err := key.NewNode(rand.Reader)
						if err != nil {
							return
						}
						if asked, err = key.ParseNodePublic(up.GetRenew().GetNodePublic()); err != nil {
							return
						}
						t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Challenge{Challenge: &redoubtv1.Challenge{
							Nonce: make([]byte, wire.NonceSize), EphemeralPublic: k.Public().Bytes(), ServerTime: time.Now().UnixMilli(),
						}}})
					case up.GetProof() != nil:
						t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_Result{Result: answer()}})
					default:
						t.tell(&redoubtv1.Down{Message: &redoubtv1.Down_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
					}
				}
			}
		}
		i := m.Impostor(m.center.host, leaf, nil)
		time.Sleep(33 * time.Minute) // so that a renewal is due
		expires := a.Status().GetNode().GetCertificateExpires()
		made, _ := madeUp(m)
		for _, c := range []struct {
			name   string
			answer func() *redoubtv1.Result
		}{
			{"nothing", func() *redoubtv1.Result { return &redoubtv1.Result{} }},
			{"another node's", func() *redoubtv1.Result { return result(func(n *cert.Node) { n.ID++ }) }},
			{"an earlier one", func() *redoubtv1.Result { return result(func(n *cert.Node) { n.Sequence = 0 }) }},
			{"another device's", func() *redoubtv1.Result { return result(func(n *cert.Node) { n.Device = otherDevice(t) }) }},
			{"another key's", func() *redoubtv1.Result { return result(func(n *cert.Node) { n.Keys[0].Public = otherNode(t) }) }},
			{"an address outside", func() *redoubtv1.Result { return result(func(n *cert.Node) { n.Addrs.V4 = underlay(1)[0] }) }},
			{"under another root", func() *redoubtv1.Result {
				r := result(func(*cert.Node) {})
				r.Roots, r.Chain = [][]byte{made.Certificate().Raw}, nil
				return r
			}},
			{"truncated", func() *redoubtv1.Result {
				r := result(func(*cert.Node) {})
				r.Certificate = r.GetCertificate()[:len(r.GetCertificate())-3]
				return r
			}},
			{"oversized", func() *redoubtv1.Result {
				r := result(func(*cert.Node) {})
				r.Certificate = append(r.GetCertificate(), make([]byte, 40<<10)...)
				return r
			}},
		}[first : first+count] {
			name := c.name
			var answered atomic.Bool
			i.Script(renewing(func() *redoubtv1.Result {
				answered.Store(true)
				return c.answer()
			}))
			m.Await(7*time.Minute, name+" is asked for", answered.Load)
			time.Sleep(time.Second)
			if !a.Problem("the certificate was not renewed") {
				t.Errorf("%s is no problem: %v", name, a.Status().GetProblems())
			}
			if now := a.Status().GetNode().GetCertificateExpires(); now != expires {
				t.Errorf("%s: the certificate ends at %d, not %d", name, now, expires)
			}
			if err := errors.Join(a.Ping(b.V4()), b.Ping(a.V6())); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			a.restart()
			a.AwaitState(machine.StateRunning, time.Second)
			if now := a.Status().GetNode().GetCertificateExpires(); now != expires {
				t.Errorf("%s: after a restart the certificate ends at %d, not %d", name, now, expires)
			}
		}
		i.Close()
		m.net.Heal(b.host, m.center.host)
		m.center.start()
		m.Await(7*time.Minute, "it is renewed", func() bool { return a.Status().GetNode().GetCertificateExpires() > expires })
		if p := a.Status().GetProblems(); len(p) > 0 {
			t.Errorf("afterwards: %q", p)
		}
	})
}

func otherDevice(t *testing.T) key.DevicePublic {
	t.Helper()
	return must(key.NewDevice(rand.Reader))(t).Device()
}

func otherNode(t *testing.T) key.NodePublic {
	t.Helper()
	return must(key.NewNode(rand.Reader))(t).Public()
}
