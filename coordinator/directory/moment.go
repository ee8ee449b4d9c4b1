package directory

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Ages tells when time alone, such as an age passing a limit, changes how the policy in force evaluates. The writer calls it:
// it must neither block nor call the directory.
type Ages interface {
	// Next returns the first moment after s.Now at which the policy's treatment of a node changes; zero means never.
	Next(s *Snapshot, id proto.NodeID) time.Time
	// Until returns the first moment after s.Now at which the policy itself changes, for every node; zero means never.
	Until(s *Snapshot) time.Time
	// Grace returns how long agents without contact to a coordinator may trust certificates past their expiry.
	Grace(s *Snapshot) time.Duration
}

// noAges is for policies that do not depend on time, apart from the grace.
type noAges time.Duration

func (noAges) Next(*Snapshot, proto.NodeID) time.Time { return time.Time{} }
func (noAges) Until(*Snapshot) time.Time              { return time.Time{} }
func (a noAges) Grace(*Snapshot) time.Duration        { return time.Duration(a) }

const (
	// backstep is how far the clock may step back while the moment simply stands still: clocks are corrected by small amounts.
	backstep = time.Minute
	// retryAging is when the writer retries after something due could not be written.
	retryAging = time.Second
	// idle is how long the writer sleeps if nothing is due.
	idle = 24 * time.Hour
)

// momentAfter returns the moment of the snapshot that follows one. back reports that the clock was set back by more than
// backstep, so that everything that depends on ages must be re-evaluated.
func momentAfter(before, now time.Time) (moment time.Time, back bool) {
	switch {
	case !now.Before(before):
		return now, false
	case before.Sub(now) <= backstep:
		return before, false
	}
	return now, true
}

// age marks what time alone has changed up to the moment of the transaction.
func (t *tx) age(back bool) {
	t.forgetFacts()
	t.expireLocks()
	for id := range over(t.due, t.moment) {
		t.nodes = append(t.nodes, id)
	}
	t.policy = t.policy || back || !t.turns.IsZero() && !t.moment.Before(t.turns)
}

// reckon computes when time alone will change the given nodes, or all nodes if the policy may have changed.
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

// soonest delays a moment that is due already, so that it is not due forever.
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

// Moment returns when the policy's treatment of a node will change by time alone; zero means never.
func (s *Snapshot) Moment(id proto.NodeID) time.Time {
	at, _ := s.state.moments.Get(id)
	return at
}

// Now returns the moment that the snapshot describes.
func (s *Snapshot) Now() time.Time { return s.now }

// pause returns how long nothing will change by itself.
func (s *Snapshot) pause(now time.Time) time.Duration {
	at := now.Add(idle)
	sooner := func(t time.Time, ok bool) {
		if ok && !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	sooner(first(s.state.factEnds))
	sooner(first(s.state.due))
	sooner(first(s.state.lockEnds))
	sooner(s.state.turns, true)
	return max(at.Sub(now), time.Millisecond)
}

// first returns the earliest time in an index by time.
func first[V any](x index[string, V]) (time.Time, bool) {
	k, _, ok := x.first()
	if !ok {
		return time.Time{}, false
	}
	return timeOf(k)
}
