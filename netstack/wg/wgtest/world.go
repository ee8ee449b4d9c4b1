package wgtest

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Make creates the engine under test for the node with this ID.
type Make func(proto.NodeID, tun.Device, conn.Bind, *slog.Logger) wg.Engine

// Open is a tun.Hook that lets everything pass.
type Open struct{}

// Out implements tun.Hook.
func (Open) Out([]byte) filter.Verdict { return filter.Verdict{Pass: true} }

// In implements tun.Hook.
func (Open) In([]byte) filter.Verdict { return filter.Verdict{Pass: true} }

// Node is one end: a host on the Internet, an engine on it, and a small host behind that.
type Node struct {
	ID     proto.NodeID
	Addrs  proto.Addrs
	Host   *sim.Host
	Stack  *sim.Stack
	TUN    *sim.TUN
	Device *tun.FilteredDevice
	Bind   *bind.Bind
	Engine wg.Engine
	Key    key.NodePrivate
}

const port = 41641

// overlay are the prefixes of the nodes' own addresses.
var overlay = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd00:1::/48")}

// NewNode creates a node on the host; number is from 1 to 99. Its engine is configured and has no peers.
func NewNode(t testing.TB, make Make, host *sim.Host, number byte) *Node {
	t.Helper()
	return NewNodeWith(t, make, Open{}, host, number)
}

// NewNodeWith is NewNode with a hook that filters its packets.
func NewNodeWith(t testing.TB, make Make, hook tun.Hook, host *sim.Host, number byte) *Node {
	t.Helper()
	return NewNodeOver(t, make, hook, host, number, func(b conn.Bind) conn.Bind { return b })
}

// NewNodeOver is NewNodeWith with a bind between the node and its host's network.
func NewNodeOver(t testing.TB, make Make, hook tun.Hook, host *sim.Host, number byte, under func(conn.Bind) conn.Bind) *Node {
	t.Helper()
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	addrs := proto.Addrs{
		V4: netip.AddrFrom4([4]byte{100, 64, 0, number}),
		V6: netip.AddrFrom16([16]byte{0: 0xfd, 3: 1, 15: number}),
	}
	n := &Node{ID: proto.NodeID(number), Addrs: addrs, Host: host, Key: k, TUN: sim.NewTUN(host.Name(), tun.DefaultMTU)}
	n.Stack = sim.NewStack(n.TUN, addrs.Slice()...)
	n.Device = tun.Filtered(n.TUN, hook)
	n.Bind = bind.New(bind.Config{Inner: under(host.Bind()), Bounds: path.Bounds{Overlay: overlay}})
	n.Engine = make(n.ID, n.Device, n.Bind, slog.New(slog.DiscardHandler))
	if err := n.Engine.Configure(k, port); err != nil {
		t.Fatal(err)
	}
	return n
}

// Config returns how other nodes configure this one.
func (n *Node) Config() wg.PeerConfig {
	cfg := wg.PeerConfig{ID: n.ID, Keys: []key.NodePublic{n.Key.Public()}, Addrs: n.Addrs}
	for _, a := range n.Host.Addrs() {
		cfg.Endpoints = append(cfg.Endpoints, netip.AddrPortFrom(a, port))
	}
	return cfg
}

// Ping returns an error unless an echo reply arrives within three seconds.
func (n *Node) Ping(to netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err := n.Stack.Ping(ctx, to)
	return err
}

// world is two nodes that know each other.
type world struct {
	t    *testing.T
	make Make
	net  *sim.Internet
	a, b *Node
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func newWorld(t *testing.T, make Make) *world {
	t.Helper()
	w := &world{t: t, make: make, net: sim.New(1)}
	w.a = NewNode(t, make, w.net.Host("a", addr("192.0.2.1"), addr("2001:db8::1")), 1)
	w.b = NewNode(t, make, w.net.Host("b", addr("192.0.2.2"), addr("2001:db8::2")), 2)
	w.set(w.a, w.b.Config())
	w.set(w.b, w.a.Config())
	return w
}

func (w *world) close() {
	w.t.Helper()
	for _, n := range []*Node{w.a, w.b} {
		if err := n.Engine.Close(); err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) set(at *Node, cfg wg.PeerConfig) {
	w.t.Helper()
	if err := at.Engine.SetPeer(cfg); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) mustPing(from, to *Node) {
	w.t.Helper()
	for _, a := range to.Addrs.Slice() {
		if err := from.Ping(a); err != nil {
			w.t.Fatalf("from node %d to %s: %v", from.ID, a, err)
		}
	}
}

func (w *world) mustNotPing(from, to *Node) {
	w.t.Helper()
	for _, a := range to.Addrs.Slice() {
		if err := from.Ping(a); err == nil {
			w.t.Fatalf("from node %d to %s: an answer came", from.ID, a)
		}
	}
}

// stats returns an engine's counters for its only peer.
func (w *world) stats(at *Node) wg.PeerStats {
	w.t.Helper()
	synctest.Wait()
	all, err := at.Engine.Peers()
	if err != nil {
		w.t.Fatal(err)
	}
	if len(all) != 1 {
		w.t.Fatalf("node %d knows %d peers, want 1", at.ID, len(all))
	}
	return all[0]
}
