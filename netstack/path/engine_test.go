package path_test

import (
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// driver does for one node what an agent does: it feeds events to the State and carries out their effects.
type driver struct {
	t           *testing.T
	node, other *wgtest.Node
	state       *path.State
}

func newDriver(t *testing.T, n, other *wgtest.Node) *driver {
	return &driver{t, n, other, path.New(path.Bounds{}, prefixes(n.Host))}
}

func prefixes(h *sim.Host) (out []netip.Prefix) {
	for _, a := range h.Addrs() {
		out = append(out, netip.PrefixFrom(a, 24))
	}
	return out
}

func (d *driver) step(e path.Event) {
	d.t.Helper()
	for _, f := range d.state.Step(time.Now(), e) {
		p := f.(path.Point)
		var err error
		if p.Now {
			err = d.node.Engine.Probe(p.ID, p.Candidates)
		} else {
			cfg := d.other.Config()
			cfg.Endpoints = p.Candidates
			err = d.node.Engine.SetPeer(cfg)
		}
		if err != nil {
			d.t.Error(err)
		}
	}
}

// learn passes on where the netmap says the other node is.
func (d *driver) learn() {
	k := path.Known{ID: d.other.ID}
	for _, a := range d.other.Config().Endpoints {
		k.Endpoints = append(k.Endpoints, proto.Endpoint{Addr: a, Kind: proto.EndpointInterface})
	}
	d.step(k)
}

// run polls the engine every second for a while.
func (d *driver) run(seconds int) {
	for range seconds {
		time.Sleep(time.Second)
		all, err := d.node.Engine.Peers()
		if err != nil {
			d.t.Error(err)
		}
		for _, s := range all {
			d.step(path.Seen{ID: s.ID, Endpoint: s.Endpoint, LastHandshake: s.LastHandshake, Rx: s.Rx, Tx: s.Tx})
		}
	}
}

func two(t *testing.T, f func(t *testing.T, a, b *driver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := sim.New(1)
		engine := func(_ proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
			return wg.NewReference(d, b, log)
		}
		x := wgtest.NewNode(t, engine, n.Host("a", netip.MustParseAddr("192.0.2.1")), 1)
		defer x.Engine.Close()
		y := wgtest.NewNode(t, engine, n.Host("b", netip.MustParseAddr("198.51.100.1")), 2)
		defer y.Engine.Close()
		a, b := newDriver(t, x, y), newDriver(t, y, x)
		a.learn()
		b.learn()
		if err := x.Ping(y.Addrs.V4); err != nil {
			t.Fatal(err)
		}
		a.run(1)
		b.run(1)
		f(t, a, b)
	})
}

func move(d *driver, to string) {
	d.node.Host.SetAddrs(netip.MustParseAddr(to))
	d.step(path.Moved{Local: prefixes(d.node.Host)})
}

func TestMoverIsFollowedWithoutTraffic(t *testing.T) {
	two(t, func(t *testing.T, a, b *driver) {
		move(b, "203.0.113.9")
		time.Sleep(time.Second)
		if err := a.node.Ping(b.node.Addrs.V4); err != nil {
			t.Error(err)
		}
	})
}

func TestBothMoveAndTheNetmapSaysWhere(t *testing.T) {
	two(t, func(t *testing.T, a, b *driver) {
		move(a, "203.0.113.8")
		move(b, "203.0.113.9")
		time.Sleep(time.Second)
		if err := a.node.Ping(b.node.Addrs.V4); err == nil {
			t.Error("they found each other by nothing")
		}
		a.learn()
		b.learn()
		time.Sleep(time.Second)
		if err := a.node.Ping(b.node.Addrs.V4); err != nil {
			t.Error(err)
		}
	})
}

func TestDeadWayIsLeft(t *testing.T) {
	two(t, func(t *testing.T, a, b *driver) {
		// b has a second address, which a does not use, and loses the first without announcing it.
		old, spare := b.node.Host.Addrs()[0], netip.MustParseAddr("203.0.113.9")
		b.node.Host.SetAddrs(old, spare)
		a.learn()
		b.node.Host.SetAddrs(spare)
		begun := time.Now()
		for a.node.Ping(b.node.Addrs.V4) != nil {
			a.run(1)
			if time.Since(begun) > time.Minute {
				t.Fatal("still not found")
			}
		}
		if d := time.Since(begun); d > 20*time.Second {
			t.Errorf("found after %s", d)
		}
	})
}
