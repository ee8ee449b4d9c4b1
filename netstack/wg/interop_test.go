package wg_test

import (
	"log/slog"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
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

// TestTenMinutes is traffic between both engines: who begins is the first node or the second, with a pre-shared key or
// without, by one side only or both ways.
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
				// The first look is before the first handshake.
				if n := len(handshakes) - 1; n < 4 || n > 7 {
					t.Errorf("%d handshakes, want one every two minutes", n)
				}
			})
		})
	}
	runtime.GC()
}

// TestSameDeliveries sends the same schedule of packets and pauses through pairs of engines. What is lost, doubled and late
// of them is told by their number, so all pairs must deliver the same: what was not lost, once.
func TestSameDeliveries(t *testing.T) {
	for name, make := range map[string][2]wgtest.Make{
		"reference": {reference, reference}, "inline": {inline, inline}, "mixed": {inline, reference}, "mixed too": {reference, inline},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				synctest.Test(t, func(t *testing.T) { schedule(t, make, seed) })
			}
		})
	}
	runtime.GC()
}

func schedule(t *testing.T, make [2]wgtest.Make, seed uint64) {
	var rnd [2]*rand.Rand
	var number [2]uint64
	lost := [2]map[uint64]bool{{}, {}}
	for i := range rnd {
		rnd[i] = rand.New(rand.NewPCG(seed, uint64(i)))
	}
	a, b, end := pairOf(t, make[0], make[1], 20*time.Millisecond, func(from int, msg []byte) []time.Duration {
		if !isData(msg) {
			return []time.Duration{0}
		}
		r, n := rnd[from], number[from]
		number[from]++
		late := time.Duration(r.Int64N(int64(300 * time.Millisecond)))
		switch r.IntN(10) {
		case 0, 1:
			lost[from][n] = true
			return nil
		case 2:
			return []time.Duration{0, late}
		case 3, 4:
			return []time.Duration{late}
		}
		return []time.Duration{0}
	})
	defer end()
	r := rand.New(rand.NewPCG(seed, 99))
	for range 300 {
		from, to := a, b
		if r.IntN(2) == 0 {
			from, to = b, a
		}
		for range 1 + r.IntN(6) {
			from.send(t, to, 40+r.IntN(1300))
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
	time.Sleep(10 * time.Second)
	for i, x := range [][2]*counted{{a, b}, {b, a}} {
		from, to := x[0], x[1]
		to.mu.Lock()
		for n := range from.sent {
			want := 1
			if lost[i][n] {
				want = 0
			}
			if to.got[n] != want {
				t.Errorf("seed %d: packet %d of node %d came %d times, want %d", seed, n, i+1, to.got[n], want)
			}
		}
		to.mu.Unlock()
	}
}
