package pilot_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/pilot"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	port      = 41641 // of wgtest's nodes
	relayPort = 3478
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// world is an Internet with relays, and nodes that know each other.
type world struct {
	t      testing.TB
	net    *sim.Internet
	relays []*station
	nodes  []*node
	device key.DevicePrivate
	leaf   tls.Certificate
}

func newWorld(t testing.TB, relays int) *world {
	w := &world{t: t, net: sim.New(1)}
	w.net.SetDefault(sim.Link{Latency: 10 * time.Millisecond})
	w.certificate()
	for i := range relays {
		w.addRelay(proto.NodeID(200 + i))
	}
	return w
}

// certificate makes a certificate for the next node, by which permit recognizes it.
func (w *world) certificate() {
	mesh, err := proto.NewMeshID(rand.Reader)
	w.must(err)
	w.device, err = key.NewDevice(rand.Reader)
	w.must(err)
	root, err := cert.NewRoot(rand.Reader, mesh, time.Now(), 24*time.Hour)
	w.must(err)
	authority, err := root.NewIntermediate(rand.Reader, time.Now(), 12*time.Hour)
	w.must(err)
	leaf, err := authority.IssueCoordinator(rand.Reader, mesh, "c", w.device.Public(), time.Now(), time.Hour)
	w.must(err)
	parsed, err := x509.ParseCertificate(leaf)
	w.must(err)
	w.leaf = tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: w.device, Leaf: parsed}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	for _, n := range w.nodes {
		n.pilot.Close()
		w.must(n.scout.Close())
		w.must(n.client.Close())
		w.must(n.Engine.Close())
	}
	for _, s := range w.relays {
		s.listener.Close()
		w.must(s.server.Close())
		s.streams.Wait()
	}
}

// station is a relay.
type station struct {
	host     *sim.Host
	server   *relay.Server
	relay    proto.Relay
	listener net.Listener
	streams  sync.WaitGroup
}

func (w *world) addRelay(id proto.NodeID) {
	name := fmt.Sprintf("relay%d", id)
	a4, a6 := netip.AddrFrom4([4]byte{203, 0, 113, byte(id)}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(id)})
	s := &station{host: w.net.Host(name, a4, a6)}
	secret, err := relaymsg.NewSecret(rand.Reader)
	w.must(err)
	s.server, err = relay.NewServer(relay.ServerConfig{ID: id, Permit: permit{w}, Rand: rand.Reader, Secret: secret})
	w.must(err)
	s.relay = proto.Relay{
		ID: id, Name: name, UDPPort: relayPort, UDP: []netip.Addr{a4, a6}, Key: s.server.Key(), URLs: []string{"https://" + name},
	}
	_, err = s.server.ServeUDP(s.host.Bind(), relayPort)
	w.must(err)
	s.listener, err = s.host.Listen("tcp", ":443")
	w.must(err)
	s.streams.Go(func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.streams.Go(func() { s.serve(c) })
		}
	})
	w.relays = append(w.relays, s)
}

// serve accepts a stream: in place of TLS and an Upgrade, the node sends its certificate.
func (s *station) serve(c net.Conn) {
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err == nil {
		err = s.server.ServeStream(c, b[:n])
	}
	if err != nil {
		c.Close()
	}
}

// permit admits all nodes and lets them meet.
type permit struct{ w *world }

func (p permit) Admit(c []byte) (proto.NodeID, time.Time, error) {
	for _, n := range p.w.nodes {
		if string(c) == string(n.leaf.Certificate[0]) {
			return n.ID, time.Now().Add(time.Hour), nil
		}
	}
	return 0, time.Time{}, errors.New("a stranger")
}

func (permit) Trusted(proto.NodeID) bool   { return true }
func (permit) Meet(_, _ proto.NodeID) bool { return true }

// node is a node with a pilot.
type node struct {
	*wgtest.Node
	w      *world
	key    key.PathPrivate // that it announces
	claims []netip.Addr    // further addresses that it announces
	leaf   tls.Certificate
	client *relay.Client
	scout  *scout.Scout
	pilot  *pilot.Pilot
}

func (w *world) addNode(host *sim.Host, number byte) *node {
	n := &node{w: w}
	w.certificate()
	n.leaf = w.leaf
	var err error
	n.key, err = key.NewPath(rand.Reader)
	w.must(err)
	w.nodes = append(w.nodes, n)
	n.Node = &wgtest.Node{ID: proto.NodeID(number)}
	n.Node = wgtest.NewNode(w.t, func(id proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
		n.serve(id, host, b.(*bind.Bind))
		return wg.NewInline(id, d, b, log)
	}, host, number)
	return n
}

func (n *node) serve(id proto.NodeID, host *sim.Host, b *bind.Bind) {
	n.client = relay.New(relay.Config{
		Self: id, Certificate: func() *tls.Certificate { return &n.leaf }, Send: b.SendRunTo, Rand: rand.Reader,
		Open: func(ctx context.Context, r *proto.Relay) (net.Conn, error) {
			c, err := host.DialContext(ctx, "tcp", r.Name+":443")
			if err == nil {
				_, err = c.Write(n.leaf.Certificate[0])
			}
			return c, err
		},
	})
	n.scout = scout.New(scout.Config{Send: b.SendTo, Changed: func() {}})
	n.pilot = pilot.New(pilot.Config{
		Self: id, Boxes: pathmsg.NewBoxes(n.key), Bind: b, Local: networks(host), MTU: tun.DefaultMTU,
		Warm: n.client.Warm, STUN: n.scout.STUN, Stir: n.client.Stir,
		Bounds: path.Bounds{Overlay: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}},
	})
	b.Serve(n.pilot, n.client)
}

func networks(h *sim.Host) (out []netip.Prefix) {
	for _, a := range h.Addrs() {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		out = append(out, netip.PrefixFrom(a, bits).Masked())
	}
	return out
}

// meet introduces all nodes to each other and to the relays, and waits until they have home relays.
func (w *world) meet() {
	var relays []proto.Relay
	for _, s := range w.relays {
		relays = append(relays, s.relay)
	}
	for _, n := range w.nodes {
		n.client.SetRelays(relays)
	}
	if len(relays) > 0 {
		time.Sleep(3 * time.Second)
		for _, n := range w.nodes {
			servers, _ := pilot.Servers(n.client.States())
			n.scout.Look(scout.Ground{Servers: servers})
		}
		time.Sleep(4 * time.Second)
	}
	w.know()
}

// know tells all nodes how to reach the others, as netmaps do.
func (w *world) know() {
	for _, n := range w.nodes {
		n.offer()
		for _, o := range w.nodes {
			if o == n {
				continue
			}
			cfg := o.Config()
			cfg.Endpoints = nil
			cfg.Course = n.pilot.SetPeer(o.ID, o.key.Public(), o.reach())
			w.must(n.Engine.SetPeer(cfg))
		}
	}
}

// reach returns what a node reports about itself.
func (n *node) reach() proto.Reach {
	home, _ := n.client.Home()
	r := proto.Reach{HomeRelay: home}
	for _, a := range n.offered().Candidates {
		r.Endpoints = append(r.Endpoints, proto.Endpoint{Addr: a, Kind: proto.EndpointInterface})
	}
	return r
}

// offered returns what a node's peers are told about it.
func (n *node) offered() pathmsg.Offer {
	return pilot.Offer(append(n.Host.Addrs(), n.claims...), port, n.client.States(), n.scout.Report())
}

func (n *node) offer() { n.pilot.Offer(n.offered()) }

func (n *node) moved() {
	n.Bind.ForgetSources()
	n.client.Moved()
	n.pilot.Moved(networks(n.Host))
}

// view returns how a node's packets go to another.
func (n *node) view(o *node) path.View {
	v, ok := n.pilot.View(o.ID)
	if !ok {
		n.w.t.Fatalf("node %d does not steer to node %d", n.ID, o.ID)
	}
	return v
}

// talk pings another node every 20 ms for a while, and returns the longest time without an answer, and how many pings were lost.
func (n *node) talk(o *node, during time.Duration) (gap time.Duration, lost int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	begun := time.Now()
	last := begun
	for time.Since(begun) < during {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_, err := n.Stack.Ping(ctx, o.Addrs.V4)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				lost++
				return
			}
			gap, last = max(gap, time.Since(last)), time.Now()
		})
		time.Sleep(20 * time.Millisecond)
	}
	all.Wait()
	if lost > 0 && time.Since(last) > time.Second/2 {
		gap = max(gap, time.Since(last))
	}
	return gap, lost
}
