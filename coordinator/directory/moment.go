package directory

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Ages says when the policy in force will see something else though nobody changed anything: ages that pass a limit. It is
// called by the writer: it must neither wait nor call the directory.
type Ages interface {
	// Next is the first moment after s.Now at which what the policy makes of a node changes; zero for never.
	Next(s *Snapshot, id proto.NodeID) time.Time
	// Until is the first moment after s.Now at which the policy itself changes, for everybody; zero for never.
	Until(s *Snapshot) time.Time
	// Grace is how long agents that hear nothing of a coordinator may trust certificates beyond their end.
	Grace(s *Snapshot) time.Duration
}

// noAges is for policies that know no time, but for the grace.
type noAges time.Duration

func (noAges) Next(*Snapshot, proto.NodeID) time.Time { return time.Time{} }
func (noAges) Until(*Snapshot) time.Time              { return time.Time{} }
func (a noAges) Grace(*Snapshot) time.Duration        { return time.Duration(a) }

const (
	// backstep is how far the clock may go back without time going back: clocks are corrected by small amounts.
	backstep = time.Minute
	// retryAging is when the writer looks again where what was due could not be written.
	retryAging = time.Second
	// idle is how long the writer sleeps where nothing is due.
	idle = 24 * time.Hour
)

// momentAfter is the moment that the snapshot after one is about. Where the clock was set back by more than a little, everything
// that hangs on ages must be looked at again.
func momentAfter(before, now time.Time) (moment time.Time, back bool) {
	switch {
	case !now.Before(before):
		return now, false
	case before.Sub(now) <= backstep:
		return before, false
	}
	return now, true
}

// age notes whom time alone has changed up to the moment of the transaction.
func (t *tx) age(back bool) {
	t.forgetFacts()
	for id := range over(t.due, t.moment) {
		t.nodes = append(t.nodes, id)
	}
	t.policy = t.policy || back || !t.turns.IsZero() && !t.moment.Before(t.turns)
}

// reckon finds out when time alone will change the nodes of a transaction, or all of them where the policy may be another one.
func (d *Directory) reckon(s *Snapshot, nodes []proto.NodeID, all bool) {
	if all {
		s.state.moments, s.state.due = newIndex[proto.NodeID, time.Time](), newIndex[string, proto.NodeID]()
		s.state.turns = soonest(d.config.Ages.Until(s), s.now)
		for id := range s.All() {
			s.state.reckon(id, soonest(d.config.Ages.Next(s, id), s.now))
		}
		return
	}
	for _, id := range nodes {
		next := time.Time{}
		if _, trusted := s.Node(id); trusted {
			next = soonest(d.config.Ages.Next(s, id), s.now)
		}
		s.state.reckon(id, next)
	}
}

// soonest keeps what is due from being due for ever.
func soonest(at, now time.Time) time.Time {
	if !at.IsZero() && !at.After(now) {
		return now.Add(retryAging)
	}
	return at
}

func (s *state) reckon(id proto.NodeID, at time.Time) {
	if old, ok := s.moments.Get(id); ok {
		drop(&s.moments, id)
		drop(&s.due, timeKey(old, idKey(id)))
	}
	if !at.IsZero() {
		put(&s.moments, id, at)
		put(&s.due, timeKey(at, idKey(id)), id)
	}
}

// Moment is when what the policy makes of a node will change though nobody changes anything; zero for never.
func (s *Snapshot) Moment(id proto.NodeID) time.Time {
	at, _ := s.state.moments.Get(id)
	return at
}

// Now is the moment that the snapshot is about.
func (s *Snapshot) Now() time.Time { return s.now }

// pause is how long nothing will happen by itself.
func (s *Snapshot) pause(now time.Time) time.Duration {
	at := now.Add(idle)
	sooner := func(t time.Time, ok bool) {
		if ok && !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	sooner(first(s.state.factEnds))
	sooner(first(s.state.due))
	sooner(s.state.turns, true)
	return max(at.Sub(now), time.Millisecond)
}

// first is the earliest time in an index by time.
func first[V any](x index[string, V]) (time.Time, bool) {
	k, _, ok := x.first()
	if !ok {
		return time.Time{}, false
	}
	return timeOf(k)
}
