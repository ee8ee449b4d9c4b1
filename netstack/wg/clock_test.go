package wg_test

import (
	"fmt"
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

// watch is the clock of a node; it can be set forward, and the node can be suspended.
type watch struct {
	mu     sync.Mutex
	ahead  time.Duration // of the simulation's clock
	asleep bool
	still  time.Time // the time it shows while it is stopped; zero if it runs
	engine *wg.Inline
}

// make returns the inline engine with this clock.
func (w *watch) make(self proto.NodeID, d tun.Device, b conn.Bind, log *slog.Logger) wg.Engine {
	w.engine = wg.NewInlineBy(w.now, self, d, b, log)
	return w.engine
}

func (w *watch) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.still.IsZero() {
		return w.still
	}
	return time.Now().Add(w.ahead)
}

func (w *watch) suspended() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asleep
}

// set sets the clock forward.
func (w *watch) set(d time.Duration) {
	w.mu.Lock()
	w.ahead += d
	w.mu.Unlock()
	w.engine.ClockJumped()
}

// suspend suspends the node for d. Its clock keeps running meanwhile if counts is set.
func (w *watch) suspend(d time.Duration, counts bool) {
	now := w.now()
	w.mu.Lock()
	w.asleep, w.still = true, now
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	w.asleep, w.still = false, time.Time{}
	if !counts {
		w.ahead -= d
	}
	w.mu.Unlock()
	w.engine.ClockJumped()
}

// plainSize is the size of packets sent to detect that a session is gone; they are not lost on the way.
const plainSize = 1400

// recover has one end send to the other after a jump, then both, until everything from before is over by either clock.
func (p *planned) recover(t *testing.T, to *planned) {
	t.Helper()
	for n := range session.RejectAfterTime/time.Second + 20 {
		for _, x := range [][2]*planned{{p, to}, {to, p}} {
			if x[0] == to && n < 60 {
				continue
			}
			x[0].sizes = append(x[0].sizes, plainSize)
			x[0].send(t, x[1].counted, plainSize)
		}
		time.Sleep(time.Second)
	}
}

// recovered returns how many of those packets did not arrive, and how many arrived more than once.
func (p *planned) recovered(to *planned) (missing, doubled int) {
	to.mu.Lock()
	defer to.mu.Unlock()
	for n, size := range p.sizes {
		switch got := to.got[uint64(n)]; {
		case size != plainSize:
		case got == 0:
			missing++
		case got > 1:
			doubled++
		}
	}
	return missing, doubled
}

// TestSameDeliveriesAfterClockJumps sets a node's clock, and suspends the node, between the parts of a random schedule. Each
// end detects by 15 s of silence that the other no longer has a session; then all pairs deliver the same again.
func TestSameDeliveriesAfterClockJumps(t *testing.T) {
	const jumps = 6
	for name, second := range map[string]wgtest.Make{"inline": inline, "super": super, "reference": reference} {
		for _, higher := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, the higher node jumps: %t", name, higher), func(t *testing.T) {
				for seed := range uint64(4) {
					synctest.Test(t, func(t *testing.T) {
						w := &watch{}
						engines := [2]wgtest.Make{w.make, second}
						if higher {
							engines = [2]wgtest.Make{second, w.make}
						}
						a, b := jump(t, engines, w, seed, jumps)
						for _, x := range [][2]*planned{{a, b}, {b, a}} {
							x[0].compare(t, x[1])
							if missing, doubled := x[0].recovered(x[1]); missing > jumps*17 || doubled > 0 {
								t.Errorf("of what was sent after %d jumps %d packets were lost, %d doubled", jumps, missing, doubled)
							}
						}
					})
				}
			})
		}
	}
	runtime.GC()
}

// jump runs a schedule with jumps of one node's clock.
func jump(t *testing.T, engines [2]wgtest.Make, w *watch, seed uint64, jumps int) (a, b *planned) {
	t.Helper()
	a, b = newPlan(seed, 0), newPlan(seed, 1)
	for _, p := range []*planned{a, b} {
		p.fates[session.Padded(plainSize, tun.DefaultMTU)+noise.Overhead] = []time.Duration{0}
	}
	var end func()
	a.counted, b.counted, end = pairOf(t, engines[0], engines[1], 20*time.Millisecond, func(from int, msg []byte) []time.Duration {
		switch {
		case w.suspended(): // one end of the path is suspended
			return nil
		case isData(msg):
			return []*planned{a, b}[from].fates[len(msg)]
		}
		return []time.Duration{0}
	})
	r := rand.New(rand.NewPCG(seed, 3))
	for n := range jumps + 1 {
		converse(t, r, a, b)
		if n == jumps {
			break
		}
		switch d := time.Duration(r.Int64N(int64(7 * time.Minute))); r.IntN(3) {
		case 0:
			w.set(d)
		case 1:
			w.suspend(d, true)
		case 2:
			w.suspend(d, false)
		}
		if r.IntN(2) == 0 {
			a.recover(t, b)
		} else {
			b.recover(t, a)
		}
	}
	end()
	return a, b
}

// converse sends random packets with pauses, and waits for them.
func converse(t *testing.T, r *rand.Rand, a, b *planned) {
	t.Helper()
	for range 40 {
		from, to := a, b
		if r.IntN(2) == 0 {
			from, to = b, a
		}
		from.say(t, to, 40+r.IntN(1300))
		time.Sleep(time.Duration(r.Int64N(int64(4 * time.Second))))
	}
	time.Sleep(30 * time.Second)
}
