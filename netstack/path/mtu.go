package path

import (
	"io"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// The largest packet that gets through is found as in RFC 8899 (DPLPMTUD): by padded pings, sent so that nothing on the path
// may fragment them. ICMP is neither needed nor believed.
//
//	         the device's own MTU ──Pong─► found ──now and then, or when suspected: that size again
//	             │ lost                      ▲           │ lost twice
//	             ▼                           │           ▼
//	sizes between pass and fail ──adjacent───┘       start over
//
// A size is too large if two pings of it were lost while a small one was answered: a path that loses everything says nothing
// about sizes. Until the first results are in, there is no limit. Nearly all paths carry what the device can send, and a host
// remembers for minutes what it was told about one that does not.

const (
	// MinMTU is what every path must carry, if need be in fragments: IPv6 inside the tunnel allows no smaller limit.
	MinMTU = 1280
	// usualMTU is what a path carries if all its links carry 1500 bytes. It is among the first sizes tried.
	usualMTU = 1420
	// sealed is how many bytes WireGuard adds to a packet.
	sealed = 32
	// maxMTU is the largest size that a ping can probe.
	maxMTU = pathmsg.MaxPing - sealed

	// confirmEvery is how often the size found is probed again while packets go out, and confirmMin how soon if something
	// speaks against it.
	confirmEvery = 10 * time.Second
	confirmMin   = time.Second
	// raiseEvery is how often larger sizes are tried again. Hosts forget what they were told about a path just as fast.
	raiseEvery = 10 * time.Minute
	// voidPause is the pause before a path that lost everything is probed again.
	voidPause = time.Second
	// rungs is how many sizes are tried at once, besides the special ones.
	rungs = 6
	// maxSized is the most padded pings of one peer waiting for their Pong.
	maxSized = 32
)

// Sized reports the MTU of this host's device. Without it no sizes are probed.
type Sized struct{ MTU int }

func (Sized) event() {}

// Fit reports how large a packet for a peer may be, inside the tunnel.
type Fit struct {
	ID  proto.NodeID
	MTU int // 0 if no limit is known
	// Fragments means that packets of MinMTU get through only if the network may fragment them.
	Fragments bool
}

func (Fit) effect() {}

// phase is what a search is waiting for.
type phase uint8

const (
	phaseRest    phase = iota // nothing
	phaseTop                  // the largest size, alone
	phaseRungs                // several sizes
	phaseConfirm              // the size that was found
)

// search looks for the largest size that one path carries. The zero search has not begun.
type search struct {
	top   int // the device's MTU
	phase phase
	low   int // the largest that was answered; 0 if none
	high  int // the smallest that is too large; top+1 if none
	limit int // for packets; 0 if none is known
	found int // the result of the search; 0 until it ends
	split bool

	asked   []int // sizes without an answer yet, ascending
	again   bool  // the smallest of them was lost once
	witness bool  // a small ping of this round was answered
	due     time.Time
	asks    time.Time // when sizes were last probed
	confirm time.Time
	raise   time.Time
}

// begin discards what was found. Packets keep their limit until something else is known.
func (s *search) begin(top int) {
	*s = search{top: top, high: top + 1, limit: s.limit, split: s.split, raise: s.raise}
}

// step returns the sizes of the pings to send now; 0 is a small one.
func (s *search) step(now time.Time, top int, rtt time.Duration) []int {
	if s.top != top {
		s.begin(top)
	}
	for {
		switch {
		case s.phase == phaseRest && s.found != 0 && now.Before(s.confirm):
			return nil
		case s.phase == phaseRest && (s.found == 0 || (s.found < top && !now.Before(s.raise))):
			s.high, s.raise = top+1, now.Add(raiseEvery)
			return s.ask(now, rtt, phaseTop, top)
		case s.phase == phaseRest:
			return s.ask(now, rtt, phaseConfirm, s.found)
		case len(s.asked) > 0 && now.Before(s.due):
			return nil
		case len(s.asked) > 0 && !s.again:
			return s.repeat(now, rtt)
		case len(s.asked) > 0 && !s.witness:
			if now.Before(s.due.Add(voidPause)) {
				return nil
			}
			s.again = false
			continue
		}
		if ask := s.over(); ask != nil {
			return s.ask(now, rtt, phaseRungs, ask...)
		}
		s.confirm = now.Add(confirmEvery)
	}
}

// ask begins a round.
func (s *search) ask(now time.Time, rtt time.Duration, next phase, sizes ...int) []int {
	s.phase, s.asked, s.again, s.witness = next, sizes, false, false
	s.wait(now, rtt)
	if next != phaseRungs {
		return sizes
	}
	return append([]int{0}, sizes...)
}

// repeat probes a second time; after the largest size alone, it probes several sizes for the first time.
func (s *search) repeat(now time.Time, rtt time.Duration) []int {
	if s.phase == phaseTop {
		return s.ask(now, rtt, phaseRungs, s.between(true)...)
	}
	s.again = true
	s.wait(now, rtt)
	return []int{0, s.asked[0]}
}

func (s *search) wait(now time.Time, rtt time.Duration) {
	s.asks, s.due = now, now.Add(max(2*rtt, 60*time.Millisecond)+40*time.Millisecond)
}

// over ends a round: either everything was answered, or the smallest size is too large. It returns the sizes of the next round,
// none at the end.
func (s *search) over() []int {
	lost := len(s.asked) > 0
	switch {
	case s.phase == phaseConfirm && !lost:
		s.phase = phaseRest
		return nil
	case s.phase == phaseConfirm:
		s.begin(s.top)
		return s.between(true)
	case lost:
		s.high = s.asked[0]
	}
	if s.high <= s.top || s.low == s.top {
		s.limit, s.split = max(s.low, MinMTU), s.low == 0
	}
	if next := s.between(false); len(next) > 0 {
		return next
	}
	s.phase, s.found, s.asked = phaseRest, max(s.low, MinMTU), nil
	return nil
}

// between returns sizes to try, ascending: between what passes and what does not, and the largest unless it is known to be too
// large.
func (s *search) between(first bool) (out []int) {
	floor := max(s.low, MinMTU)
	if s.low == 0 && s.high > MinMTU {
		out = append(out, MinMTU)
	}
	room := min(s.high, s.top) - floor
	for i := 1; i <= rungs; i++ {
		out = append(out, floor+room*i/(rungs+1))
	}
	if first {
		out = append(out, usualMTU)
	}
	if s.high > s.top {
		out = append(out, s.top)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(size int) bool { return size <= s.low || size >= s.high || size < MinMTU })
}

// answered records that a ping of a size was answered.
func (s *search) answered(size int) {
	if size == 0 {
		s.witness = true
		return
	}
	s.asked = slices.DeleteFunc(s.asked, func(x int) bool { return x <= size })
	s.low = max(s.low, size)
	if size >= s.high { // it came late, or the path is better than it was
		s.high = s.top + 1
	}
	if s.phase == phaseRest && size > s.found {
		s.found = 0
	}
}

// suspect has the size confirmed soon, since packets do not seem to arrive while pings do.
func (s *search) suspect(now time.Time) {
	if at := s.asks.Add(confirmMin); s.phase == phaseRest && at.Before(s.confirm) {
		s.confirm = at
		if at.Before(now) {
			s.confirm = now
		}
	}
}

// next returns when step is next due; zero if step must run first.
func (s *search) next() time.Time {
	switch {
	case s.phase == phaseRest && s.found == 0, s.phase != phaseRest && len(s.asked) == 0:
		return time.Time{}
	case s.phase == phaseRest:
		return s.confirm
	case s.again && !s.witness:
		return s.due.Add(voidPause)
	}
	return s.due
}

// sized is a padded ping, or the small one beside it, that is waiting for its Pong.
type sized struct {
	id   pathmsg.TxID
	to   Way
	size int
	at   time.Time
}

// inUse returns the path that packets take, if it was proved, with its size search and its round trip.
func (p *pair) inUse() (Way, *search, time.Duration) {
	switch {
	case p.current != nil:
		return p.current.way(), &p.current.sizes, p.current.rtt
	case p.relay != 0 && !p.relayPong.IsZero():
		return Way{Relay: p.relay}, &p.relaySizes, p.relayRTT
	}
	return Way{}, nil, 0
}

// fit continues the size search on the path in use, and announces the limit for packets.
func (f *Finder) fit(p *pair) {
	to, s, rtt := p.inUse()
	if s == nil || f.mtu == 0 {
		f.limit(p, Fit{ID: p.id})
		return
	}
	if p.awake {
		for _, size := range s.step(f.now, f.mtu, rtt) {
			f.pingSized(p, to, size)
		}
	}
	f.limit(p, Fit{ID: p.id, MTU: s.limit, Fragments: s.split && s.limit > 0})
}

func (f *Finder) limit(p *pair, now Fit) {
	if p.fits != now && (p.fits != Fit{} || now != Fit{ID: p.id}) {
		p.fits = now
		f.out = append(f.out, now)
	}
}

// pingSized sends a ping as long as a sealed packet of the given size.
func (f *Finder) pingSized(p *pair, to Way, size int) {
	x := sized{to: to, size: size, at: f.now}
	if _, err := io.ReadFull(f.random, x.id[:]); err != nil {
		return // as in ping
	}
	p.sized = slices.DeleteFunc(p.sized, func(x sized) bool { return f.now.Sub(x.at) >= lateAfter })
	if len(p.sized) == maxSized {
		p.sized = slices.Delete(p.sized, 0, 1)
	}
	p.sized = append(p.sized, x)
	ping := pathmsg.Ping{TxID: x.id}
	if size > 0 {
		ping.Size = size + sealed
	}
	f.out = append(f.out, Send{p.id, to, ping})
}

// gotSized handles a Pong to a ping of some size, if it is one.
func (f *Finder) gotSized(p *pair, id pathmsg.TxID) {
	i := slices.IndexFunc(p.sized, func(x sized) bool { return x.id == id })
	if i < 0 {
		return
	}
	x := p.sized[i]
	p.sized = slices.Delete(p.sized, i, i+1)
	if f.now.Sub(x.at) >= lateAfter {
		return
	}
	p.lastHeard = f.now
	switch {
	case !x.to.Direct() && x.to.Relay == p.relay:
		p.relaySizes.answered(x.size)
	case x.to.Direct() && p.at(x.to) != nil:
		p.at(x.to).sizes.answered(x.size)
	}
}

// resize restarts the size searches on all paths of a peer, since this host has moved.
func (p *pair) resize() {
	for _, c := range p.all {
		c.sizes.begin(c.sizes.top)
	}
	if c := p.punched; c != nil {
		c.sizes.begin(c.sizes.top)
	}
	p.relaySizes.begin(p.relaySizes.top)
}
