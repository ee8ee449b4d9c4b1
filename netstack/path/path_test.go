package path_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
)

var bounds = path.Bounds{Overlay: []netip.Prefix{
	netip.MustParsePrefix("100.64.0.0/16"), netip.MustParsePrefix("fd00:1::/48"),
}}

var local = []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func endpoints(kind proto.EndpointKind, addrs ...string) []proto.Endpoint {
	var out []proto.Endpoint
	for _, a := range addrs {
		out = append(out, proto.Endpoint{Addr: at(a), Kind: kind})
	}
	return out
}

func addrs(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range list {
		out = append(out, at(a))
	}
	return out
}

var compare = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

func TestCheck(t *testing.T) {
	for text, good := range map[string]bool{
		"192.0.2.1:1": true, "[2001:db8::1]:1": true, "10.0.0.1:65535": true, "100.65.0.1:1": true,
		"192.0.2.1:0": false, "0.0.0.0:1": false, "[::]:1": false, "224.0.0.1:1": false, "[ff02::1]:1": false,
		"169.254.0.1:1": false, "[fe80::1]:1": false, "255.255.255.255:1": false, "127.0.0.1:1": false, "[::1]:1": false,
		"100.64.9.9:1": false, "[fd00:1::9]:1": false, "[::ffff:192.0.2.1]:1": false,
	} {
		if err := bounds.Check(at(text)); (err == nil) != good || (err != nil && !errors.Is(err, path.ErrCandidate)) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := bounds.Check(netip.AddrPort{}); err == nil {
		t.Error("the zero address: no error")
	}
	onOneMachine := path.Bounds{Loopback: true}
	if err := onOneMachine.Check(at("127.0.0.1:1")); err != nil {
		t.Error(err)
	}
}

func TestOrder(t *testing.T) {
	list := endpoints(proto.EndpointInterface,
		"10.9.9.9:1", "[2001:db8::1]:1", "192.0.2.1:1", "192.168.1.7:1", "192.168.1.7:1", "127.0.0.1:1", "100.64.0.9:1")
	list = append(list, endpoints(proto.EndpointObserved, "198.51.100.1:1", "[::ffff:192.0.2.1]:1")...)
	got := bounds.Candidates(local, list)
	want := addrs("192.168.1.7:1", "192.0.2.1:1", "[2001:db8::1]:1", "198.51.100.1:1", "10.9.9.9:1")
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Error(d)
	}
	var many []proto.Endpoint
	for n := range 40 {
		many = append(many, proto.Endpoint{Addr: at(fmt.Sprintf("192.0.2.%d:1", n+1))})
	}
	if got := bounds.Candidates(nil, many); len(got) != path.MaxCandidates {
		t.Errorf("%d candidates", len(got))
	}
}

// lab runs a State through time.
type lab struct {
	t     *testing.T
	state *path.State
	now   time.Time
}

func newLab(t *testing.T) *lab {
	return &lab{t, path.New(bounds, local), time.Unix(1_000_000, 0)}
}

func (l *lab) step(after time.Duration, e path.Event, want ...path.Effect) {
	l.t.Helper()
	l.now = l.now.Add(after)
	if d := cmp.Diff(want, l.state.Step(l.now, e), compare); d != "" {
		l.t.Errorf("%#v:\n%s", e, d)
	}
}

const peer = proto.NodeID(7)

func known(addrs ...string) path.Known {
	return path.Known{ID: peer, Endpoints: endpoints(proto.EndpointInterface, addrs...)}
}

func point(now bool, list ...string) path.Point {
	return path.Point{ID: peer, Candidates: addrs(list...), Now: now}
}

func seen(endpoint string, rx, tx uint64) path.Seen {
	s := path.Seen{ID: peer, Rx: rx, Tx: tx}
	if endpoint != "" {
		s.Endpoint = at(endpoint)
	}
	return s
}

func TestNewPeer(t *testing.T) {
	l := newLab(t)
	l.step(0, known("192.0.2.1:1", "192.168.1.5:1"), point(false, "192.168.1.5:1", "192.0.2.1:1"))
	l.step(0, known("192.168.1.5:1", "192.0.2.1:1")) // the same in another order
	if d := cmp.Diff(addrs("192.168.1.5:1", "192.0.2.1:1"), l.state.Candidates(peer), compare); d != "" {
		t.Error(d)
	}
	l.step(0, seen("192.0.2.1:1", 5, 5))
	if d := cmp.Diff(addrs("192.0.2.1:1", "192.168.1.5:1"), l.state.Candidates(peer), compare); d != "" {
		t.Errorf("with one in use:\n%s", d)
	}
	l.step(0, known())
	l.step(0, path.Gone{ID: peer})
	l.step(0, seen("192.0.2.1:1", 1, 1)) // of an unknown peer
	if got := l.state.Candidates(peer); got != nil {
		t.Errorf("candidates of nobody: %s", got)
	}
}

func TestEndpointsChange(t *testing.T) {
	l := newLab(t)
	l.step(0, known("192.0.2.1:1"), point(false, "192.0.2.1:1"))
	l.step(time.Second, known("192.0.2.2:1"), point(false, "192.0.2.2:1"))
	l.step(time.Second, seen("192.0.2.2:1", 100, 100))
	l.step(time.Second, known("192.0.2.2:1", "192.0.2.3:1")) // the endpoint in use is still listed
	l.step(time.Second, known("192.0.2.4:1"), point(true, "192.0.2.2:1", "192.0.2.4:1"))
}

func TestEndpointsComeWhileAHandshakeWaits(t *testing.T) {
	l := newLab(t)
	l.step(0, known("192.0.2.1:1"), point(false, "192.0.2.1:1"))
	l.step(time.Second, seen("", 0, 148))
	l.step(time.Second, known("192.0.2.2:1"), point(true, "192.0.2.2:1"))
}

func TestSilence(t *testing.T) {
	l := newLab(t)
	all := point(true, "192.0.2.2:1", "192.0.2.1:1")
	l.step(0, known("192.0.2.1:1", "192.0.2.2:1"), point(false, "192.0.2.1:1", "192.0.2.2:1"))
	l.step(time.Second, seen("192.0.2.2:1", 500, 500))
	l.step(5*time.Second, seen("192.0.2.2:1", 500, 532))  // a keepalive is never answered
	l.step(60*time.Second, seen("192.0.2.2:1", 500, 532)) // idle
	l.step(5*time.Second, seen("192.0.2.2:1", 500, 700))
	l.step(10*time.Second, seen("192.0.2.2:1", 500, 900))
	l.step(time.Second, seen("192.0.2.2:1", 500, 1000), all)
	l.step(4*time.Second, seen("192.0.2.2:1", 500, 1200))
	l.step(time.Second, seen("192.0.2.2:1", 500, 1400), all)
	l.step(9*time.Second, seen("192.0.2.2:1", 500, 1600)) // at growing intervals
	l.step(time.Second, seen("192.0.2.2:1", 500, 1800), all)
	l.step(100*time.Second, seen("192.0.2.2:1", 500, 1832)) // only our own keepalive was sent
	l.step(time.Second, seen("192.0.2.1:1", 600, 2000))     // found
	l.step(11*time.Second, seen("192.0.2.1:1", 600, 2200))
	l.step(time.Second, seen("192.0.2.1:1", 700, 2400))
	l.step(time.Minute, seen("192.0.2.1:1", 700, 2400))
}

func TestMoving(t *testing.T) {
	l := newLab(t)
	l.step(0, known("192.0.2.1:1", "10.1.1.1:1"), point(false, "192.0.2.1:1", "10.1.1.1:1"))
	away := path.Moved{Local: []netip.Prefix{netip.MustParsePrefix("10.1.1.0/24")}}
	l.step(0, away, point(false, "10.1.1.1:1", "192.0.2.1:1")) // no session to save
	l.step(time.Second, seen("192.0.2.1:1", 10, 10))
	l.step(time.Second, path.Moved{Local: local}, point(true, "192.0.2.1:1", "10.1.1.1:1"))
	l.step(time.Hour, path.Moved{Local: local}, point(false, "192.0.2.1:1", "10.1.1.1:1"))
}

// Whatever happens, effects concern existing peers, and name usable addresses, each once.
func TestEffectsAreSane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := path.New(bounds, local)
		now := time.Unix(0, 0)
		exists := map[proto.NodeID]bool{}
		anyAddr := rapid.Custom(func(t *rapid.T) netip.AddrPort {
			b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")
			return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), rapid.Uint16().Draw(t, "port"))
		})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "seconds")) * time.Second)
			id := proto.NodeID(rapid.IntRange(1, 3).Draw(t, "id"))
			var e path.Event
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 0:
				k := path.Known{ID: id}
				for _, a := range rapid.SliceOfN(anyAddr, 0, 30).Draw(t, "endpoints") {
					k.Endpoints = append(k.Endpoints, proto.Endpoint{Addr: a, Kind: proto.EndpointInterface})
				}
				e, exists[id] = k, true
			case 1:
				e, exists[id] = path.Gone{ID: id}, false
			case 2:
				e = path.Seen{ID: id, Endpoint: anyAddr.Draw(t, "endpoint"), Rx: rapid.Uint64().Draw(t, "rx"), Tx: rapid.Uint64().Draw(t, "tx")}
			case 3:
				e = path.Moved{}
			}
			for _, f := range s.Step(now, e) {
				p := f.(path.Point)
				if !exists[p.ID] || len(p.Candidates) == 0 || len(p.Candidates) > path.MaxCandidates {
					t.Fatalf("%#v gave %#v", e, p)
				}
				once := map[netip.AddrPort]bool{}
				for _, a := range p.Candidates {
					if once[a] || bounds.Check(a) != nil {
						t.Fatalf("%s in %#v", a, p)
					}
					once[a] = true
				}
			}
		}
	})
}
