package relayed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent"
	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

const policy = `{"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["*"]}], "tagOwners": {"tag:a": [], "tag:b": [], "tag:c": []}}`

// patience guards against hanging.
const patience = time.Minute

func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// world is a coordinator and what runs beside it.
type world struct {
	t    *testing.T
	co   *coordinator.Coordinator
	stop []func()
}

func listen(t *testing.T) net.Listener {
	return must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
}

func newWorld(t *testing.T) *world {
	t.Helper()
	l := listen(t)
	w := &world{t: t}
	w.co = must[*coordinator.Coordinator](t)(coordinator.New(t.Context(), coordinator.Config{
		Data: t.TempDir(), URLs: []string{"https://" + l.Addr().String()},
	}))
	w.spawn(func(ctx context.Context) error { return w.co.Run(ctx, l) })
	t.Cleanup(func() {
		for i := len(w.stop) - 1; i >= 0; i-- {
			w.stop[i]()
		}
	})
	must[*redoubtv1.ApplyPolicyResponse](t)(w.co.Admin().ApplyPolicy(t.Context(), &redoubtv1.ApplyPolicyRequest{Source: policy}))
	return w
}

// spawn runs f until the world ends or stop is called.
func (w *world) spawn(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			w.t.Error(err)
		}
	})
	w.stop = append(w.stop, stop)
	return stop
}

func (w *world) code(r *redoubtv1.CreateTokenRequest) join.Code {
	w.t.Helper()
	r.TtlSeconds = 3600
	made := must[*redoubtv1.CreateTokenResponse](w.t)(w.co.Admin().CreateToken(w.t.Context(), r))
	return must[join.Code](w.t)(join.Parse(made.GetCode()))
}

// relay starts a relay that also accepts streams.
func (w *world) relay(dir string, code *join.Code) (stop func()) {
	l := listen(w.t)
	cfg := agent.RelayConfig{
		StateDir: dir, Hostname: "carrier", Program: "test", Listener: l, URLs: []string{"https://" + l.Addr().String()},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Dial: new(net.Dialer).DialContext,
	}
	if code != nil {
		cfg.Join = &state.Join{URLs: code.URLs, Root: code.Root, Secret: code.Secret}
	}
	return w.spawn(func(ctx context.Context) error { return agent.RunRelay(ctx, cfg) })
}

// node is a node without a tunnel: it has a netmap, and a client for the relays in it.
type node struct {
	t      *testing.T
	id     proto.NodeID
	client *relay.Client
	inbox  chan string
	relays chan []proto.Relay // of the netmaps received
}

func (w *world) node(tag string) *node {
	w.t.Helper()
	code := w.code(&redoubtv1.CreateTokenRequest{Tags: []string{tag}})
	device := must[key.DevicePrivate](w.t)(key.NewDevice(rand.Reader))
	private := must[key.NodePrivate](w.t)(key.NewNode(rand.Reader))
	n := &node{t: w.t, inbox: make(chan string, 64), relays: make(chan []proto.Relay, 64)}
	var netmap *proto.Netmap
	cfg := control.Config{
		Dial: new(net.Dialer).DialContext, Now: time.Now, Heard: func(time.Time) {}, Rand: mathrand.New(mathrand.NewPCG(1, 2)),
		URLs: code.URLs, Device: device, Program: "test", Hostname: "node", Emit: func(_ context.Context, e machine.Event) {
			switch e := e.(type) {
			case machine.Snapshot:
				netmap = e.Netmap
			case machine.Change:
				next, err := netmap.Apply(e.Delta)
				if err != nil {
					w.t.Error(err)
					return
				}
				netmap = next
			default:
				return
			}
			select {
			case n.relays <- netmap.Relays:
			default:
			}
		},
	}
	self, held, err := control.Enrol(w.t.Context(), cfg, enroll.Request{
		Device: device, Node: private, Token: code.Secret, Root: code.Root, Hostname: "node", Program: "test",
	})
	if err != nil {
		w.t.Fatal(err)
	}
	held.Close()
	n.id = self.Node.ID
	c := control.Attach(cfg, self, proto.Version{}, nil)
	w.stop = append(w.stop, c.Close)
	n.open(w, self, device)
	return n
}

func (n *node) open(w *world, self *identity.Self, device key.DevicePrivate) {
	leaf := must[tls.Certificate](w.t)(cert.TLSCertificate(device, self.Record.Chain[0], self.Record.Chain[1:]...))
	own := func() *tls.Certificate { return &leaf }
	b := bind.New(bind.Config{})
	n.client = relay.New(relay.Config{
		Self: n.id, Certificate: own, Send: b.SendRunTo, Rand: rand.Reader,
		Open: relay.Opener{
			Dial: outward.Dialer{Dial: new(net.Dialer).DialContext}.Open, Certificate: own,
			Verify: func(id proto.NodeID, chain [][]byte) error { return self.Verifier.Relay(chain, id, time.Now()) },
		}.Open,
	})
	b.Serve(silent{}, n.client)
	fns, _, err := b.OpenRuns(0)
	if err != nil {
		w.t.Fatal(err)
	}
	var all sync.WaitGroup
	for _, fn := range fns {
		all.Go(func() {
			buf := make([]byte, bind.RunSize)
			for {
				got, _, _, err := fn(buf)
				if err != nil {
					return
				}
				select {
				case n.inbox <- string(buf[4:got]):
				default:
				}
			}
		})
	}
	w.stop = append(w.stop, func() {
		_ = n.client.Close()
		_ = b.Close()
		all.Wait()
	})
}

type silent struct{}

func (silent) Path(*bind.Endpoint, []byte) {}
func (silent) STUN(netip.AddrPort, []byte) {}

// knows waits until the netmap has count relays, and sets them in the client, with UDP or without.
func (n *node) knows(count int, udp bool, gone ...proto.Relay) []proto.Relay {
	n.t.Helper()
	is := func(r proto.Relay) bool {
		return slices.ContainsFunc(gone, func(g proto.Relay) bool { return slices.Equal(g.URLs, r.URLs) })
	}
	for deadline := time.After(patience); ; {
		select {
		case list := <-n.relays:
			if len(list) != count || slices.ContainsFunc(list, is) {
				continue
			}
			list = append([]proto.Relay(nil), list...)
			for i := range list {
				if !udp {
					list[i].UDPPort = 0
				}
			}
			n.client.SetRelays(list)
			return list
		case <-deadline:
			n.t.Fatalf("the netmap has no %d relays", count)
		}
	}
}

// sends sends until the other node receives it or, if it must not, for a while.
func (n *node) sends(to *node, by proto.NodeID, text string, shall bool) {
	n.t.Helper()
	msg := append([]byte{4, 0, 0, 0}, text...)
	wait := patience
	if !shall {
		wait = 300 * time.Millisecond
	}
	for deadline := time.After(wait); ; {
		if err := n.client.SendRun(msg, len(msg), bind.Via{Relay: by, Peer: to.id}); err != nil && shall {
			n.t.Fatal(err)
		}
		select {
		case got := <-to.inbox:
			if got == text && shall {
				return
			}
			if got == text {
				n.t.Fatalf("%q arrived", text)
			}
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			if shall {
				n.t.Fatalf("%q did not arrive: %+v, %+v", text, n.client.States(), to.client.States())
			}
			return
		}
	}
}

func TestRelayOfItsOwn(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	code := w.code(&redoubtv1.CreateTokenRequest{Relay: true})
	stop := w.relay(dir, &code)
	a, b, c := w.node("tag:a"), w.node("tag:b"), w.node("tag:c")
	list := a.knows(1, true)
	b.knows(1, true)
	id := list[0].ID
	if list[0].Name != "carrier" || id == a.id {
		t.Errorf("%+v", list[0])
	}
	a.sends(b, id, "by UDP", true)
	b.sends(a, id, "and back", true)
	c.client.SetRelays(list) // no rule ties it to anyone, so its netmap lists no relays
	c.sends(b, id, "not permitted", false)

	stop() // it comes back as the same relay, without a code
	w.relay(dir, nil)
	if again := a.knows(1, false, list...); again[0].ID != id {
		t.Errorf("%v, was %v", again[0].ID, id)
	}
	b.knows(1, false, list...)
	a.sends(b, id, "by stream", true)

	must[*redoubtv1.RevokeNodeResponse](t)(w.co.Admin().RevokeNode(t.Context(), &redoubtv1.RevokeNodeRequest{Node: b.id.String()}))
	for deadline := time.After(patience); ; {
		if _, ok := b.client.Home(); !ok || b.client.States()[0].Transport == relay.None {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("the revoked node is not cut off: %+v", b.client.States())
		case <-time.After(10 * time.Millisecond):
		}
	}
	a.sends(b, id, "revoked", false)
}

// TestRolesAreApart checks that a node's join code does not make a relay, and that a relay cannot have tags.
func TestRolesAreApart(t *testing.T) {
	w := newWorld(t)
	code := w.code(&redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
	err := agent.RunRelay(t.Context(), agent.RelayConfig{
		StateDir: t.TempDir(), Hostname: "x", Join: &state.Join{URLs: code.URLs, Root: code.Root, Secret: code.Secret}, Dial: new(net.Dialer).DialContext,
	})
	if err == nil {
		t.Error("a node's code makes a relay")
	}
	if _, err := w.co.Admin().CreateToken(t.Context(), &redoubtv1.CreateTokenRequest{Relay: true, Tags: []string{"tag:a"}, TtlSeconds: 3600}); err == nil {
		t.Error("a relay has a tag")
	}
}
