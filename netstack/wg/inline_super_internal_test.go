package wg

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

// stubRuns records the runs that are sent, back to back.
type stubRuns struct {
	stubBind
	run   []byte
	sizes [][2]int // of each run: its length and its message size
}

func (b *stubRuns) OpenRuns(uint16) ([]bind.RunFunc, uint16, error) { return nil, 0, nil }

func (b *stubRuns) SendRun(run []byte, size int, _ conn.Endpoint) error {
	b.run = append(b.run, run...)
	b.sizes = append(b.sizes, [2]int{len(run), size})
	return nil
}

// feed is a queue of packets of given sizes.
type feed struct {
	packets [][]byte
	next    int
}

func (f *feed) ReadSuper(s *tun.Super, _ bool) (bool, error) {
	if f.next == len(f.packets) {
		return false, nil
	}
	s.Set(f.packets[f.next])
	f.next++
	return true, nil
}

func feedOf(from, to int, sizes ...int) *feed {
	f := &feed{}
	for i, n := range sizes {
		p := bytes.Repeat([]byte{byte(i)}, n)
		p[0] = 0x45
		binary.BigEndian.PutUint16(p[2:], uint16(n))
		copy(p[12:], addrs(from).V4.AsSlice())
		copy(p[16:], addrs(to).V4.AsSlice())
		f.packets = append(f.packets, p)
	}
	return f
}

// superRig returns two rigs, of which the sending one has super-packets and runs.
func superRig(t testing.TB) (a, b *rig, runs *stubRuns, s *superSender, r *receiver) {
	t.Helper()
	a, b = twoRigs(t)
	runs = &stubRuns{stubBind: stubBind{a.stub}}
	a.e.runs = runs
	return a, b, runs, newSuperSender(), newRunReceiver()
}

// burst sends all packets of the feed.
func (f *feed) burst(e *Inline, s *superSender) {
	for f.next = 0; ; {
		if ok, _ := f.ReadSuper(s.packet, true); !ok {
			return
		}
		e.burst(s, f)
	}
}

// hand passes the runs to the other engine.
func (b *stubRuns) hand(e *Inline, r *receiver) {
	at := 0
	for _, x := range b.sizes {
		e.inboundRun(r, b.run[at:at+x[0]], x[1], stubEndpoint("192.0.2.9:1"))
		at += x[0]
	}
	b.run, b.sizes = b.run[:0], b.sizes[:0]
}

func TestSuperPathDoesNotAllocate(t *testing.T) {
	a, b, runs, s, r := superRig(t)
	defer a.close(t)
	defer b.close(t)
	for _, size := range []int{64, 100, 1420} {
		sizes := make([]int, 100)
		for i := range sizes {
			sizes[i] = size
		}
		f := feedOf(1, 2, sizes...)
		b.wrote = 0
		const times = 50
		n := testing.AllocsPerRun(times, func() {
			f.burst(a.e, s)
			runs.hand(b.e, r)
		})
		if n != 0 {
			t.Errorf("%g allocations for a hundred packets of %d bytes", n, size)
		}
		if want := (times + 1) * len(sizes); b.wrote != want {
			t.Errorf("%d packets came, want %d", b.wrote, want)
		}
	}
}

// TestRunsAsTheKernelTakesThem checks that runs have messages of one size, of which the last may be shorter, and do not exceed
// what one call can send.
func TestRunsAsTheKernelTakesThem(t *testing.T) {
	a, b, runs, s, r := superRig(t)
	defer a.close(t)
	defer b.close(t)
	full := func(n int) int { return (n+15)&^15 + noise.Overhead }
	feedOf(1, 2, 100, 100, 60, 60, 200, 1420, 1420, 1300).burst(a.e, s)
	want := [][2]int{{2*full(100) + full(60), full(100)}, {full(60), full(60)}, {full(200), full(200)}, {2*1452 + full(1300), 1452}}
	if len(runs.sizes) != len(want) {
		t.Fatalf("runs of %v", runs.sizes)
	}
	for i := range want {
		if runs.sizes[i] != want[i] {
			t.Errorf("run %d is %v, want %v", i, runs.sizes[i], want[i])
		}
	}
	b.wrote = 0
	runs.hand(b.e, r)
	if b.wrote != 8 {
		t.Errorf("%d packets came", b.wrote)
	}
	// Packets for other peers, or for none, are not sent with them.
	b.wrote = 0
	for _, to := range []int{3, 2, 1} {
		feedOf(1, to, 100).burst(a.e, s)
	}
	runs.hand(b.e, r)
	if b.wrote != 1 {
		t.Errorf("%d packets came, want the one", b.wrote)
	}
}

// TestSuperWaits checks that packets without a session wait, and are sent once there is one.
func TestSuperWaits(t *testing.T) {
	a, b := newRig(t, 1), newRig(t, 2)
	defer a.close(t)
	defer b.close(t)
	a.peer(t, 2, b.key.Public())
	b.peer(t, 1, a.key.Public())
	runs := &stubRuns{stubBind: stubBind{a.stub}}
	a.e.runs = runs
	s := newSuperSender()
	feedOf(1, 2, 100, 1420, 64).burst(a.e, s)
	if len(runs.sizes) != 0 || a.count() != 1 {
		t.Fatalf("%d runs and %d messages were sent without a session", len(runs.sizes), a.count())
	}
	for range 2 {
		a.carry(b)
		b.carry(a)
	}
	if b.wrote != 3 {
		t.Errorf("%d packets came", b.wrote)
	}
	if n := a.e.staged.Load(); n != 0 {
		t.Errorf("%d bytes wait", n)
	}
}
