package wgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Contract tests an engine.
func Contract(t *testing.T, make Make) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"traffic passes both ways", trafficBothWays},
		{"counters count", counters},
		{"keys and sessions are told", keysAndSessions},
		{"whoever moves is followed", roaming},
		{"both move at once", bothMove},
		{"a peer that is removed is gone at once", removal},
		{"what does not change keeps its session", incremental},
		{"sessions are renewed for ever", rekeying},
		{"lost packets do no lasting harm", losses},
		{"a peer has its own addresses only", foreignSource},
		{"routes lead to their peer and from it", routes},
		{"of several routes the longest counts", longestRoute},
		{"a route moves from peer to peer", movedRoute},
		{"no route covers a peer's own address", ownBeforeRoute},
		{"a pre-shared key must be the same", preShared},
		{"another key is another peer", otherKey},
		{"keys change one at a time", changingKeys},
		{"the dead candidate does not hold up the living one", candidates},
		{"a large packet passes whole", largePackets},
		{"an injected packet goes out", injection},
		{"sockets can be opened anew", rebinding},
		{"a port that is taken is an error, not the end", takenPort},
		{"a port that is taken is opened once it is free", takenPortComesFree},
		{"nonsense is refused", nonsense},
		{"closing is final", closing},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, make)
				defer w.close()
				c.run(t, w)
			})
		})
	}
}

func trafficBothWays(_ *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	w.mustPing(w.b, w.a)
}

func counters(t *testing.T, w *world) {
	if s := w.stats(w.a); !s.LastHandshake.IsZero() || s.Rx != 0 || s.Tx != 0 || s.Endpoint.IsValid() {
		t.Errorf("before any packet: %+v", s)
	}
	begun := time.Now()
	w.mustPing(w.a, w.b)
	a, b := w.stats(w.a), w.stats(w.b)
	if a.ID != w.b.ID || a.Key != w.b.Key.Public() {
		t.Errorf("the peer is %s with key %s", a.ID, a.Key)
	}
	if a.LastHandshake.Before(begun) || a.LastHandshake.After(time.Now()) {
		t.Errorf("last handshake at %s, it is %s", a.LastHandshake, time.Now())
	}
	if a.Rx == 0 || a.Tx == 0 || a.Rx != b.Tx || a.Tx != b.Rx {
		t.Errorf("counted %d and %d bytes at one end, %d and %d at the other", a.Rx, a.Tx, b.Rx, b.Tx)
	}
	if want := w.b.Config().Endpoints; !slices.Contains(want, a.Endpoint) {
		t.Errorf("endpoint %s, want one of %s", a.Endpoint, want)
	}
	if p, err := w.a.Engine.Port(); err != nil || p != port {
		t.Errorf("port %d, %v", p, err)
	}
}

func keysAndSessions(t *testing.T, w *world) {
	begun := time.Now()
	if s := w.stats(w.a); !s.KeySince.Equal(begun) || s.Keys != 1 || s.Sessions != 0 || !s.SessionSince.IsZero() {
		t.Errorf("before the first packet: %+v", s)
	}
	time.Sleep(time.Minute)
	w.mustPing(w.a, w.b)
	time.Sleep(10 * time.Second)
	s := w.stats(w.a)
	if !s.KeySince.Equal(begun) || s.Sessions != 1 || s.SessionSince.Sub(begun).Round(time.Second) != time.Minute {
		t.Errorf("with a session: %+v", s)
	}
	if one, err := w.a.Engine.Peer(w.b.ID); err != nil || one != s {
		t.Errorf("asked for one peer: %+v, %v", one, err)
	}
	if none, err := w.a.Engine.Peer(77); err != nil || none != (wg.PeerStats{}) {
		t.Errorf("asked for a peer that there is not: %+v, %v", none, err)
	}
	if list, err := w.a.Engine.Active(); err != nil || len(list) != 1 || list[0] != s {
		t.Errorf("active: %+v, %v", list, err)
	}
	own := wg.LocalKey{Public: w.a.Key.Public(), Since: begun}
	if st, err := w.a.Engine.Stats(); err != nil || len(st.Keys) != 1 || st.Keys[0] != own {
		t.Errorf("own keys: %+v, %v", st, err)
	}
	next, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.a.Engine.RotateLocalKey(next); err != nil {
		t.Fatal(err)
	}
	if err := w.b.Engine.AddRemoteKey(w.a.ID, next.Public()); err != nil {
		t.Fatal(err)
	}
	own = wg.LocalKey{Public: next.Public(), Since: time.Now()}
	if st, err := w.a.Engine.Stats(); err != nil || st.Keys[0] != own {
		t.Errorf("own keys after one was replaced: %+v, %v", st, err)
	}
	time.Sleep(5 * time.Minute)
	w.mustPing(w.b, w.a)
	if s := w.stats(w.b); s.Key != next.Public() || !s.KeySince.Equal(own.Since) {
		t.Errorf("the peer's new key: %+v", s)
	}
	if st, err := w.a.Engine.Stats(); err != nil || len(st.Keys) != 1 {
		t.Errorf("the key before did not end: %+v, %v", st, err)
	}
}

func roaming(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	before := w.stats(w.a).LastHandshake
	w.b.Host.SetAddrs(addr("198.51.100.7"), addr("2001:db8:7::7"))
	w.mustPing(w.b, w.a)
	w.mustPing(w.a, w.b)
	s := w.stats(w.a)
	if want := w.b.Config().Endpoints; !slices.Contains(want, s.Endpoint) {
		t.Errorf("endpoint %s, want one of %s", s.Endpoint, want)
	}
	if !s.LastHandshake.Equal(before) {
		t.Error("moving took a new handshake")
	}
}

func bothMove(_ *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	w.a.Host.SetAddrs(addr("198.51.100.6"))
	w.b.Host.SetAddrs(addr("198.51.100.7"))
	w.mustNotPing(w.a, w.b)
	for _, x := range [][2]*Node{{w.a, w.b}, {w.b, w.a}} {
		if err := x[0].Engine.Probe(x[1].ID, x[1].Config().Endpoints); err != nil {
			w.t.Fatal(err)
		}
	}
	time.Sleep(time.Second)
	w.mustPing(w.a, w.b)
	w.mustPing(w.b, w.a)
}

func removal(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	if err := w.a.Engine.RemovePeer(w.b.ID); err != nil {
		t.Fatal(err)
	}
	good, _ := w.a.Stack.Received()
	w.mustNotPing(w.a, w.b)
	w.mustNotPing(w.b, w.a)
	if now, _ := w.a.Stack.Received(); now != good {
		t.Errorf("%d packets came from a removed peer", now-good)
	}
	if all, err := w.a.Engine.Peers(); err != nil || len(all) != 0 {
		t.Errorf("peers: %v, %v", all, err)
	}
	if err := w.a.Engine.RemovePeer(w.b.ID); err != nil {
		t.Errorf("removing nobody: %v", err)
	}
	w.set(w.a, w.b.Config())
	time.Sleep(10 * time.Second) // an unanswered handshake is repeated after five
	w.mustPing(w.a, w.b)
}

func incremental(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	before := w.stats(w.a).LastHandshake
	cfg := w.b.Config()
	kept := func(what string) {
		t.Helper()
		time.Sleep(time.Second)
		w.mustPing(w.a, w.b)
		w.mustPing(w.b, w.a)
		if now := w.stats(w.a).LastHandshake; !now.Equal(before) {
			t.Errorf("%s: a new handshake", what)
		}
	}
	w.set(w.a, cfg)
	kept("nothing changed")
	cfg.Endpoints = append([]netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:9")}, cfg.Endpoints...)
	cfg.Endpoints[0], cfg.Endpoints[1] = cfg.Endpoints[1], cfg.Endpoints[0]
	w.set(w.a, cfg)
	kept("another candidate")
	slices.Reverse(cfg.Endpoints)
	w.set(w.a, cfg)
	if !w.stats(w.a).Endpoint.IsValid() {
		t.Error("another order: the endpoint in use is forgotten")
	}
	kept("another order")
	cfg.Endpoints = nil
	w.set(w.a, cfg)
	kept("no word of candidates")
	cfg.Keepalive = 25 * time.Second
	w.set(w.a, cfg)
	kept("keepalive")
	cfg.PSK[0] = 1
	w.set(w.a, cfg)
	kept("a pre-shared key for the next handshake")
	cfg.Addrs.V4 = addr("100.64.0.77")
	w.set(w.a, cfg)
	if err := w.a.Ping(w.b.Addrs.V4); err == nil {
		t.Error("the old address still answers")
	}
	if err := w.a.Ping(w.b.Addrs.V6); err != nil {
		t.Errorf("the address that stayed: %v", err)
	}
	if now := w.stats(w.a).LastHandshake; !now.Equal(before) {
		t.Error("addresses: a new handshake")
	}
}

func rekeying(t *testing.T, w *world) {
	handshakes := map[time.Time]bool{}
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		w.mustPing(w.a, w.b)
		handshakes[w.stats(w.a).LastHandshake] = true
	}
	if n := len(handshakes); n < 5 || n > 7 {
		t.Errorf("%d handshakes in ten minutes, want one every two", n)
	}
}

func losses(t *testing.T, w *world) {
	w.net.SetLink(w.a.Host, w.b.Host, sim.Link{Latency: 40 * time.Millisecond, Loss: 0.2})
	tries, answers := 0, 0
	for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		tries++
		if w.a.Ping(w.b.Addrs.V4) == nil {
			answers++
		}
	}
	if share := float64(answers) / float64(tries); share < 0.5 {
		t.Errorf("%d of %d pings were answered, with a fifth lost each way", answers, tries)
	}
	w.net.SetLink(w.a.Host, w.b.Host, sim.Link{Latency: 40 * time.Millisecond})
	time.Sleep(20 * time.Second)
	w.mustPing(w.a, w.b)
}

func foreignSource(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	before, _ := w.b.Stack.Received()
	for _, src := range []string{"100.64.0.3", "100.64.0.2", "192.0.2.1", "fd00:1::3"} {
		dst := w.b.Addrs.V4
		if addr(src).Is6() {
			dst = w.b.Addrs.V6
		}
		w.a.TUN.Send(sim.Echo(addr(src), dst, 1, 1, nil).Bytes())
	}
	time.Sleep(time.Second)
	if now, _ := w.b.Stack.Received(); now != before {
		t.Errorf("%d packets with sources that are not the peer's came through", now-before)
	}
}

func preShared(_ *testing.T, w *world) {
	a, b := w.a.Config(), w.b.Config()
	a.PSK, b.PSK = [32]byte{1}, [32]byte{2}
	w.set(w.a, b)
	w.set(w.b, a)
	w.mustNotPing(w.a, w.b)
	a.PSK = b.PSK
	w.set(w.b, a)
	time.Sleep(10 * time.Second)
	w.mustPing(w.a, w.b)
}

func otherKey(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	next, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	w.b.Key = next
	if err := w.b.Engine.Configure(next, port); err != nil {
		t.Fatal(err)
	}
	w.mustNotPing(w.b, w.a)
	w.set(w.a, w.b.Config())
	time.Sleep(10 * time.Second)
	w.mustPing(w.b, w.a)
	if s := w.stats(w.a); s.ID != w.b.ID || s.Key != next.Public() {
		t.Errorf("the peer is %s with key %s", s.ID, s.Key)
	}
}

func changingKeys(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	old := w.b.Key.Public()
	for range 3 {
		next, err := key.NewNode(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		before := w.b.Key.Public()
		w.b.Key = next
		if err := w.a.Engine.AddRemoteKey(w.b.ID, next.Public()); err != nil {
			t.Fatal(err)
		}
		if err := w.b.Engine.RotateLocalKey(next); err != nil {
			t.Fatal(err)
		}
		// An engine with one key at a time does a new handshake, and two if both ends begin at the same moment.
		time.Sleep(17 * time.Second)
		w.mustPing(w.a, w.b)
		w.mustPing(w.b, w.a)
		if err := w.a.Engine.RemoveRemoteKey(w.b.ID, before); err != nil {
			t.Fatal(err)
		}
		w.mustPing(w.b, w.a)
		if s := w.stats(w.a); s.ID != w.b.ID || s.Key != next.Public() {
			t.Errorf("the peer is %s with key %s", s.ID, s.Key)
		}
		if p, err := w.b.Engine.Port(); err != nil || p != port {
			t.Errorf("port %d, %v", p, err)
		}
	}
	for name, err := range map[string]error{
		"removing the last key":      w.a.Engine.RemoveRemoteKey(w.b.ID, w.b.Key.Public()),
		"adding this node's own key": w.a.Engine.AddRemoteKey(w.b.ID, w.a.Key.Public()),
		"adding no key":              w.a.Engine.AddRemoteKey(w.b.ID, key.NodePublic{}),
		"adding one to nobody":       w.a.Engine.AddRemoteKey(77, old),
		"removing one of nobody":     w.a.Engine.RemoveRemoteKey(77, old),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := w.a.Engine.RemoveRemoteKey(w.b.ID, old); err != nil {
		t.Errorf("removing a key that is not there: %v", err)
	}
	w.mustPing(w.a, w.b)
}

func candidates(t *testing.T, w *world) {
	cfg := w.b.Config()
	cfg.Endpoints = append([]netip.AddrPort{
		netip.MustParseAddrPort("203.0.113.1:9"), netip.MustParseAddrPort("[2001:db8:dead::1]:9"),
	}, cfg.Endpoints...)
	if err := w.a.Engine.RemovePeer(w.b.ID); err != nil {
		t.Fatal(err)
	}
	w.set(w.a, cfg)
	if err := w.a.Ping(w.b.Addrs.V4); err != nil {
		t.Fatal(err)
	}
	if got := w.stats(w.a).Endpoint; got.Port() != port {
		t.Errorf("endpoint %s", got)
	}
}

func largePackets(t *testing.T, w *world) {
	w.b.Stack.Listen(7)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	data := bytes.Repeat([]byte("0123456789"), 139)
	got, err := w.a.Stack.Exchange(ctx, netip.AddrPortFrom(w.b.Addrs.V4, 7), data)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	c, err := w.a.Stack.DialTCP(ctx, netip.AddrPortFrom(w.b.Addrs.V6, 7))
	if err != nil {
		t.Fatal(err)
	}
	if got, err = c.Echo(ctx, data); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func injection(t *testing.T, w *world) {
	got := make(chan sim.Packet, 4)
	w.b.Stack.Watch(func(p sim.Packet) { got <- p })
	w.a.Device.Inject(sim.Echo(w.a.Addrs.V4, w.b.Addrs.V4, 42, 1, nil).Bytes())
	time.Sleep(time.Second)
	select {
	case p := <-got:
		if p.ID != 42 {
			t.Errorf("got %+v", p)
		}
	default:
		t.Error("nothing came")
	}
	w.mustPing(w.a, w.b)
}

func rebinding(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	before := w.stats(w.a).LastHandshake
	if err := w.a.Engine.Rebind(); err != nil {
		t.Fatal(err)
	}
	w.mustPing(w.a, w.b)
	w.mustPing(w.b, w.a)
	if s := w.stats(w.a); !s.LastHandshake.Equal(before) {
		t.Error("a new handshake")
	}
	if p, err := w.a.Engine.Port(); err != nil || p != port {
		t.Errorf("port %d, %v", p, err)
	}
}

func takenPort(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	other, err := w.a.Host.ListenUDP(port + 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.a.Engine.Configure(w.a.Key, port+1); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
	if err := w.a.Engine.Configure(w.a.Key, port); err != nil {
		t.Fatal(err)
	}
	if p, err := w.a.Engine.Port(); err != nil || p != port {
		t.Errorf("port %d, %v", p, err)
	}
	w.mustPing(w.b, w.a)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.a.Engine.Configure(w.a.Key, port+1); err != nil {
		t.Fatal(err)
	}
	w.mustPing(w.a, w.b)
	w.mustPing(w.b, w.a)
}

func takenPortComesFree(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	other, err := w.a.Host.ListenUDP(port + 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.a.Engine.Configure(w.a.Key, port+1); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("error %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.a.Engine.Rebind(); err != nil {
		t.Fatal(err)
	}
	if p, err := w.a.Engine.Port(); err != nil || p != port+1 {
		t.Errorf("port %d, %v", p, err)
	}
	w.mustPing(w.a, w.b)
	w.mustPing(w.b, w.a)
}

func nonsense(t *testing.T, w *world) {
	good := w.b.Config()
	for name, spoil := range map[string]func(*wg.PeerConfig){
		"no id":              func(c *wg.PeerConfig) { c.ID = 0 },
		"no key":             func(c *wg.PeerConfig) { c.Keys = nil },
		"the zero key":       func(c *wg.PeerConfig) { c.Keys = []key.NodePublic{{}} },
		"its own key":        func(c *wg.PeerConfig) { c.Keys = []key.NodePublic{w.a.Key.Public()} },
		"another peer's key": func(c *wg.PeerConfig) { c.ID = 3 },
		"no address":         func(c *wg.PeerConfig) { c.Addrs.V4, c.Addrs.V6 = netip.Addr{}, netip.Addr{} },
		"half a second":      func(c *wg.PeerConfig) { c.Keepalive = time.Second / 2 },
		"no route":           func(c *wg.PeerConfig) { c.Routes = make([]netip.Prefix, 1) },
		"a route of a host":  func(c *wg.PeerConfig) { c.Routes = prefixes("10.1.0.1/16") },
		"a mapped route":     func(c *wg.PeerConfig) { c.Routes = prefixes("::ffff:10.1.0.0/112") },
		"multicast":          func(c *wg.PeerConfig) { c.Endpoints = []netip.AddrPort{netip.MustParseAddrPort("224.0.0.1:1")} },
		"an overlay address": func(c *wg.PeerConfig) { c.Endpoints = []netip.AddrPort{netip.AddrPortFrom(c.Addrs.V4, 1)} },
	} {
		cfg := good
		spoil(&cfg)
		if err := w.a.Engine.SetPeer(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
		w.set(w.a, good)
	}
	if err := w.a.Engine.Probe(77, good.Endpoints); err == nil {
		t.Error("probing nobody: no error")
	}
	time.Sleep(10 * time.Second)
	w.mustPing(w.a, w.b)
}

func closing(t *testing.T, w *world) {
	w.mustPing(w.a, w.b)
	select {
	case <-w.a.Engine.Done():
		t.Fatal("it has ended")
	default:
	}
	for range 2 {
		if err := w.a.Engine.Close(); err != nil {
			t.Fatal(err)
		}
	}
	<-w.a.Engine.Done()
	for name, err := range map[string]error{
		"Configure":       w.a.Engine.Configure(w.a.Key, 1),
		"SetPeer":         w.a.Engine.SetPeer(w.b.Config()),
		"RotateLocalKey":  w.a.Engine.RotateLocalKey(w.a.Key),
		"AddRemoteKey":    w.a.Engine.AddRemoteKey(w.b.ID, w.b.Key.Public()),
		"RemoveRemoteKey": w.a.Engine.RemoveRemoteKey(w.b.ID, w.a.Key.Public()),
		"Probe":           w.a.Engine.Probe(w.b.ID, nil),
		"Rebind":          w.a.Engine.Rebind(),
	} {
		if !errors.Is(err, wg.ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := w.a.Engine.Active(); !errors.Is(err, wg.ErrClosed) {
		t.Errorf("active: %v", err)
	}
	if _, err := w.a.Engine.Stats(); !errors.Is(err, wg.ErrClosed) {
		t.Errorf("stats: %v", err)
	}
	if _, err := w.a.Engine.Peers(); !errors.Is(err, wg.ErrClosed) {
		t.Errorf("Peers after Close: %v", err)
	}
	w.mustNotPing(w.b, w.a)
	// The device ends by itself when its TUN does.
	if err := w.b.TUN.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.b.Engine.Done():
	case <-time.After(time.Second):
		t.Error("without its TUN the engine goes on")
	}
}
