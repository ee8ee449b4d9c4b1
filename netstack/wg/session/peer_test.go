package session

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

func TestFirstPacket(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	a, b := w.ends[0], w.ends[1]
	if a.p.Next() != (time.Time{}) || !a.p.Idle() {
		t.Error("a new peer waits for something")
	}
	a.send(7)
	a.send(8)
	w.run(time.Second)
	if !slices.Equal(b.got, []uint64{7, 8}) {
		t.Errorf("came: %d", b.got)
	}
	var kinds []uint32
	for _, l := range w.ledger {
		kinds = append(kinds, l.kind)
	}
	if want := []uint32{1, 2, 4, 4}; !slices.Equal(kinds, want) {
		t.Errorf("messages %d, want %d", kinds, want)
	}
	if a.p.LastHandshake() != begun.Add(20*time.Millisecond) || b.p.LastHandshake() != begun.Add(30*time.Millisecond) {
		t.Error("handshakes at", a.p.LastHandshake(), b.p.LastHandshake())
	}
	b.send(9)
	w.run(time.Second)
	if !slices.Equal(a.got, []uint64{9}) {
		t.Errorf("came back: %d", a.got)
	}
}

func TestNothingWaits(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.ends[0].step(Probe{})
	w.run(time.Second)
	if n := w.kinds(0, noise.TypeTransport); len(n) != 1 {
		t.Errorf("%d keepalives confirm the session, want 1", len(n))
	}
	if w.ends[1].p.Current(w.now) == nil {
		t.Error("it is not confirmed")
	}
}

func TestRetries(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.lose = func(int, []byte) bool { return true }
	a := w.ends[0]
	a.send(1)
	w.run(80 * time.Second)
	if a.tally["given up"] != 0 {
		t.Error("gave up before 90 s")
	}
	w.run(time.Minute)
	sent := w.kinds(0, noise.TypeInitiation)
	if len(sent) != maxAttempts+1 {
		t.Errorf("%d initiations, want %d", len(sent), maxAttempts+1)
	}
	var gaps []time.Duration
	for i := range len(sent) - 1 {
		gaps = append(gaps, sent[i+1]-sent[i])
	}
	if lo, hi := slices.Min(gaps), slices.Max(gaps); lo < rekeyTimeout || hi > rekeyTimeout+jitter || lo == hi {
		t.Errorf("between attempts: %s", gaps)
	}
	if a.tally["given up"] != 1 || a.tally["source forgotten"] != maxAttempts || len(a.reserved) != 0 || !a.p.Idle() {
		t.Errorf("at the end: %v, %d indexes", a.tally, len(a.reserved))
	}
	w.lose = func(int, []byte) bool { return false }
	a.send(2)
	w.run(time.Second)
	if !slices.Equal(w.ends[1].got, []uint64{2}) {
		t.Error("the next packet does not begin anew")
	}
}

func TestLostResponseCostsFiveSeconds(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	lost := 0
	w.lose = func(from int, msg []byte) bool {
		if from == 1 && msg[0] == noise.TypeResponse && lost == 0 {
			lost++
			return true
		}
		return false
	}
	w.ends[0].send(1)
	w.run(rekeyTimeout)
	if len(w.ends[1].got) != 0 {
		t.Error("it came without a response")
	}
	w.run(time.Second)
	if !slices.Equal(w.ends[1].got, []uint64{1}) {
		t.Error("it did not come after the second attempt")
	}
	if n := len(w.ends[1].reserved); n != 1 {
		t.Errorf("%d sessions at the responder, want 1: the first was replaced", n)
	}
}

func TestRekeyByTime(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	for n := range uint64(1200) { // ten minutes of packets both ways
		w.ends[0].send(1000 + n)
		w.ends[1].send(1000 + n)
		w.run(500 * time.Millisecond)
	}
	first := w.kinds(0, noise.TypeInitiation)
	if n := len(first); n != 5 {
		t.Errorf("%d handshakes in ten minutes: %s", n, first)
	}
	for i := range len(first) - 1 {
		if d := first[i+1] - first[i]; d < RekeyAfterTime || d > RekeyAfterTime+time.Second {
			t.Errorf("a handshake after %s", d)
		}
	}
	if n := len(w.kinds(1, noise.TypeInitiation)); n != 0 {
		t.Errorf("the responder began %d handshakes", n)
	}
	w.run(time.Second)
	for i, e := range w.ends {
		if len(e.got) != 1200+i {
			t.Errorf("%d packets came to node %d", len(e.got), i)
		}
		if n := len(e.reserved); n > 2 {
			t.Errorf("node %d keeps %d sessions", i, n)
		}
	}
}

func TestRekeyByCount(t *testing.T) {
	w := newWorld(t, Limits{Rekey: 100, Reject: 150})
	w.shake()
	for n := range uint64(1000) {
		w.ends[1].send(n) // the responder counts as well
		w.run(100 * time.Millisecond)
	}
	w.run(time.Second)
	if n := len(w.ends[0].got); n != 1000 {
		t.Errorf("%d of 1000 packets came", n)
	}
	if n := len(w.kinds(1, noise.TypeInitiation)); n < 8 || n > 10 {
		t.Errorf("%d handshakes for 1000 packets", n)
	}
}

func TestNothingIsSealedBeyondTheLimit(t *testing.T) {
	w := newWorld(t, Limits{Rekey: 1000, Reject: 10})
	w.shake()
	s := w.ends[0].p.current
	buf := make([]byte, 2048)
	sealed := 0
	for range 20 {
		if _, ok := s.Seal(buf, 0, mtu); ok {
			sealed++
		}
	}
	if sealed+1 != 10 {
		t.Errorf("%d messages by one session, want 10", sealed+1)
	}
	if w.ends[0].p.Current(w.now) != nil {
		t.Error("it is still offered")
	}
}

func TestLastMinute(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	// Only the responder sends; the initiator's keepalives are too rare to renew the session in time.
	for n := range uint64(400) {
		if w.now.Sub(begun) < 150*time.Second {
			w.now = w.now.Add(500 * time.Millisecond)
			continue
		}
		w.ends[1].send(n)
		w.run(100 * time.Millisecond)
	}
	first := w.kinds(0, noise.TypeInitiation)
	if len(first) != 2 || first[1] < RekeyAfterTime {
		t.Fatalf("initiations at %s", first)
	}
}

func TestPassiveKeepalive(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	w.run(20 * time.Second) // the first packet was answered by a keepalive
	at := w.now.Sub(begun)
	w.ledger = nil
	w.ends[1].send(1)
	w.run(15 * time.Second)
	got := w.kinds(0, noise.TypeTransport)
	if len(got) != 1 || got[0] != at+10*time.Millisecond+silence {
		t.Errorf("keepalives at %s, a packet came at %s", got, at+10*time.Millisecond)
	}
	w.ledger = nil
	w.ends[1].send(2)
	w.run(5 * time.Second)
	w.ends[0].send(3)
	w.run(8 * time.Second)
	if n := len(w.kinds(0, noise.TypeTransport)); n != 1 {
		t.Errorf("%d messages: a keepalive although the packet was answered", n)
	}
}

func TestSilence(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	w.run(20 * time.Second)
	w.ledger = nil
	w.lose = func(int, []byte) bool { return true }
	at := w.now.Sub(begun)
	w.ends[0].send(2)
	w.run(10 * time.Second)
	w.ends[0].send(3) // does not postpone it
	w.run(6 * time.Second)
	got := w.kinds(0, noise.TypeInitiation)
	if len(got) != 1 || got[0]-at < 15*time.Second || got[0]-at > 15*time.Second+jitter {
		t.Errorf("initiations at %s, silence since %s", got, at)
	}
	if w.ends[0].tally["source forgotten"] != 1 {
		t.Error("the source was not forgotten")
	}
}

func TestPersistentKeepalive(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	a := w.ends[0]
	a.step(SetKeepalive{25 * time.Second})
	w.run(100 * time.Second)
	got := w.kinds(0, noise.TypeTransport)
	if len(got) != 4 || got[1]-got[0] != 25*time.Second || got[3]-got[2] != 25*time.Second {
		t.Errorf("keepalives at %s", got)
	}
	if a.p.Idle() {
		t.Error("a peer that is to be kept alive is idle")
	}
	a.step(SetKeepalive{})
	w.ledger = nil
	w.run(100 * time.Second)
	if n := len(w.ledger); n != 0 {
		t.Errorf("%d messages after it was turned off", n)
	}
	// A peer that does not answer is retried forever.
	w.lose = func(int, []byte) bool { return true }
	a.step(SetKeepalive{25 * time.Second})
	w.run(time.Hour)
	if n := len(w.kinds(0, noise.TypeInitiation)); n < 500 {
		t.Errorf("%d initiations in an hour", n)
	}
}

func TestSessionsEnd(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	s := w.ends[0].p.current
	if s.Alive(s.made.Add(RejectAfterTime)) || !s.Alive(s.made.Add(RejectAfterTime-1)) {
		t.Error("a session does not end after 180 s")
	}
	w.run(RejectAfterTime - 2*time.Second)
	if w.ends[0].p.Sessions() != 1 {
		t.Error("it ended early")
	}
	w.run(2 * time.Second)
	for i, e := range w.ends {
		if e.p.Sessions() != 0 || len(e.reserved) != 0 || !e.p.Idle() || !e.p.Next().IsZero() {
			t.Errorf("node %d: %d sessions, %d indexes, next %s", i, e.p.Sessions(), len(e.reserved), e.p.Next())
		}
	}
	w.ends[1].send(5)
	w.run(time.Second)
	if !slices.Contains(w.ends[0].got, 5) {
		t.Error("a new session does not come up")
	}
}

func TestReplay(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	var kept [][]byte
	w.lose = func(from int, msg []byte) bool {
		kept = append(kept, bytes.Clone(msg))
		return false
	}
	w.shake()
	w.ends[0].send(2)
	w.run(time.Second)
	w.lose = func(int, []byte) bool { return false }
	a, b := w.ends[0], w.ends[1]
	before := [2]int{len(a.got), len(b.got)}
	heard, sent := a.tally["heard"]+b.tally["heard"], len(w.ledger)
	for range 3 {
		for _, msg := range kept {
			a.arrive(bytes.Clone(msg))
			b.arrive(bytes.Clone(msg))
		}
		w.run(time.Second)
	}
	if [2]int{len(a.got), len(b.got)} != before || a.tally["heard"]+b.tally["heard"] != heard || len(w.ledger) != sent {
		t.Error("a replay has an effect")
	}
}

func TestReplayWindow(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	w.shake()
	s, far := w.ends[0].p.current, w.ends[1].p.current
	var msgs [][]byte
	for range 10000 {
		buf := make([]byte, 64)
		n, ok := s.Seal(buf, 0, mtu)
		if !ok {
			t.Fatal("not sealed")
		}
		msgs = append(msgs, buf[:n])
	}
	open := func(i int) bool {
		_, err := far.Open(bytes.Clone(msgs[i]))
		return err == nil
	}
	for _, c := range []struct {
		i    int
		want bool
	}{{5, true}, {3, true}, {3, false}, {5, false}, {9000, true}, {9000 - 8000, true}, {9000 - 8200, false}, {4, false}, {9999, true}} {
		if open(c.i) != c.want {
			t.Errorf("message %d: %t", c.i, !c.want)
		}
	}
}

func TestInitiationsAreNotAnsweredTooOften(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	a, b := w.ends[0], w.ends[1]
	pair := a.p.pairs[0]
	answers := func() int { return len(w.kinds(1, noise.TypeResponse)) }
	knock := func(at time.Time) {
		var msg [noise.InitiationSize]byte
		if _, err := pair.Initiate(&msg, [32]byte{9}, 5, noise.Stamp(at)); err != nil {
			t.Fatal(err)
		}
		pair.jar.Sign(w.now, pair.Remote, msg[:])
		b.arrive(msg[:])
	}
	knock(begun)
	knock(begun.Add(time.Second))
	if n := answers(); n != 1 {
		t.Errorf("%d answers in the same moment", n)
	}
	w.now = w.now.Add(floodTime + 1)
	knock(begun)
	if n := answers(); n != 1 {
		t.Errorf("%d answers to an old stamp", n)
	}
	knock(begun.Add(2 * time.Second))
	if n := answers(); n != 2 {
		t.Errorf("%d answers, want 2", n)
	}
}

func TestStampsGrow(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	p := w.ends[0].p
	last := p.nextStamp(begun)
	for range 300 {
		s := p.nextStamp(begun.Add(-time.Hour))
		if !s.After(last) {
			t.Fatalf("%x after %x", s, last)
		}
		last = s
	}
	if s := p.nextStamp(begun.Add(time.Hour)); s != noise.Stamp(begun.Add(time.Hour)) {
		t.Error("it does not follow the clock again")
	}
}

func TestCookies(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	a, b := w.ends[0], w.ends[1]
	var gate noise.Gate
	passed := 0
	w.lose = func(from int, msg []byte) bool { return msg[0] == noise.TypeInitiation }
	a.send(1)
	var reply [noise.CookieReplySize]byte
	for range 1000 { // until there is load
		v, err := gate.Admit(w.now, zeros{}, b.locals[0], a.p.flight.message, []byte("a"), ip, &reply)
		if err != nil {
			t.Fatal(err)
		}
		if v == noise.Challenge {
			a.arrive(reply[:])
			break
		}
	}
	w.lose = func(_ int, msg []byte) bool {
		if msg[0] != noise.TypeInitiation {
			return false
		}
		v, err := gate.Admit(w.now, zeros{}, b.locals[0], msg, []byte("a"), ip, &reply)
		if err != nil {
			t.Fatal(err)
		}
		if v == noise.Pass {
			passed++
		}
		return v != noise.Pass
	}
	underLoad(t, &gate, a.p.Next().Add(-time.Millisecond), b, a.p.flight.message)
	w.run(rekeyTimeout + time.Second)
	if passed != 1 || !slices.Equal(b.got, []uint64{1}) {
		t.Errorf("%d initiations with a cookie passed, %d packets came", passed, len(b.got))
	}
}

// TestCookieForResponse puts the initiator under load: it accepts the response once the responder has proved its address.
func TestCookieForResponse(t *testing.T) {
	w := newWorld(t, DefaultLimits)
	a, b := w.ends[0], w.ends[1]
	var gate noise.Gate
	verdicts := map[noise.Verdict]int{}
	w.lose = func(from int, msg []byte) bool {
		if from == 0 || msg[0] != noise.TypeResponse {
			return false
		}
		underLoad(t, &gate, w.now, a, msg)
		var reply [noise.CookieReplySize]byte
		v, err := gate.Admit(w.now, zeros{}, a.locals[0], msg, []byte("b"), ip, &reply)
		if err != nil {
			t.Fatal(err)
		}
		verdicts[v]++
		if v == noise.Challenge {
			w.put(0, reply[:])
		}
		return v != noise.Pass
	}
	a.send(1)
	w.run(rekeyTimeout + time.Second)
	if verdicts[noise.Challenge] != 1 || verdicts[noise.Pass] != 1 || !slices.Equal(b.got, []uint64{1}) {
		t.Errorf("verdicts of responses %v, %d packets came", verdicts, b.got)
	}
}
