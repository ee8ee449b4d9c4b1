package osnet

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
)

// network is an implementation to test, on a host that has one underlay address of each family.
type network struct {
	Network
	config  Config
	addrs   []netip.Addr
	router  netip.Addr // of the default route; router6 is the IPv6 one
	router6 netip.Addr
	change  func(t *testing.T) // changes the underlay
	enter   func(func() error) error
}

// contract tests what every Network must do.
func contract(t *testing.T, open func(t *testing.T) network) {
	t.Run("lifecycle", func(t *testing.T) {
		n := open(t)
		if err := n.Down(); err != nil {
			t.Errorf("Down before Up: %v", err)
		}
		bad := n.config
		bad.Addrs.V4 = netip.MustParseAddr("192.0.2.1")
		if err := n.enter(func() error { return n.Up(bad) }); err == nil {
			t.Error("an address outside of the mesh was taken")
		}
		for range 2 {
			if err := n.enter(func() error { return errors.Join(n.Up(n.config), n.Up(n.config)) }); err != nil {
				t.Fatal(err)
			}
			if got := n.Problems(); len(got) != 0 {
				t.Errorf("problems: %q", got)
			}
			if err := errors.Join(n.Down(), n.Down()); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(n.Close(), n.Close()); err != nil {
			t.Fatal(err)
		}
		if err := n.enter(func() error { return n.Up(n.config) }); err == nil {
			t.Error("Up after Close")
		}
		if err := n.Down(); err != nil {
			t.Errorf("Down after Close: %v", err)
		}
	})
	t.Run("endpoints", func(t *testing.T) {
		n := open(t)
		got, err := n.Endpoints(n.config.Mesh)
		if err != nil || len(got) != len(n.addrs) {
			t.Fatalf("endpoints %v, %v, want %v", got, err, n.addrs)
		}
		mesh := n.config.Mesh
		mesh.V4 = netip.PrefixFrom(n.addrs[0], 24).Masked()
		if got, err = n.Endpoints(mesh); err != nil || len(got) != len(n.addrs)-1 {
			t.Errorf("with one of them in the overlay: %v, %v", got, err)
		}
	})
	t.Run("gateway", func(t *testing.T) {
		n := open(t)
		gateway, local, err := n.Gateway()
		if err != nil || gateway != n.router || local != n.addrs[0] {
			t.Errorf("gateway %s from %s, %v, want %s from %s", gateway, local, err, n.router, n.addrs[0])
		}
		gateway, local, err = n.Gateway6()
		if err != nil || gateway != n.router6 || local != n.addrs[1] {
			t.Errorf("IPv6: gateway %s from %s, %v, want %s from %s", gateway, local, err, n.router6, n.addrs[1])
		}
	})
	t.Run("watch", func(t *testing.T) {
		n := open(t)
		watch := func(ctx context.Context) <-chan struct{} {
			var ch <-chan struct{}
			if err := n.enter(func() (err error) { ch, err = n.Watch(ctx); return err }); err != nil {
				t.Fatal(err)
			}
			return ch
		}
		ctx, cancel := context.WithCancel(t.Context())
		one, other := watch(ctx), watch(t.Context())
		n.change(t)
		<-one
		<-other
		cancel()
		for range one {
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		for range other {
		}
	})
}

func TestFakeKeepsTheContract(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.99.1.10"), netip.MustParseAddr("2001:db8::10")
	contract(t, func(t *testing.T) network {
		f := &Fake{}
		f.SetEndpoints(v4, v6)
		router := netip.MustParseAddr("10.99.1.1")
		router6 := netip.MustParseAddr("fe80::1%eth0")
		f.SetGateway(router, v4)
		f.SetGateway(router6, v6)
		return network{
			Network: f, config: fakeConfig(), addrs: []netip.Addr{v4, v6}, router: router, router6: router6,
			change: func(*testing.T) { f.SetEndpoints(v6) },
			enter:  func(do func() error) error { return do() },
		}
	})
}

func fakeConfig() Config {
	c := Config{Interface: "redoubt0", MTU: 1280}
	c.Mesh.V4, c.Mesh.V6 = prefix("100.80.0.0/16"), prefix("fd12::/48")
	c.Addrs.V4, c.Addrs.V6 = netip.MustParseAddr("100.80.0.5"), netip.MustParseAddr("fd12::5")
	return c
}

func TestFakeDoesAsTestsSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var f Fake
		if _, ok := f.Config(); ok || f.Ups() != 0 {
			t.Error("up from the beginning")
		}
		if err := f.Up(fakeConfig()); err != nil {
			t.Fatal(err)
		}
		if c, ok := f.Config(); !ok || c.Table != DefaultTable || f.Ups() != 1 {
			t.Errorf("up with %+v, %v, %d times", c, ok, f.Ups())
		}
		f.SetClashes("a clash")
		f.SetProblems("a problem")
		clashes, err := f.Clashes(fakeConfig().Mesh)
		if err != nil || len(clashes) != 1 || len(f.Problems()) != 1 {
			t.Errorf("clashes %q, %v, problems %q", clashes, err, f.Problems())
		}
		trouble := errors.New("no")
		f.FailUp(trouble)
		if err := f.Up(fakeConfig()); !errors.Is(err, trouble) {
			t.Errorf("Up: %v", err)
		}
	})
}
