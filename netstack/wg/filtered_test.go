package wg_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
)

var mesh = proto.Mesh{
	ID: "m0123456789abcdefghijklmnop", Domain: "mesh.internal",
	V4: netip.MustParsePrefix("100.64.0.0/16"), V6: netip.MustParsePrefix("fd00:1::/48"),
}

// guarded is a node with the real filter.
type guarded struct {
	*wgtest.Node
	filter *filter.Filter
}

func identity(n byte) proto.Identity {
	return proto.Identity{
		ID: proto.NodeID(n), Name: fmt.Sprintf("n%d", n), Tags: []string{"tag:x"},
		Addrs: proto.Addrs{V4: netip.AddrFrom4([4]byte{100, 64, 0, n}), V6: netip.AddrFrom16([16]byte{0: 0xfd, 3: 1, 15: n})},
	}
}

// permit returns the program that lets node 1 open TCP connections to node 2, as self sees it.
func permit(t *testing.T, self, peer byte, version uint64, services ...proto.Service) *filter.Program {
	t.Helper()
	me, other := identity(self), identity(peer)
	direction := proto.Out
	if self == 2 {
		direction = proto.In
	}
	r := filter.Ruleset{
		Version: proto.Version{Epoch: 1, N: version}, Mesh: mesh, Self: me, Peers: []proto.Identity{other},
		Sets: []proto.Set{{Name: "tag:x", Members: []proto.NodeID{other.ID}}},
	}
	if len(services) > 0 {
		r.Rules = []proto.Rule{{
			Key: "grants[0]", Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: direction,
			Peers:    proto.Selector{Sets: []string{"tag:x"}},
			Local:    []netip.Prefix{netip.PrefixFrom(me.Addrs.V4, 32), netip.PrefixFrom(me.Addrs.V6, 128)},
			Services: services,
		}}
	}
	p, err := filter.Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newGuarded(t *testing.T, engine wgtest.Make, host *sim.Host, number byte) *guarded {
	t.Helper()
	g := &guarded{filter: filter.New(filter.Config{})}
	g.Node = wgtest.NewNodeWith(t, engine, g.filter, host, number)
	return g
}

// enforce installs a program, and resets the flows that it ends at both ends.
func (g *guarded) enforce(p *filter.Program) {
	g.filter.Install(p)
	for !g.filter.Sweep(0, func(r filter.Reset) {
		if r.ToLocal != nil {
			_ = g.Device.Deliver(r.ToLocal)
		}
		g.Device.Inject(r.ToPeer)
	}) {
	}
}

func TestFlowDiesWithItsPermission(t *testing.T) {
	ssh := proto.Service{Proto: proto.ProtoTCP, First: 22, Last: 22}
	web := proto.Service{Proto: proto.ProtoTCP, First: 80, Last: 80}
	for name, c := range map[string]struct {
		at     byte
		engine wgtest.Make
	}{
		"at the source":              {1, reference},
		"at the destination":         {2, reference},
		"at the source, inline":      {1, inline},
		"at the destination, inline": {2, inline},
	} {
		at := c.at
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := sim.New(1)
				a := newGuarded(t, c.engine, n.Host("a", netip.MustParseAddr("192.0.2.1")), 1)
				defer a.Engine.Close()
				b := newGuarded(t, c.engine, n.Host("b", netip.MustParseAddr("192.0.2.2")), 2)
				defer b.Engine.Close()
				for _, x := range [][2]*guarded{{a, b}, {b, a}} {
					if err := x[0].Engine.SetPeer(x[1].Config()); err != nil {
						t.Fatal(err)
					}
				}
				b.Stack.Listen(22, 80)
				target := netip.AddrPortFrom(b.Addrs.V4, 22)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := a.Stack.DialTCP(ctx, target); !errors.Is(err, sim.ErrReset) {
					t.Fatalf("without a policy: %v", err)
				}

				a.enforce(permit(t, 1, 2, 1, ssh, web))
				b.enforce(permit(t, 2, 1, 1, ssh, web))
				c, err := a.Stack.DialTCP(ctx, target)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Echo(ctx, []byte("hello")); err != nil {
					t.Fatal(err)
				}
				far := b.Stack.Accepted()
				if len(far) != 1 {
					t.Fatalf("%d connections arrived", len(far))
				}
				if _, err := a.Stack.Ping(ctx, b.Addrs.V4); !errors.Is(err, sim.ErrProhibited) {
					t.Errorf("ping, which no rule names: %v", err)
				}

				// After the change nothing but the resets may pass before the connection ends.
				begun := time.Now()
				if at == 1 {
					a.enforce(permit(t, 1, 2, 2, web))
				} else {
					b.enforce(permit(t, 2, 1, 2, web))
				}
				<-c.Ended()
				<-far[0].Ended()
				if d := time.Since(begun); d > 10*time.Millisecond {
					t.Errorf("both ends knew after %s", d)
				}
				if !errors.Is(c.Err(), sim.ErrReset) || !errors.Is(far[0].Err(), sim.ErrReset) {
					t.Errorf("they ended with %v and %v", c.Err(), far[0].Err())
				}
				if _, err := a.Stack.DialTCP(ctx, netip.AddrPortFrom(b.Addrs.V6, 80)); err != nil {
					t.Errorf("what is still permitted: %v", err)
				}
				a.enforce(nil)
				if _, err := a.Stack.DialTCP(ctx, netip.AddrPortFrom(b.Addrs.V6, 80)); err == nil {
					t.Error("after the policy was taken away: no error")
				}
			})
		})
	}
}
