package session

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

var ip = netip.MustParseAddr("192.0.2.1")

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// underLoad puts a gate under load at the given time.
func underLoad(t *testing.T, g *noise.Gate, at time.Time, e *end, msg []byte) {
	t.Helper()
	var reply [noise.CookieReplySize]byte
	for range 1000 {
		if _, err := g.Admit(at, zeros{}, e.locals[0], msg, []byte("other"), ip, &reply); err != nil {
			t.Fatal(err)
		}
	}
}

// same reports whether both ends send over the same session.
func (w *world) same() bool {
	a, b := w.ends[0].p.Current(w.now), w.ends[1].p.Current(w.now)
	return a != nil && b != nil && a.Index == b.remote && b.Index == a.remote
}

func TestHandshakesThatCross(t *testing.T) {
	for _, one := range []time.Duration{0, time.Millisecond, 9 * time.Millisecond, 50 * time.Millisecond} {
		for _, back := range []time.Duration{0, time.Millisecond, 30 * time.Millisecond, 200 * time.Millisecond} {
			for _, head := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
				w := newWorld(t, DefaultLimits)
				w.delay = func(from int) time.Duration {
					if from == 0 {
						return one
					}
					return back
				}
				w.ends[0].send(1)
				w.run(head)
				w.ends[1].send(2)
				w.run(time.Second)
				w.ends[0].send(3)
				w.ends[1].send(4)
				w.run(time.Second)
				if !slices.Equal(w.ends[1].got, []uint64{1, 3}) || !slices.Equal(w.ends[0].got, []uint64{2, 4}) {
					t.Errorf("%s, %s, %s: came %d and %d", one, back, head, w.ends[1].got, w.ends[0].got)
				}
				if !w.same() {
					t.Errorf("%s, %s, %s: the ends send by different sessions", one, back, head)
				}
				if n := len(w.kinds(0, 1)) + len(w.kinds(1, 1)); n > 2 {
					t.Errorf("%s, %s, %s: %d initiations", one, back, head, n)
				}
			}
		}
	}
}

func TestMoveToNewKeys(t *testing.T) {
	for who, name := range []string{"the lower node", "the higher node"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, DefaultLimits)
			w.shake()
			me, other := w.ends[who], w.ends[1-who]
			before := me.p.current
			other.remotes = append([]*noise.Remote{remote(t, 9)}, other.remotes...)
			other.setPairs()
			me.locals = append([]*noise.Local{local(t, 9)}, me.locals...)
			me.setPairs()
			if me.p.current != before {
				t.Error("the session went before there was another")
			}
			w.run(7 * time.Second)
			if !w.same() || me.p.current.Pair != me.p.pairs[0] || other.p.current.Pair != other.p.pairs[0] {
				t.Fatal("they did not move")
			}
			if !before.ended && me.p.Sessions() < 2 {
				t.Error("the old session is not kept for what is under way")
			}
			if n := len(w.kinds(0, 1)) + len(w.kinds(1, 1)); n > 3 {
				t.Errorf("%d initiations", n)
			}
			// The old keys are dropped, and their sessions with them.
			me.locals, other.remotes = me.locals[:1], other.remotes[:1]
			me.setPairs()
			other.setPairs()
			if !before.ended || me.p.Sessions() != 1 || other.p.Sessions() != 1 {
				t.Errorf("sessions of keys that are gone: %d and %d", me.p.Sessions(), other.p.Sessions())
			}
			me.send(77)
			w.run(time.Second)
			if !slices.Contains(other.got, 77) {
				t.Error("nothing passes afterwards")
			}
		})
	}
}

func TestNewKeyThatThePeerDoesNotKnow(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	me, other := w.ends[1], w.ends[0]
	me.locals = append([]*noise.Local{local(t, 9)}, me.locals...)
	me.setPairs()
	sent := uint64(100)
	for range 4000 {
		me.send(sent)
		sent++
		w.run(100 * time.Millisecond)
	}
	w.run(time.Second)
	if n := len(other.got); n != 4000 {
		t.Errorf("%d of 4000 packets came by the old key", n)
	}
	if n := len(w.kinds(1, noise.TypeInitiation)); n > 40 {
		t.Errorf("%d initiations in 400 s", n)
	}
}

func TestKeysThatGo(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	a := w.ends[0]
	s := a.p.current
	a.remotes = nil
	a.setPairs()
	if !s.ended || a.p.Current(w.now) != nil || len(a.reserved) != 0 {
		t.Error("a session without keys lives")
	}
	a.send(3)
	w.run(time.Minute)
	if len(w.kinds(0, noise.TypeInitiation)) != 1 {
		t.Error("a handshake without keys")
	}
}

func TestAnyScheduleHeals(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, Limits{Rekey: 50, Reject: 80})
		draw := rapid.IntRange(0, 99)
		loss := rapid.IntRange(0, 60).Draw(rt, "loss")
		w.lose = func(int, []byte) bool { return draw.Draw(rt, "fate") < loss }
		w.delay = func(int) time.Duration { return time.Duration(draw.Draw(rt, "delay")) * time.Millisecond }
		next := byte(10)
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			e, f := w.ends[0], w.ends[1]
			if rapid.Bool().Draw(rt, "who") {
				e, f = f, e
			}
			switch rapid.IntRange(0, 6).Draw(rt, "what") {
			case 0, 1, 2:
				e.send(1)
			case 3:
				e.step(Probe{})
			case 4:
				f.remotes = append([]*noise.Remote{remote(t, next)}, f.remotes...)
				f.setPairs()
				e.locals = append([]*noise.Local{local(t, next)}, e.locals...)
				e.setPairs()
				next++
			case 5:
				e.locals, f.remotes = e.locals[:1], f.remotes[:1]
				e.setPairs()
				f.setPairs()
			case 6:
				e.step(SetKeepalive{time.Duration(draw.Draw(rt, "interval")) * time.Second})
			}
			w.run(time.Duration(rapid.IntRange(0, 100_000).Draw(rt, "pause")) * time.Millisecond)
		}
		w.lose = func(int, []byte) bool { return false }
		w.delay = func(int) time.Duration { return 10 * time.Millisecond }
		w.run(20 * time.Second)
		// An end whose session the other no longer has detects that by sending and hearing nothing for KEEPALIVE-TIMEOUT +
		// REKEY-TIMEOUT. Packets it sends before that are lost.
		for range 30 {
			for _, e := range w.ends {
				e.step(SetKeepalive{})
				e.send(2)
			}
			w.run(time.Second)
		}
		// A session may have ended at one end while the other thinks it valid: packets sent then are lost, until that is
		// noticed.
		for range 40 {
			for i, e := range w.ends {
				e.send(uint64(1000 + i))
			}
			w.run(time.Second)
		}
		for i, e := range w.ends {
			if !slices.Contains(e.got, uint64(1001-i)) {
				rt.Fatalf("nothing comes to node %d", i)
			}
		}
		w.run(time.Hour)
		for i, e := range w.ends {
			if len(e.reserved) != 0 || !e.p.Idle() || !e.p.Next().IsZero() {
				rt.Fatalf("node %d keeps %d indexes, next %s", i, len(e.reserved), e.p.Next())
			}
		}
	})
}

// TestClocksThatJump suspends nodes, whose clocks keep running meanwhile or stop, and sets clocks forward. Afterwards the two
// recover: each end detects by sending without receiving anything that the other no longer has a session.
func TestClocksThatJump(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, DefaultLimits)
		pause := rapid.IntRange(0, 400)
		sent := uint64(10)
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			e := w.ends[rapid.IntRange(0, 1).Draw(rt, "who")]
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0, 1:
				e.send(sent)
				sent++
			case 2:
				e.sleep(time.Duration(pause.Draw(rt, "slept"))*time.Second, true)
			case 3:
				e.sleep(time.Duration(pause.Draw(rt, "slept"))*time.Second, false)
			case 4:
				e.ahead += time.Duration(pause.Draw(rt, "jump")) * time.Second
			case 5:
				e.step(SetKeepalive{time.Duration(rapid.IntRange(0, 30).Draw(rt, "interval")) * time.Second})
			}
			w.run(time.Duration(pause.Draw(rt, "pause")) * 100 * time.Millisecond)
		}
		for range 40 {
			for _, e := range w.ends {
				e.step(SetKeepalive{})
				e.send(2)
			}
			w.run(time.Second)
		}
		// A session may have ended at one end while the other thinks it valid: packets sent then are lost, until that is
		// noticed.
		for range 40 {
			for i, e := range w.ends {
				e.send(uint64(1000 + i))
			}
			w.run(time.Second)
		}
		for i, e := range w.ends {
			if !slices.Contains(e.got, uint64(1001-i)) {
				rt.Fatalf("nothing comes to node %d", i)
			}
			seen := map[uint64]bool{}
			for _, n := range e.got {
				if seen[n] && n >= 10 && n < 1000 {
					rt.Fatalf("packet %d came twice", n)
				}
				seen[n] = true
			}
		}
		w.run(2 * time.Hour)
		for i, e := range w.ends {
			if len(e.reserved) != 0 || !e.p.Idle() || !e.p.Next().IsZero() {
				rt.Fatalf("node %d keeps %d indexes, next %s", i, len(e.reserved), e.p.Next())
			}
		}
	})
}

func TestAllocations(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	a, b := w.ends[0].p, w.ends[1].p
	buf := make([]byte, 2048)
	effects := make([]Effect, 0, 8)
	n := testing.AllocsPerRun(1000, func() {
		s := a.Current(w.now)
		size, ok := s.Seal(buf, 1400, mtu)
		if !ok {
			t.Fatal("not sealed")
		}
		effects = a.Step(w.now, Sent{Data: true}, effects[:0])
		far := b.current
		if _, err := far.Open(buf[:size]); err != nil {
			t.Fatal("not opened")
		}
		effects = b.Step(w.now, Received{far, true}, effects[:0])
	})
	if n != 0 {
		t.Errorf("%g allocations a packet", n)
	}
}

func TestPadding(t *testing.T) {
	for _, c := range []struct{ n, want int }{{0, 0}, {1, 16}, {16, 16}, {17, 32}, {1409, 1420}, {1420, 1420}, {1430, 1440}} {
		if got := Padded(c.n, mtu); got != c.want {
			t.Errorf("%d bytes become %d, want %d", c.n, got, c.want)
		}
	}
}

// FuzzStep feeds bytes to a Peer: as messages, and as a schedule of other events, including replays of earlier messages with
// and without a flipped bit.
func FuzzStep(f *testing.F) {
	f.Add([]byte{}, []byte{0, 1, 2, 3})
	f.Add([]byte{1, 0, 0, 0, 1, 2, 3, 4}, []byte{9, 9, 9})
	f.Add([]byte{4, 0, 0, 0, 0xe9, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, []byte{4, 4, 1})
	f.Add([]byte{}, []byte{0, 0x0e, 0x8d, 0x9d, 0xad, 0xbd, 12, 20, 0, 28, 0x0e, 0, 0x80})
	f.Fuzz(func(t *testing.T, msg, schedule []byte) {
		w := newWorld(t, Limits{Rekey: 5, Reject: 9})
		var said [][]byte
		w.lose = func(_ int, msg []byte) bool {
			said = append(said, slices.Clone(msg))
			return false
		}
		next := byte(10)
		for n, b := range schedule[:min(len(schedule), 64)] {
			e, more := w.ends[b>>7], int(b>>3&15)
			switch b & 7 {
			case 0:
				e.send(uint64(n))
			case 1:
				e.step(Probe{})
			case 2:
				e.step(SetKeepalive{time.Duration(more&7) * time.Second})
			case 3:
				e.step(SetPairs{e.p.pairs[:min(len(e.p.pairs), more&1)]})
			case 4:
				e.change(w.ends[1-b>>7], more, &next)
			case 5:
				e.lie(msg, said, more)
			case 6:
				w.run(time.Duration(more) * 20 * time.Second)
			case 7:
				w.run(time.Duration(more) * time.Millisecond)
			}
		}
		w.run(time.Minute)
		for i, e := range w.ends {
			slices.Sort(e.got)
			if len(slices.Compact(slices.Clone(e.got))) != len(e.got) {
				t.Errorf("to node %d came %d", i, e.got)
			}
		}
	})
}

// change changes keys of a node, or sets its current ones again.
func (e *end) change(other *end, how int, next *byte) {
	switch how & 3 {
	case 0:
		e.setPairs()
	case 1:
		e.step(Leave{e.locals[len(e.locals)-1]})
	case 2:
		e.step(SetPSK{[32]byte{byte(how >> 2)}})
	case 3:
		l, r := local(e.w.t, *next), remote(e.w.t, *next)
		*next++
		e.locals, other.remotes = []*noise.Local{l, e.locals[0]}, []*noise.Remote{r, other.remotes[0]}
		other.setPairs()
		e.setPairs()
	}
}

// lie gives a node a forged message, or a replayed one with or without a flipped bit.
func (e *end) lie(msg []byte, said [][]byte, how int) {
	got := len(e.got)
	if how&1 == 1 && len(said) > 0 {
		old := slices.Clone(said[len(said)-1-min(how>>1, len(said)-1)])
		if len(msg) > 0 {
			old[int(msg[0])%len(old)] ^= 1
		}
		e.arrive(old)
		return
	}
	forged := slices.Clone(msg)
	if len(forged) >= 8 {
		binary.LittleEndian.PutUint32(forged[4:], e.index)
	}
	e.arrive(forged)
	if len(e.got) != got {
		e.w.t.Error("a forged message is taken")
	}
}
