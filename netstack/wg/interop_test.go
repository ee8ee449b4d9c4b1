package wg_test

import (
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
	"github.com/redoubt-mesh/redoubt/proto"
)

// mixed gives the first node one engine and the second another.
func mixed(first, second wgtest.Make) wgtest.Make {
	return func(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
		if self == 1 {
			return first(self, d, b, log)
		}
		return second(self, d, b, log)
	}
}

func TestInlineAgainstReference(t *testing.T) { wgtest.Contract(t, mixed(inline, reference)) }

func TestInlineSuperAgainstReference(t *testing.T) { wgtest.Contract(t, mixed(super, reference)) }

func TestReferenceAgainstInline(t *testing.T) { wgtest.Contract(t, mixed(reference, inline)) }

// TestTenMinutes checks traffic between the two engines: begun by the first node or the second, with or without a pre-shared
// key, in one direction or both.
func TestTenMinutes(t *testing.T) {
	for name, c := range map[string]struct {
		first, second wgtest.Make
		psk           [32]byte
		both          bool
	}{
		"inline begins":                           {first: inline, second: reference},
		"reference begins":                        {first: reference, second: inline},
		"inline begins, pre-shared key":           {first: inline, second: reference, psk: [32]byte{1}},
		"reference begins, pre-shared key":        {first: reference, second: inline, psk: [32]byte{1}},
		"both begin":                              {first: inline, second: reference, both: true},
		"both begin, the other has the higher id": {first: reference, second: inline, psk: [32]byte{2}, both: true},
		"inline on both sides":                    {first: inline, second: inline, both: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, end := pairOf(t, c.first, c.second, 5*time.Millisecond, prompt)
				defer end()
				for _, x := range [][2]*counted{{a, b}, {b, a}} {
					cfg := x[1].Config()
					cfg.PSK = c.psk
					if err := x[0].Engine.SetPeer(cfg); err != nil {
						t.Fatal(err)
					}
				}
				handshakes := map[time.Time]bool{}
				for until := time.Now().Add(10 * time.Minute); time.Now().Before(until); time.Sleep(250 * time.Millisecond) {
					a.send(t, b, 200)
					if c.both {
						b.send(t, a, 600)
					}
					stats, err := a.Engine.Peers()
					if err != nil {
						t.Fatal(err)
					}
					handshakes[stats[0].LastHandshake] = true
				}
				time.Sleep(10 * time.Second)
				for _, x := range [][2]*counted{{a, b}, {b, a}} {
					if missing, doubled := x[1].lost(x[0]); missing+doubled > 0 {
						t.Errorf("of %d packets %d were lost and %d doubled", x[0].sent, missing, doubled)
					}
				}
				// The first entry is from before the first handshake.
				if n := len(handshakes) - 1; n < 4 || n > 7 {
					t.Errorf("%d handshakes, want one every two minutes", n)
				}
			})
		})
	}
	runtime.GC()
}

// brief is the inline engine with sessions that are renewed after 50 messages.
func brief(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
	e := wg.NewInline(self, d, b, log)
	e.Limit(session.Limits{Rekey: 50, Reject: 100})
	return e
}

// TestRekeyByCount checks that sessions are renewed early for their message count, whichever end began them.
func TestRekeyByCount(t *testing.T) {
	for name, c := range map[string]struct {
		first, second wgtest.Make
		swap          bool
	}{
		"ours begins":                     {first: brief, second: reference},
		"theirs begins":                   {first: reference, second: brief},
		"ours begins, with the higher id": {first: reference, second: brief, swap: true},
		"both ours":                       {first: brief, second: brief},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b, end := pairOf(t, c.first, c.second, 5*time.Millisecond, prompt)
				defer end()
				if c.swap {
					a, b = b, a
				}
				for range 500 {
					a.send(t, b, 200)
					b.send(t, a, 600)
					time.Sleep(200 * time.Millisecond)
				}
				time.Sleep(time.Second)
				for _, x := range [][2]*counted{{a, b}, {b, a}} {
					if missing, doubled := x[1].lost(x[0]); missing+doubled > 0 {
						t.Errorf("of %d packets %d were lost and %d doubled", x[0].sent, missing, doubled)
					}
					if _, ours := x[0].Engine.(*wg.Inline); !ours {
						continue
					}
					if s, err := x[0].Engine.Peer(x[1].ID); err != nil || s.Handshakes < 9 || s.Handshakes > 11 {
						t.Errorf("%d handshakes for 500 packets, %v", s.Handshakes, err)
					}
				}
			})
		})
	}
	runtime.GC()
}

// pairings are the engines of the two nodes.
var pairings = map[string][2]wgtest.Make{
	"reference": {reference, reference}, "inline": {inline, inline}, "mixed": {inline, reference}, "mixed too": {reference, inline},
}

// TestSameDeliveries sends the same schedule of packets and pauses through pairs of engines. A packet's size decides whether it
// is lost, duplicated or delayed, so all pairs must deliver the same: every packet that was not lost, once.
func TestSameDeliveries(t *testing.T) {
	for name, engines := range pairings {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				synctest.Test(t, func(t *testing.T) {
					a, b := schedule(t, engines, seed, 6, prompt)
					a.compare(t, b)
					b.compare(t, a)
				})
			}
		})
	}
	runtime.GC()
}

// TestSameDeliveriesOverBadHandshakes does the same while handshakes are lost, duplicated and delayed as well. Packets waiting
// for one then wait longer, and are not lost; except that the reference as a sender sometimes loses a packet when it is busy
// with a handshake of its own and one of the peer's at once.
func TestSameDeliveriesOverBadHandshakes(t *testing.T) {
	for name, engines := range pairings {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(6) {
				synctest.Test(t, func(t *testing.T) {
					r := rand.New(rand.NewPCG(seed, 7))
					var mu sync.Mutex
					// One at a time: more would overflow the packets that may wait for a peer, which the engines limit
					// differently.
					a, b := schedule(t, engines, 100+seed, 1, func(int, []byte) []time.Duration {
						mu.Lock()
						defer mu.Unlock()
						return fate(r, 2*time.Second, 3)
					})
					for _, x := range [][2]*planned{{a, b}, {b, a}} {
						if _, ours := x[0].Engine.(*wg.Inline); ours {
							x[0].compare(t, x[1])
						} else if missing, wrong := x[0].against(x[1]); missing > 2 || wrong > 0 {
							t.Errorf("the reference lost %d packets, and %d came otherwise than they should", missing, wrong)
						}
					}
				})
			}
		})
	}
	runtime.GC()
}

// fate returns when the copies of a message are sent: none in lost of ten cases.
func fate(r *rand.Rand, most time.Duration, lost int) []time.Duration {
	late := time.Duration(r.Int64N(int64(most)))
	switch n := r.IntN(10); {
	case n < lost:
		return nil
	case n == lost:
		return []time.Duration{0, late}
	case n <= lost+2:
		return []time.Duration{late}
	}
	return []time.Duration{0}
}

// planned is a node whose packets have a fate by their size.
type planned struct {
	*counted
	fates map[int][]time.Duration // by message size
	sizes []int                   // of the messages of all packets
}

func newPlan(seed uint64, number int) *planned {
	p := &planned{fates: map[int][]time.Duration{}}
	r := rand.New(rand.NewPCG(seed, uint64(number)))
	for size := 48; size < 1500; size += 16 {
		p.fates[size] = fate(r, 300*time.Millisecond, 2)
	}
	return p
}

// say sends a packet of the given size.
func (p *planned) say(t *testing.T, to *planned, size int) {
	t.Helper()
	p.sizes = append(p.sizes, session.Padded(size, tun.DefaultMTU)+noise.Overhead)
	p.send(t, to.counted, size)
}

// against returns how many of the packets did not arrive although they should, and how many arrived although they should not,
// or more than once.
func (p *planned) against(to *planned) (missing, wrong int) {
	to.mu.Lock()
	defer to.mu.Unlock()
	for n, size := range p.sizes {
		if size == plainSize {
			continue
		}
		want := min(len(p.fates[size]), 1)
		switch got := to.got[uint64(n)]; {
		case got < want:
			missing++
		case got > want:
			wrong++
		}
	}
	return missing, wrong
}

func (p *planned) compare(t *testing.T, to *planned) {
	t.Helper()
	if missing, wrong := p.against(to); missing+wrong > 0 {
		t.Errorf("of %d packets of node %d %d did not come, and %d came that should not", len(p.sizes), p.ID, missing, wrong)
	}
}

// schedule runs a random schedule of packets and pauses, with bursts of up to most packets. Handshakes have a fate of their
// own.
func schedule(t *testing.T, engines [2]wgtest.Make, seed uint64, most int, handshakes func(int, []byte) []time.Duration) (a, b *planned) {
	t.Helper()
	a, b = newPlan(seed, 0), newPlan(seed, 1)
	var end func()
	a.counted, b.counted, end = pairOf(t, engines[0], engines[1], 20*time.Millisecond, func(from int, msg []byte) []time.Duration {
		if isData(msg) {
			return []*planned{a, b}[from].fates[len(msg)]
		}
		return handshakes(from, msg)
	})
	r := rand.New(rand.NewPCG(seed, 99))
	for range 300 {
		from, to := a, b
		if r.IntN(2) == 0 {
			from, to = b, a
		}
		for range 1 + r.IntN(most) {
			from.say(t, to, 40+r.IntN(1300))
		}
		switch r.IntN(40) {
		case 0:
			time.Sleep(time.Duration(r.Int64N(int64(10 * time.Minute))))
		case 1, 2, 3:
			time.Sleep(time.Duration(r.Int64N(int64(time.Minute))))
		default:
			time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
		}
	}
	time.Sleep(2 * time.Minute)
	end()
	return a, b
}
