package machine

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
)

// The default routes, and a part of the Internet.
var (
	all4, all6 = state.Everything4, state.Everything6
	someOfIt   = netip.MustParsePrefix("8.0.0.0/7")
)

// leading is a routed world that knows the last configuration of the host's network.
type leading struct {
	*routed
	led   Beyond
	offer []netip.Prefix
}

func newLeading(t fataler, r state.Routing) *leading {
	l := &leading{routed: &routed{world: enrolled(t), serves: map[proto.NodeID][]netip.Prefix{}}}
	l.disk.Self = l.mesh.Self(l.self, 1, noon, 24*hour)
	l.disk.Wanted.Routing = r
	for n := uint16(2); n <= 4; n++ {
		l.routers = append(l.routers, l.mesh.Machine(n, string(rune('a'+n))))
	}
	l.restart()
	return l
}

func (l *leading) restart() {
	l.led = Beyond{}
	l.boot()
	l.look()
	l.step(Connected{})
	l.look()
}

// look records what the last step asked for.
func (l *leading) look() {
	l.t.Helper()
	for _, e := range l.effects {
		switch e := e.(type) {
		case StartPath:
			l.led = e.Beyond
			if l.m.wanted.Routing.Exit != "" && !e.Beyond.Exit.On {
				l.t.Errorf("the path is started with the way out open")
			}
		case Lead:
			l.led = e.Beyond
		case Offer:
			l.offer = e.Routes
		}
	}
}

// rules publishes a netmap in which rules of this node name the given local prefixes.
func (l *leading) rules(local ...netip.Prefix) {
	l.t.Helper()
	l.version++
	var peers []proto.Peer
	for _, m := range l.routers {
		p := l.peer(m, 1, 24*hour)
		p.Routes = l.serves[m.ID]
		peers = append(peers, p)
	}
	nm := l.netmap(l.version, hour, peers...)
	if len(local) > 0 {
		slices.SortFunc(local, proto.ComparePrefix)
		nm.Rules = append(nm.Rules, proto.Rule{
			Key: "routes", Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: proto.In,
			Peers: proto.Selector{Prefixes: []netip.Prefix{nm.Mesh.V4}}, Local: local,
			Services: []proto.Service{{Proto: proto.ProtoTCP, First: 22, Last: 22}},
		})
	}
	l.step(Snapshot{nm})
	l.look()
}

func (l *leading) up(r state.Routing) {
	l.t.Helper()
	e := Up{Routing: &r}
	if err := l.m.Check(e); err != nil {
		l.t.Fatalf("%+v is refused: %v", r, err)
	}
	l.step(e)
	l.look()
}

func (l *leading) wantLed(want Beyond) {
	l.t.Helper()
	if !l.led.equal(want) {
		l.t.Errorf("the host's network leads %+v, want %+v", l.led, want)
	}
}

func TestLeadsWhatIsWanted(t *testing.T) {
	l := newLeading(t, state.Routing{})
	a, b := l.routers[0], l.routers[1]
	l.serves[a.ID] = []netip.Prefix{all4, office, all6}
	slices.SortFunc(l.serves[a.ID], proto.ComparePrefix)
	l.serves[b.ID] = []netip.Prefix{all4, lab}
	l.rules()
	l.wantLed(Beyond{})
	if len(l.routeOwner) != 0 {
		t.Errorf("the engine takes %v, and nobody asked for them", l.routeOwner)
	}
	l.up(state.Routing{Accept: true})
	l.wantLed(Beyond{Routes: []netip.Prefix{office, lab}})
	l.up(state.Routing{Accept: true, Advertise: []netip.Prefix{lab}})
	l.wantLed(Beyond{Routes: []netip.Prefix{office}}) // a network that this node serves itself is not routed to others
	nameB := b.Identity().Name
	l.up(state.Routing{Exit: nameB})
	l.wantLed(Beyond{Exit: Exit{On: true, V4: true}})
	if l.routeOwner[all4] != b.ID || len(l.routeOwner) != 1 {
		t.Errorf("the engine takes %v", l.routeOwner)
	}
	l.up(state.Routing{Exit: a.Identity().Addrs.V6.String(), ExitLAN: true})
	l.wantLed(Beyond{Exit: Exit{On: true, V4: true, V6: true, LAN: true}})
	l.restart()
	l.wantLed(Beyond{Exit: Exit{On: true, V4: true, V6: true, LAN: true}})

	// Without the exit node the default route is blocked, at once and after a restart, and the status says so.
	l.serves[a.ID] = nil
	for range 2 {
		l.rules()
		l.wantLed(Beyond{Exit: Exit{On: true, LAN: true}})
		if text := strings.Join(l.m.View(l.now).Problems, "\n"); !strings.Contains(text, "is not reachable") {
			t.Errorf("problems: %q", text)
		}
		l.restart()
	}
	l.up(state.Routing{})
	l.wantLed(Beyond{})
}

func TestServesWhatRulesAreAbout(t *testing.T) {
	wide := netip.MustParsePrefix("10.0.0.0/8")
	l := newLeading(t, state.Routing{Advertise: []netip.Prefix{wide, office, lab}})
	if !slices.Equal(l.offer, []netip.Prefix{wide, office, lab}) {
		t.Errorf("offers %v", l.offer)
	}
	l.rules()
	l.wantLed(Beyond{})
	host := netip.PrefixFrom(inside[lab], 32)
	for _, c := range []struct{ local, want []netip.Prefix }{
		{[]netip.Prefix{office}, []netip.Prefix{office}},
		{[]netip.Prefix{host}, []netip.Prefix{lab}}, // the narrowest: the others need not be approved
		{[]netip.Prefix{office, host}, []netip.Prefix{office}},
		{[]netip.Prefix{wide, office}, []netip.Prefix{wide}},
		{[]netip.Prefix{someOfIt}, nil}, // not offered
		{[]netip.Prefix{netip.PrefixFrom(l.self.Identity().Addrs.V4, 32)}, nil},
		{nil, nil},
	} {
		l.rules(c.local...)
		l.wantLed(Beyond{Serves: c.want})
	}
	l.rules(office, someOfIt)
	l.up(state.Routing{Advertise: []netip.Prefix{office}, AdvertiseExit: true, PlainSource: true})
	l.wantLed(Beyond{Serves: []netip.Prefix{someOfIt, office}, PlainSource: true})
	if !slices.Equal(l.offer, []netip.Prefix{all4, office, all6}) {
		t.Errorf("offers %v", l.offer)
	}
	var served []netip.Prefix
	for _, o := range l.m.View(l.now).Routing.Offered {
		if o.Served {
			served = append(served, o.Prefix)
		}
	}
	if !slices.Equal(served, []netip.Prefix{all4, office}) {
		t.Errorf("the status says that %v are served", served)
	}
	// More parts than the host's network should know become the whole Internet.
	var many []netip.Prefix
	for i := range maxParts + 1 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{8, 8, byte(i >> 8), byte(i)}), 32))
	}
	l.version++
	nm := l.netmap(l.version, hour)
	for i := range many {
		nm.Rules = append(nm.Rules, proto.Rule{
			Key: "routes/" + string(rune('a'+i%26)) + many[i].String(), Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: proto.In,
			Peers: proto.Selector{Prefixes: []netip.Prefix{nm.Mesh.V4}}, Local: many[i : i+1],
			Services: []proto.Service{{Proto: proto.ProtoTCP, First: 22, Last: 22}},
		})
	}
	slices.SortFunc(nm.Rules, func(a, b proto.Rule) int { return strings.Compare(a.Key, b.Key) })
	l.step(Snapshot{nm})
	l.look()
	l.wantLed(Beyond{Serves: []netip.Prefix{all4}, PlainSource: true})
}

// TestRoutingIsCheckedFirst checks that impossible settings are refused, and change nothing.
func TestRoutingIsCheckedFirst(t *testing.T) {
	l := newLeading(t, state.Routing{})
	a := l.routers[0]
	l.rules()
	mesh := l.disk.Self.Record.Mesh
	for says, r := range map[string]state.Routing{
		"did you mean 10.33.0.0/16": {Advertise: []netip.Prefix{netip.MustParsePrefix("10.33.1.1/16")}},
		"--advertise-exit-node":     {Advertise: []netip.Prefix{all4}},
		"the mesh's own addresses":  {Advertise: []netip.Prefix{office, mesh.V4}},
		"want a network":            {Advertise: make([]netip.Prefix, 1)},
		"cannot be routed":          {Advertise: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		"cannot be an exit node":    {AdvertiseExit: true, Exit: "a"},
		"give one":                  {ExitLAN: true},
		"is not valid":              {Exit: "a\nb"},
		"is not a node":             {Exit: "nobody"},
		"its own exit node":         {Exit: l.self.Identity().Name},
		"is not an exit node":       {Exit: a.Identity().Name},
		"at most 256": {Advertise: func() (many []netip.Prefix) {
			for i := range 300 {
				many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
			}
			return many
		}()},
	} {
		if err := l.m.Check(Up{Routing: &r}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", r, err, says)
		}
	}
	// While the mesh is not known, its own addresses cannot be excluded; that happens later.
	l.disk.Wanted.Routing = state.Routing{Advertise: []netip.Prefix{office, mesh.V4}}
	l.restart()
	if !slices.Equal(l.offer, []netip.Prefix{office}) {
		t.Errorf("offers %v", l.offer)
	}
	if text := strings.Join(l.m.View(l.now).Problems, "\n"); !strings.Contains(text, mesh.V4.String()) {
		t.Errorf("problems: %q", text)
	}
}

// TestLeadsWhatTheEngineTakes checks that, whatever changes, the host's network routes into the tunnel exactly those
// networks that the engine sends somewhere, and that a default route goes only to the exit node.
func TestLeadsWhatTheEngineTakes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLeading(t, state.Routing{})
		names := []string{""}
		for _, m := range l.routers {
			names = append(names, m.Identity().Name)
		}
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0:
				r := state.Routing{
					Accept: rapid.Bool().Draw(t, "accept"), Exit: rapid.SampledFrom(names).Draw(t, "exit"),
					Advertise: rapid.SampledFrom([][]netip.Prefix{nil, {lab}, {office, lab}}).Draw(t, "advertise"),
				}
				if l.m.Check(Up{Routing: &r}) == nil {
					l.up(r)
				}
			case 1:
				l.restart()
			case 2:
				l.step(PathDown{Reason: "test"})
				l.look()
				l.wait(2 * retryPath)
				l.look()
			default:
				for _, m := range l.routers {
					l.serves[m.ID] = nil
					for _, p := range []netip.Prefix{all4, office, lab, all6} {
						if rapid.Bool().Draw(t, "serves") {
							l.serves[m.ID] = append(l.serves[m.ID], p)
						}
					}
				}
				l.rules(rapid.SampledFrom([][]netip.Prefix{nil, {office}, {lab}, {office, lab}}).Draw(t, "local")...)
			}
			l.holds()
		}
	})
}

func (l *leading) holds() {
	l.t.Helper()
	want, r := Beyond{Serves: l.led.Serves}, l.m.wanted.Routing
	want.Exit.On = r.Exit != ""
	for p, id := range l.routeOwner {
		switch {
		case p.Bits() > 0 && (!r.Accept || slices.Contains(r.Advertise, p)):
			l.t.Fatalf("the engine takes %v for %v, which nobody wants", p, id)
		case p.Bits() == 0 && l.nameOf(id) != r.Exit:
			l.t.Fatalf("the engine takes %v for %v, and the exit node is %q", p, id, r.Exit)
		case p == all4:
			want.Exit.V4 = true
		case p == all6:
			want.Exit.V6 = true
		default:
			want.Routes = append(want.Routes, p)
		}
	}
	slices.SortFunc(want.Routes, proto.ComparePrefix)
	l.wantLed(want)
	for _, p := range l.led.Serves {
		if !slices.Contains(r.Advertise, p) {
			l.t.Fatalf("%v is served, and not offered", p)
		}
	}
}

func (l *leading) nameOf(id proto.NodeID) string {
	at := slices.IndexFunc(l.routers, func(m *identitytest.Machine) bool { return m.ID == id })
	return l.routers[at].Identity().Name
}
