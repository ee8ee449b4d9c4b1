package relay_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an Internet with relays and nodes.
type world struct {
	t      *testing.T
	net    *sim.Internet
	permit *permit
	relays []*station
	nodes  []*node
}

// permit knows nodes by their certificates.
type permit struct {
	mu      sync.Mutex
	nodes   map[string]proto.NodeID
	revoked map[proto.NodeID]bool
	apart   map[[2]proto.NodeID]bool
	until   time.Duration
}

var errStranger = errors.New("certificate of a stranger")

func (p *permit) Admit(c []byte) (proto.NodeID, time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, ok := p.nodes[string(c)]
	if !ok || p.revoked[id] {
		return 0, time.Time{}, errStranger
	}
	return id, time.Now().Add(p.until), nil
}

func (p *permit) Trusted(id proto.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.revoked[id]
}

func (p *permit) Meet(a, b proto.NodeID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.apart[[2]proto.NodeID{min(a, b), max(a, b)}] && !p.revoked[a] && !p.revoked[b]
}

func (p *permit) change(f func(*permit)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, net: sim.New(1), permit: &permit{
		nodes: map[string]proto.NodeID{}, revoked: map[proto.NodeID]bool{}, apart: map[[2]proto.NodeID]bool{}, until: time.Hour,
	}}
	w.net.SetDefault(sim.Link{Latency: 10 * time.Millisecond})
	return w
}

// close closes everything, nodes before the relays that they use.
func (w *world) close() {
	for _, n := range w.nodes {
		n.close()
	}
	for _, s := range w.relays {
		s.close()
	}
}

// station is a relay on a host.
type station struct {
	w        *world
	host     *sim.Host
	server   *relay.Server
	relay    proto.Relay
	listener net.Listener
	streams  sync.WaitGroup
	config   relay.ServerConfig
	tls      tls.Certificate
}

const port = 3478

// addRelay starts a relay that accepts streams as well.
func (w *world) addRelay(id proto.NodeID, change ...func(*relay.ServerConfig)) *station {
	w.t.Helper()
	name := fmt.Sprintf("relay%d", id)
	addr := netip.AddrFrom4([4]byte{203, 0, 113, byte(id)})
	s := &station{w: w, host: w.net.Host(name, addr), relay: proto.Relay{
		ID: id, Name: name, UDPPort: port, UDP: []netip.Addr{addr}, URLs: []string{"https://" + name},
	}}
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	s.tls = certificate(w.t, device)
	s.config = relay.ServerConfig{ID: id, Permit: w.permit, Rand: rand.Reader}
	for _, f := range change {
		f(&s.config)
	}
	s.start()
	w.relays = append(w.relays, s)
	return s
}

// start starts the relay with a new key.
func (s *station) start() {
	var err error
	if s.config.Secret, err = relaymsg.NewSecret(rand.Reader); err != nil {
		s.w.t.Fatal(err)
	}
	if s.server, err = relay.NewServer(s.config); err != nil {
		s.w.t.Fatal(err)
	}
	s.relay.Key = s.server.Key()
	if _, err := s.server.ServeUDP(s.host.Bind(), port); err != nil {
		s.w.t.Fatal(err)
	}
	l, err := s.host.Listen("tcp", ":443")
	if err != nil {
		s.w.t.Fatal(err)
	}
	s.listener = l
	server := s.server
	config := cert.ServerConfig(s.tls, x509.NewCertPool(), func([][]byte) error { return nil })
	s.streams.Go(func() { _ = server.ServeTLS(l, config) })
}

func (s *station) close() {
	s.listener.Close()
	if err := s.server.Close(); err != nil {
		s.w.t.Error(err)
	}
	s.streams.Wait()
}

// node is a node with a client of all relays.
type node struct {
	w      *world
	id     proto.NodeID
	host   *sim.Host
	bind   *bind.Bind
	client *relay.Client
	tls    tls.Certificate
	inbox  chan parcel
	all    sync.WaitGroup
	fail   chan relaymsg.Reason
}

type parcel struct {
	text string
	via  bind.Via
}

func (w *world) addNode(id proto.NodeID) *node {
	w.t.Helper()
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{
		w: w, id: id, host: w.net.Host(fmt.Sprintf("node%d", id), netip.AddrFrom4([4]byte{198, 51, 100, byte(id)})),
		tls: certificate(w.t, device), inbox: make(chan parcel, 1024), fail: make(chan relaymsg.Reason, 64),
	}
	w.permit.change(func(p *permit) { p.nodes[string(n.tls.Certificate[0])] = id })
	n.bind = bind.New(bind.Config{Inner: n.host.Bind()})
	own := func() *tls.Certificate { return &n.tls }
	n.client = relay.New(relay.Config{
		Self: id, Certificate: own, Send: n.bind.SendRunTo, Rand: rand.Reader,
		Open: relay.Opener{Dial: n.dial, Certificate: own, Verify: w.verify}.Open,
		Unreached: func(_ bind.Via, r relaymsg.Reason) {
			select {
			case n.fail <- r:
			default:
			}
		},
	})
	n.bind.Serve(nobody{}, n.client)
	n.listen()
	w.nodes = append(w.nodes, n)
	return n
}

type nobody struct{}

func (nobody) Path(*bind.Endpoint, []byte) {}
func (nobody) STUN(netip.AddrPort, []byte) {}

// certificate returns a certificate that only the permit knows.
func certificate(t testing.TB, device key.DevicePrivate) tls.Certificate {
	t.Helper()
	mesh, err := proto.NewMeshID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := cert.NewRoot(rand.Reader, mesh, time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := root.NewIntermediate(rand.Reader, time.Now(), 12*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := authority.IssueCoordinator(rand.Reader, mesh, "c", device.Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf}, PrivateKey: device, Leaf: parsed}
}

// listen opens the socket and receives from it.
func (n *node) listen() {
	fns, _, err := n.bind.Open(0)
	if err != nil {
		n.w.t.Fatal(err)
	}
	for _, fn := range fns {
		n.all.Go(func() { n.receive(fn) })
	}
}

func (n *node) receive(fn conn.ReceiveFunc) {
	size := n.bind.BatchSize()
	bufs, sizes, eps := make([][]byte, size), make([]int, size), make([]conn.Endpoint, size)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	for {
		got, err := fn(bufs, sizes, eps)
		if err != nil {
			return
		}
		for i := range got {
			if sizes[i] > 0 {
				via := eps[i].(*bind.Endpoint).Via()
				n.inbox <- parcel{string(bufs[i][4:sizes[i]]), via}
			}
		}
	}
}

func (n *node) dial(ctx context.Context, url string, cfg *tls.Config) (*tls.Conn, error) {
	return outward.Dialer{Dial: n.host.DialContext}.Open(ctx, url, cfg)
}

// verify identifies relays by their certificates.
func (w *world) verify(id proto.NodeID, chain [][]byte) error {
	for _, s := range w.relays {
		if s.relay.ID == id && bytes.Equal(chain[0], s.tls.Certificate[0]) {
			return nil
		}
	}
	return errStranger
}

func (n *node) close() {
	if err := n.client.Close(); err != nil {
		n.w.t.Error(err)
	}
	if err := n.bind.Close(); err != nil {
		n.w.t.Error(err)
	}
	n.all.Wait()
}

// send sends texts as WireGuard messages.
func (n *node) send(via *station, to *node, texts ...string) {
	n.w.t.Helper()
	for _, text := range texts {
		msg := append([]byte{4, 0, 0, 0}, text...)
		if err := n.client.SendRun(msg, len(msg), bind.Via{Relay: via.relay.ID, Peer: to.id}); err != nil {
			n.w.t.Fatal(err)
		}
	}
}

// gets waits for a text from a peer.
func (n *node) gets(from *node, text string) {
	n.w.t.Helper()
	select {
	case p := <-n.inbox:
		if p.text != text || p.via.Peer != from.id {
			n.w.t.Fatalf("node %d got %q from %d, want %q from %d", n.id, p.text, p.via.Peer, text, from.id)
		}
	case <-time.After(time.Minute):
		n.w.t.Fatalf("node %d got nothing within a minute, want %q", n.id, text)
	}
}

// silent checks that nothing arrives for d.
func (n *node) silent(d time.Duration) {
	n.w.t.Helper()
	select {
	case p := <-n.inbox:
		n.w.t.Fatalf("node %d got %q", n.id, p.text)
	case <-time.After(d):
	}
}

// know gives all nodes a list of relays.
func (w *world) know(relays ...*station) {
	list := make([]proto.Relay, 0, len(relays))
	for _, s := range relays {
		list = append(list, s.relay)
	}
	for _, n := range w.nodes {
		n.client.SetRelays(list)
	}
}

// state returns a node's state of a relay.
func (n *node) state(s *station) relay.State {
	for _, x := range n.client.States() {
		if x.Relay.ID == s.relay.ID {
			return x
		}
	}
	return relay.State{}
}
