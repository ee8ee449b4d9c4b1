package agenttest

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// TestHostileEnrolment tries to become another node, or several, with a valid join code.
func TestHostileEnrolment(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		victim := m.Join("victim", user("ann@example.com"))
		known := m.Nodes()["victim"]
		eve := m.Stranger("eve", 66)
		code := m.parse(m.Code(user("eve@example.com")))

		// What the coordinator and everyone on the path know about the victim: its public keys. They are taken from its
		// certificate.
		taken := must(cert.ParseNode(victimCertificate(m, victim)))(t)
		if known.GetNodePublic() != taken.Keys[0].Public.String() {
			t.Fatal("the certificate is another one")
		}
		own := eve.own(code)
		asVictim, withItsDevice, withLowOrder := own, own, own
		asVictim.node = taken.Keys[0].Public
		withItsDevice.device = taken.Device
		otherToken := own
		otherToken.token = must(key.NewToken(rand.Reader))(t).Public()
		for name, c := range map[string]struct {
			claim claim
			want  redoubtv1.Refusal_Code
		}{
			"another node's WireGuard key": {asVictim, redoubtv1.Refusal_CODE_PROOF},
			"another node's device key":    {withItsDevice, redoubtv1.Refusal_CODE_PROOF},
			"a token that is not held":     {otherToken, redoubtv1.Refusal_CODE_TOKEN},
		} {
			if _, err := eve.enrol(c.claim); codeOf(err) != c.want {
				t.Errorf("%s: %v", name, err)
			}
		}
		eve.lowOrder(withLowOrder)
		eve.replay(code)
		nodes := m.Nodes()
		if len(nodes) != 1 {
			t.Fatalf("nodes: %v", nodes)
		}
		// The victim has noticed nothing.
		if now := nodes["victim"]; !now.GetConnected() || now.GetNodePublic() != known.GetNodePublic() ||
			now.GetDevicePublic() != known.GetDevicePublic() || now.GetCertificateSequence() != known.GetCertificateSequence() ||
			!victim.Status().GetCoordinator().GetConnected() {
			t.Errorf("the victim is %v, and was %v", now, known)
		}

		// The token is still good, once.
		result := must(eve.enrol(own))(t)
		if again := must(eve.enrol(own))(t); !leafOf(t, again).Equal(leafOf(t, result)) {
			t.Error("the same machine became two nodes")
		}
		twin := m.Stranger("twin", 67)
		if _, err := twin.enrol(twin.own(code)); codeOf(err) != redoubtv1.Refusal_CODE_TOKEN {
			t.Errorf("a token that was spent: %v", err)
		}
		// No other node may have a node's keys, even if they are shared on purpose.
		second := m.parse(m.Code(user("eve@example.com")))
		twin.node = eve.node
		if _, err := twin.enrol(twin.own(second)); codeOf(err) != redoubtv1.Refusal_CODE_KEY_USED {
			t.Errorf("the WireGuard key of a node: %v", err)
		}
		twin = m.Stranger("triplet", 68)
		twin.device = eve.device
		if _, err := twin.enrol(twin.own(second)); codeOf(err) != redoubtv1.Refusal_CODE_KEY_USED {
			t.Errorf("the device key of a node: %v", err)
		}
		if nodes := m.Nodes(); len(nodes) != 2 {
			t.Errorf("nodes: %v", nodes)
		}
		m.Join("honest", tags("tag:db"))
	})
}

func leafOf(t *testing.T, r *redoubtv1.Result) *x509.Certificate {
	t.Helper()
	return must(x509.ParseCertificate(r.GetCertificate()))(t)
}

// victimCertificate returns a node's certificate as the mesh shows it to its peers.
func victimCertificate(m *mesh, victim *node) []byte {
	m.Helper()
	peer := m.Stranger("witness", 60).Join(tags("tag:web"))
	m.Policy(open)
	t, nm, err := peer.attach(proto.Version{})
	if err != nil {
		m.Fatal(err)
	}
	defer t.conn.Close()
	defer func() {
		if _, err := m.center.admin().DeleteNode(m.Context(), &redoubtv1.DeleteNodeRequest{Node: peer.name}); err != nil {
			m.Fatal(err)
		}
	}()
	for _, p := range nm.Peers {
		if p.ID.String() == victim.Status().GetNode().GetId() {
			return p.Certificate
		}
	}
	m.Fatal("the victim is nobody's peer")
	return nil
}

// lowOrder claims a WireGuard key with which everyone agrees on the same secret.
func (s *stranger) lowOrder(c claim) {
	s.m.Helper()
	t := must(s.call(nil))(s.m.T)
	defer t.conn.Close()
	hello := s.hello()
	hello.Purpose = &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
		Evidence: []string{"token"}, DevicePublic: c.device.Bytes(), NodePublic: make([]byte, 32), TokenPublic: c.token.Bytes(),
	}}
	if err := t.raw(frame(s.m.T, &redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}})); codeOf(err) != redoubtv1.Refusal_CODE_MALFORMED {
		s.m.Errorf("a key of low order: %v", err)
	}
}

// replay presents a valid proof on another connection than its own, and too late on its own.
func (s *stranger) replay(of join.Code) {
	s.m.Helper()
	c := s.own(of)
	first, second := must(s.call(nil))(s.m.T), must(s.call(nil))(s.m.T)
	defer first.conn.Close()
	defer second.conn.Close()
	challenge, binding, err := c.ask(first, s)
	if err != nil {
		s.m.Fatal(err)
	}
	proof := c.prove(s.m.T, challenge, binding)
	if _, _, err := c.ask(second, s); err != nil {
		s.m.Fatal(err)
	}
	if err := second.raw(frame(s.m.T, proof)); codeOf(err) != redoubtv1.Refusal_CODE_PROOF {
		s.m.Errorf("a proof from another connection: %v", err)
	}
	time.Sleep(61 * time.Second)
	if err := first.raw(frame(s.m.T, proof)); err == nil {
		s.m.Error("a proof that took too long was accepted")
	}
}

// TestHostileNode is a node that tries to learn, and to change, what belongs to others.
func TestHostileNode(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		ann, db := m.Join("laptop", user("ann@example.com")), m.Join("db", tags("tag:db"))
		eve := m.Stranger("eve", 66).Join(user("eve@example.com"))
		db.Listen(22)
		shown := victimCertificate(m, ann)
		m.Policy(`{"tagOwners": {"tag:db": []}, "grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["*"]}]}`)

		// Its own netmap is empty, whatever it claims to have applied.
		annHas := version(t, ann.Status().GetPolicyVersion())
		for _, applied := range []proto.Version{{}, annHas, {Epoch: annHas.Epoch + 7, N: 1}, {Epoch: annHas.Epoch, N: 1 << 62}} {
			stream, nm, err := eve.attach(applied)
			if errors.Is(err, io.EOF) {
				continue // it already has that version, so it is sent nothing
			}
			if err != nil {
				t.Fatalf("attached with version %v: %v", applied, err)
			}
			if nm.Self != eve.cert.ID || len(nm.Peers)+len(nm.Rules)+len(nm.Sets) != 0 {
				t.Errorf("attached with version %v it learns %+v", applied, nm)
			}
			stream.conn.Close()
		}

		// With another's certificate, but without its key.
		other := *eve
		other.result = &redoubtv1.Result{Certificate: shown, Chain: eve.result.GetChain()}
		if _, _, err := other.attach(proto.Version{}); err == nil || codeOf(err) != redoubtv1.Refusal_CODE_UNSPECIFIED {
			t.Errorf("with another's certificate: %v", err)
		}

		// With a certificate of the mesh that is not a node's.
		if _, err := eve.call(coordinatorLeaf(m)); err == nil {
			t.Error("a coordinator's certificate is taken for a node's")
		}

		// Acknowledging for others: a node that is away still lags.
		m.Policy(closed)
		m.net.Cut(ann.host, m.center.host)
		stream, _, err := eve.attach(proto.Version{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.conn.Close()
		if _, err := m.center.admin().ApplyPolicy(m.Context(), &redoubtv1.ApplyPolicyRequest{Source: open}); err != nil {
			t.Fatal(err)
		}
		for n := annHas.N; n < annHas.N+50; n++ {
			if _, err := stream.say(&redoubtv1.Up{Message: &redoubtv1.Up_Applied{Applied: &redoubtv1.Applied{
				Version: wire.FromVersion(proto.Version{Epoch: annHas.Epoch, N: n}),
			}}}); err != nil {
				t.Fatal(err)
			}
		}
		lags := map[string]bool{}
		for _, l := range m.laggards(time.Second) {
			lags[l.GetName()] = true
		}
		if !lags["laptop"] || lags["db"] {
			t.Errorf("those who lag: %v", lags)
		}
		m.net.Heal(ann.host, m.center.host)

		// Renewing a certificate for another node's key.
		taken := must(cert.ParseNode(shown))(t)
		if _, err := stream.say(&redoubtv1.Up{Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{NodePublic: taken.Keys[0].Public.Bytes()}}}); err != nil {
			t.Fatal(err)
		}
		for asked := false; !asked; {
			asked = must(stream.hear())(t).GetChallenge() != nil
		}
		if err := stream.raw(frame(t, &redoubtv1.Up{Message: &redoubtv1.Up_Proof{Proof: &redoubtv1.Proof{
			NodeKeyMac: make([]byte, wire.MACSize), DeviceSignature: make([]byte, 70),
		}}})); codeOf(err) != redoubtv1.Refusal_CODE_PROOF {
			t.Errorf("a renewal with another node's WireGuard key: %v", err)
		}
		m.Await(2*time.Minute, "others are served", func() bool { return ann.Status().GetCoordinator().GetConnected() })
		m.Await(time.Minute, "they reach each other", func() bool { return ann.Ping(db.V4()) == nil })
	})
}

// authority returns the coordinator's signing key, as someone has it who can read its disk.
func authority(m *mesh) *cert.Authority {
	m.Helper()
	b := must(os.ReadFile(filepath.Join(m.center.dir, "pki", "intermediate.key")))(m.T)
	return must(cert.ParseAuthority(b))(m.T)
}

// coordinatorLeaf returns a certificate for a coordinator of this mesh.
func coordinatorLeaf(m *mesh) *tls.Certificate {
	m.Helper()
	a := authority(m)
	k := must(key.NewDevice(rand.Reader))(m.T)
	leaf := must(a.IssueCoordinator(rand.Reader, a.Mesh(), "c1", k.Public(), time.Now(), time.Hour))(m.T)
	root, _ := pem.Decode(must(os.ReadFile(filepath.Join(m.center.dir, "pki", "root.crt")))(m.T))
	if root == nil {
		m.Fatal("the root's file has no root in it")
	}
	return &tls.Certificate{Certificate: [][]byte{leaf, a.Certificate().Raw, root.Bytes}, PrivateKey: k}
}

// TestOneTokenManyMachines brings up 64 agents at the same moment, with the same code for a single machine.
func TestOneTokenManyMachines(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		code := m.Code(user("ann@example.com"))
		const many = 64
		for i := range many {
			m.Machine("laptop" + string(rune('a'+i/26)) + string(rune('a'+i%26)))
		}
		errs := make([]error, many)
		var all sync.WaitGroup
		for i, n := range m.nodes {
			all.Go(func() { _, errs[i] = n.TryUp(code, time.Minute) })
		}
		all.Wait()
		in := 0
		for i, err := range errs {
			switch st := m.nodes[i].Status(); {
			case err == nil:
				in++
			case !strings.Contains(err.Error(), "used by another machine") || st.GetState() != "down" || st.GetNode() != nil:
				t.Errorf("%s: %v; %v", m.nodes[i].name, err, st)
			}
		}
		if nodes := m.Nodes(); in != 1 || len(nodes) != 1 {
			t.Errorf("%d machines joined; nodes: %v", in, nodes)
		}
	})
}

// engine is a stranger's WireGuard engine, without any filter.
type engine struct {
	wg.Engine
	tun *sim.TUN
}

func (s *stranger) engine() *engine {
	s.m.Helper()
	device := sim.NewTUN("evil0", tun.DefaultMTU)
	e := &engine{wg.NewReference(device, bind.New(bind.Config{Inner: s.host.Bind(), Bounds: path.Bounds{}}), s.m.logger(s.name)), device}
	if err := e.Configure(s.node, 0); err != nil {
		s.m.Fatal(err)
	}
	return e
}

// TestHostilePackets sends packets that a node must not send, through a WireGuard session that is its own.
func TestHostilePackets(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		ann, db, hidden := m.Join("laptop", user("ann@example.com")), m.Join("db", tags("tag:db")), m.Join("web", tags("tag:web"))
		eve := m.Stranger("eve", 66).Join(user("eve@example.com"))
		for _, n := range m.nodes {
			n.Listen(22, 80)
		}
		m.Policy(`{
			"tagOwners": {"tag:db": [], "tag:web": []},
			"grants": [
				{"src": ["ann@example.com"], "dst": ["*"], "ip": ["*"]},
				{"src": ["eve@example.com"], "dst": ["tag:db"], "ip": ["tcp:80"]},
			],
		}`)
		conn, err := ann.Connect(db.V4(), 22)
		if err != nil {
			t.Fatal(err)
		}
		stream, nm, err := eve.attach(proto.Version{})
		if err != nil {
			t.Fatal(err)
		}
		defer stream.conn.Close()
		if len(nm.Peers) != 2 { // db, and ann, who may reach eve
			t.Fatalf("eve knows %+v", nm.Peers)
		}
		e := eve.engine()
		defer e.Close()
		for _, p := range nm.Peers {
			e.add(m, p)
		}
		arrived := make(chan sim.Packet, 1000)
		db.Watch(func(p sim.Packet) { arrived <- p })
		got := func() (list []sim.Packet) {
			time.Sleep(time.Second)
			for len(arrived) > 0 {
				list = append(list, <-arrived)
			}
			return list
		}
		me, she, it := eve.cert.Addrs, addrsOf(ann), addrsOf(db)
		port := netip.AddrPortFrom

		// Allowed traffic arrives: so the session works.
		e.tun.Send(sim.TCP(port(me.V4, 4000), port(it.V4, 80), sim.SYN, 1, 0, nil).Bytes())
		if list := got(); len(list) != 1 {
			t.Fatalf("what is allowed arrives as %v", list)
		}
		talking := must(ann.talking(conn))(t)
		got()
		for name, p := range map[string]sim.Packet{
			"another's IPv4 source":         sim.TCP(port(she.V4, 4001), port(it.V4, 22), sim.SYN, 1, 0, nil),
			"another's IPv6 source":         sim.TCP(port(she.V6, 4001), port(it.V6, 22), sim.SYN, 1, 0, nil),
			"another's source, own service": sim.TCP(port(she.V4, 4001), port(it.V4, 80), sim.SYN, 1, 0, nil),
			"another's ping":                sim.Echo(she.V4, it.V4, 1, 1, nil),
			"its own source":                sim.TCP(port(it.V4, 4001), port(it.V4, 80), sim.SYN, 1, 0, nil),
			"a source outside":              sim.TCP(port(netip.MustParseAddr("10.0.0.1"), 4001), port(it.V4, 80), sim.SYN, 1, 0, nil),
			"loopback":                      sim.UDP(port(netip.MustParseAddr("127.0.0.1"), 4001), port(it.V4, 80), nil),
			"nobody's address in the mesh":  sim.TCP(port(nm.Mesh.V4.Addr().Next(), 4001), port(it.V4, 80), sim.SYN, 1, 0, nil),
			"another port":                  sim.TCP(port(me.V4, 4001), port(it.V4, 22), sim.SYN, 1, 0, nil),
			"another protocol":              sim.UDP(port(me.V4, 4001), port(it.V4, 80), nil),
			"a ping":                        sim.Echo(me.V6, it.V6, 1, 1, nil),
			"no flow, an acknowledgement":   sim.TCP(port(me.V4, 4001), port(it.V4, 80), sim.ACK, 5, 5, []byte("hello")),
			"no flow, the answer to a SYN":  sim.TCP(port(me.V4, 80), port(it.V4, 4001), sim.SYN|sim.ACK, 5, 5, nil),
			"an answer to no ping":          {Src: port(me.V4, 0), Dst: port(it.V4, 0), Proto: proto.ProtoICMP, Type: sim.EchoReply, ID: 1},
			"a reset in another's flow":     talking,
		} {
			e.tun.Send(p.Bytes())
			if list := got(); len(list) != 0 {
				t.Errorf("%s arrives: %v", name, list)
			}
		}
		for name, b := range map[string][]byte{
			"to an address that is not the node's": withDestination(sim.TCP(port(me.V4, 4002), port(it.V4, 80), sim.SYN, 1, 0, nil), she.V4).Bytes(),
			"garbage":                              append([]byte{0x45, 0, 0, 40}, make([]byte, 36)...),
		} {
			e.tun.Send(b)
			if list := got(); len(list) != 0 {
				t.Errorf("%s arrives: %v", name, list)
			}
		}
		if err := ann.Talk(conn); err != nil {
			t.Errorf("another's connection: %v", err)
		}
		got()

		// A node that no rule connects to it does not even answer.
		was := hidden.Status().GetPeers()
		for _, n := range m.Nodes() {
			if n.GetName() == "web" {
				e.addByName(m, n)
			}
		}
		e.tun.Send(sim.Echo(me.V4, addrsOf(hidden).V4, 1, 1, nil).Bytes())
		time.Sleep(20 * time.Second)
		for _, s := range must(e.Peers())(t) {
			if s.ID.String() == hidden.Status().GetNode().GetId() && !s.LastHandshake.IsZero() {
				t.Error("a node that is no peer of it shakes hands")
			}
		}
		if now := hidden.Status().GetPeers(); len(now) != len(was) {
			t.Errorf("its peers were %v and are %v", was, now)
		}
	})
}

// add adds a peer from the netmap to the engine.
func (e *engine) add(m *mesh, p *proto.Peer) {
	m.Helper()
	n := must(cert.ParseNode(p.Certificate))(m.T)
	config := wg.PeerConfig{ID: n.ID, Addrs: n.Addrs}
	for _, k := range n.Keys {
		config.Keys = append(config.Keys, k.Public)
	}
	for _, x := range p.Endpoints {
		config.Endpoints = append(config.Endpoints, x.Addr)
	}
	if err := e.SetPeer(config); err != nil {
		m.Fatal(err)
	}
}

// addByName adds a peer about which someone told the engine's owner everything.
func (e *engine) addByName(m *mesh, n *redoubtv1.Node) {
	m.Helper()
	config := wg.PeerConfig{
		ID: must(proto.ParseNodeID(n.GetId()))(m.T), Keys: []key.NodePublic{must(key.ParseNodePublicText(n.GetNodePublic()))(m.T)},
		Addrs: proto.Addrs{V4: netip.MustParseAddr(n.GetAddresses()[0]), V6: netip.MustParseAddr(n.GetAddresses()[1])},
	}
	for _, x := range n.GetEndpoints() {
		config.Endpoints = append(config.Endpoints, must(netip.ParseAddrPort(x))(m.T))
	}
	if err := e.SetPeer(config); err != nil {
		m.Fatal(err)
	}
}

func addrsOf(n *node) proto.Addrs { return proto.Addrs{V4: n.V4(), V6: n.V6()} }

func withDestination(p sim.Packet, dst netip.Addr) sim.Packet {
	p.Dst = netip.AddrPortFrom(dst, p.Dst.Port())
	return p
}

// talking returns a reset that the far end of a connection would believe: all of its numbers are right.
func (n *node) talking(c *sim.TCPConn) (sim.Packet, error) {
	var last sim.Packet
	n.Watch(func(p sim.Packet) {
		if p.Proto == proto.ProtoTCP {
			last = p
		}
	})
	defer n.Watch(nil)
	if err := n.Talk(c); err != nil {
		return last, err
	}
	time.Sleep(time.Second)
	if last.Proto != proto.ProtoTCP {
		return last, errors.New("nothing came back")
	}
	return sim.TCP(last.Dst, last.Src, sim.RST, last.Ack, 0, nil), nil
}
