package session

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

const mtu = 1420

var begun = time.Unix(1_700_000_000, 0)

// world is two nodes and the messages between them, in simulated time.
type world struct {
	t      testing.TB
	now    time.Time
	ends   [2]*end
	air    []flying
	delay  func(from int) time.Duration
	lose   func(from int, msg []byte) bool
	ledger []entry
}

// entry records a sent message.
type entry struct {
	at   time.Time
	from int
	kind uint32
	size int
}

type flying struct {
	at  time.Time
	to  int
	msg []byte
}

// end is one node with a Peer for the other.
type end struct {
	w        *world
	number   int
	p        *Peer
	locals   []*noise.Local
	remotes  []*noise.Remote
	seen     map[[32]byte]*Seen
	index    uint32
	reserved map[uint32]*Session
	waiting  [][]byte
	got      []uint64 // numbers of the received packets
	tally    map[string]int
	ahead    time.Duration // of the world's time: how far its clock was set, minus what it missed while suspended
	asleep   bool          // nothing happens on it, and messages to it are lost
}

// now returns the time on its clock.
func (e *end) now() time.Time { return e.w.now.Add(e.ahead) }

// sleep suspends a node for d. Its clock keeps running meanwhile if counts is set.
func (e *end) sleep(d time.Duration, counts bool) {
	e.asleep = true
	e.w.run(d)
	e.asleep = false
	if !counts {
		e.ahead -= d
	}
}

func newWorld(t testing.TB, limits Limits) *world {
	w := &world{t: t, now: begun}
	w.delay = func(int) time.Duration { return 10 * time.Millisecond }
	w.lose = func(int, []byte) bool { return false }
	for i := range w.ends {
		e := &end{
			w: w, number: i, reserved: map[uint32]*Session{}, seen: map[[32]byte]*Seen{}, tally: map[string]int{},
			index: uint32(1000 * (i + 1)),
		}
		e.p = New(Config{Higher: i == 1, Index: e.reserve, Random: rand.NewChaCha8([32]byte{byte(i)}), Limits: limits})
		w.ends[i] = e
	}
	for i, e := range w.ends {
		e.locals = []*noise.Local{local(t, byte(i+1))}
		e.remotes = []*noise.Remote{remote(t, byte(2-i))}
		e.setPairs()
	}
	return w
}

func local(t testing.TB, n byte) *noise.Local {
	l, err := noise.NewLocal([32]byte{8: n})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func remote(t testing.TB, n byte) *noise.Remote {
	l := local(t, n)
	r, err := noise.NewRemote(l.Public())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (e *end) reserve() uint32 {
	e.index++
	e.reserved[e.index] = nil
	return e.index
}

// setPairs gives the Peer all pairs of the keys, in their order.
func (e *end) setPairs() {
	var list []*Pair
	for _, l := range e.locals {
		for _, r := range e.remotes {
			list = append(list, e.pair(l, r))
		}
	}
	e.step(SetPairs{list})
}

func (e *end) pair(l *noise.Local, r *noise.Remote) *Pair {
	for _, p := range e.p.pairs {
		if p.Local.Public() == l.Public() && p.Remote.Public() == r.Public() {
			return p
		}
	}
	n, err := noise.NewPair(l, r)
	if err != nil {
		e.w.t.Fatal(err)
	}
	if e.seen[r.Public()] == nil {
		e.seen[r.Public()] = &Seen{}
	}
	return &Pair{Pair: n, Seen: e.seen[r.Public()]}
}

func (e *end) step(ev Event) {
	for _, f := range e.p.Step(e.now(), ev, nil) {
		switch f := f.(type) {
		case Message:
			e.w.put(e.number, f.Bytes)
		case Keepalive:
			e.seal(nil)
		case Ready:
			e.tally["ready"]++
			if n := len(e.waiting); n > 0 {
				list := e.waiting
				e.waiting = nil
				for _, pkt := range list {
					if e.p.Current(e.now()) == nil {
						e.waiting = append(e.waiting, pkt)
					} else {
						e.seal(pkt)
					}
				}
				e.step(Sent{Data: true})
				if len(e.waiting) > 0 {
					e.step(Want{})
				}
			} else if f.Confirm {
				e.seal(nil)
				e.step(Sent{})
			}
		case GiveUp:
			e.tally["given up"]++
			e.waiting = nil
		case ForgetSource:
			e.tally["source forgotten"]++
		case Heard:
			e.tally["heard"]++
		case Install:
			if s, ok := e.reserved[f.Session.Index]; !ok || s != nil {
				e.w.t.Fatalf("index %d is not reserved", f.Session.Index)
			}
			e.reserved[f.Session.Index] = f.Session
		case Release:
			if _, ok := e.reserved[f.Index]; !ok {
				e.w.t.Fatalf("index %d is released twice", f.Index)
			}
			delete(e.reserved, f.Index)
		}
	}
	if n := e.p.Sessions(); n > maxSessions {
		e.w.t.Fatalf("%d sessions", n)
	}
	if e.p.current != nil && (!e.p.current.confirmed || e.p.current.ended || !slices.Contains(e.p.sessions, e.p.current)) {
		e.w.t.Fatal("the current session is none")
	}
}

// seal sends content over the current session.
func (e *end) seal(content []byte) {
	s := e.p.Current(e.now())
	if s == nil {
		e.w.t.Fatal("no session to send by")
	}
	buf := make([]byte, 2048)
	copy(buf[noise.HeaderSize:], content)
	n, ok := s.Seal(buf, len(content), mtu)
	if !ok {
		e.waiting = append(e.waiting, content)
		return
	}
	e.w.put(e.number, buf[:n])
}

// send sends a packet with a number.
func (e *end) send(number uint64) {
	pkt := binary.BigEndian.AppendUint64(nil, number)
	if e.p.Current(e.now()) == nil {
		e.waiting = append(e.waiting, pkt)
		e.step(Want{})
		return
	}
	e.seal(pkt)
	if len(e.waiting) > 0 {
		e.step(Want{})
		return
	}
	e.step(Sent{Data: true})
}

func (w *world) put(from int, msg []byte) {
	w.ledger = append(w.ledger, entry{w.now, from, binary.LittleEndian.Uint32(msg), len(msg)})
	if w.lose(from, msg) {
		return
	}
	w.air = append(w.air, flying{w.now.Add(w.delay(from)), 1 - from, slices.Clone(msg)})
	slices.SortStableFunc(w.air, func(a, b flying) int { return a.at.Compare(b.at) })
}

// arrive handles a message.
func (e *end) arrive(msg []byte) {
	if len(msg) < noise.Overhead {
		return
	}
	index := binary.LittleEndian.Uint32(msg[4:])
	switch binary.LittleEndian.Uint32(msg) {
	case noise.TypeInitiation:
		for _, l := range e.locals {
			if !l.CheckMAC1(msg) {
				continue
			}
			in, err := l.Open(msg)
			if err != nil {
				continue
			}
			for _, p := range e.p.pairs {
				if p.Local == l && p.Remote.Public() == in.Remote {
					e.step(Initiation{p, in})
					return
				}
			}
		}
	case noise.TypeResponse:
		e.step(Response{msg})
	case noise.TypeCookieReply:
		e.step(CookieReply{index, msg})
	case noise.TypeTransport:
		s := e.reserved[index]
		if s == nil || !s.Alive(e.now()) {
			return
		}
		content, err := s.Open(msg)
		if err != nil {
			return
		}
		e.step(Received{s, len(content) > 0})
		if len(content) > 0 {
			e.got = append(e.got, binary.BigEndian.Uint64(content))
		}
	}
}

// run lets d pass.
func (w *world) run(d time.Duration) {
	until := w.now.Add(d)
	for range 1_000_000 {
		next, who := until, -1
		for i, e := range w.ends {
			t := e.p.Next()
			if t.IsZero() || e.asleep {
				continue
			}
			if t = t.Add(-e.ahead); t.Before(next) {
				next, who = t, i
			}
		}
		if len(w.air) > 0 && !w.air[0].at.After(next) && w.air[0].at.Before(until) {
			f := w.air[0]
			w.air = w.air[1:]
			w.now = later(w.now, f.at)
			if e := w.ends[f.to]; !e.asleep {
				e.arrive(f.msg)
			}
			continue
		}
		if who < 0 {
			w.now = until
			return
		}
		w.now = later(w.now, next)
		w.ends[who].step(Tick{})
	}
	w.t.Fatal("time stands still")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// kinds returns when a node sent messages of a kind.
func (w *world) kinds(from int, kind uint32) (out []time.Duration) {
	for _, l := range w.ledger {
		if l.from == from && l.kind == kind {
			out = append(out, l.at.Sub(begun))
		}
	}
	return out
}

// shake gives both a session that the first node began.
func (w *world) shake() {
	w.t.Helper()
	w.ends[0].send(1)
	w.run(time.Second)
	for i, e := range w.ends {
		if e.p.Current(e.now()) == nil {
			w.t.Fatalf("node %d has no session", i)
		}
	}
}
