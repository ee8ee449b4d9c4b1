package directory

import (
	"maps"
	"slices"
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Change is the accumulated difference between two snapshots.
type Change struct {
	Before, After *Snapshot
	Nodes         []proto.NodeID // added, removed or changed, endpoints included; sorted
	Policy        bool
	Relays        bool // the relays in service changed
}

// Subscription reports to one reader what changed since it last looked. It never holds up the writer, and stores no more than
// one id for each node that is in the directory or was when the reader last looked.
type Subscription struct {
	ready chan struct{}
	owner *subscriptions

	mu     sync.Mutex
	before *Snapshot
	after  *Snapshot
	nodes  map[proto.NodeID]struct{}
	policy bool
	relays bool
	ended  bool
}

type subscriptions struct {
	mu    sync.Mutex
	all   map[*Subscription]struct{}
	ended bool
}

// Subscribe starts at the current snapshot, which is the first Change's Before. The caller must Close it.
func (d *Directory) Subscribe() *Subscription {
	s := &Subscription{ready: make(chan struct{}, 1), owner: &d.subs, nodes: make(map[proto.NodeID]struct{})}
	d.subs.mu.Lock()
	defer d.subs.mu.Unlock()
	s.before = d.Snapshot()
	s.after = s.before
	if d.subs.ended {
		s.end()
		return s
	}
	if d.subs.all == nil {
		d.subs.all = make(map[*Subscription]struct{})
	}
	d.subs.all[s] = struct{}{}
	return s
}

// Ready receives a value when there is something to Take, and is closed with the directory or the subscription.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Snapshot returns the Before of the next Change.
func (s *Subscription) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before
}

// Take returns everything that changed since the last Take as one Change; ok is false if nothing did.
func (s *Subscription) Take() (Change, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before == s.after {
		return Change{}, false
	}
	c := Change{Before: s.before, After: s.after, Nodes: slices.Sorted(maps.Keys(s.nodes)), Policy: s.policy, Relays: s.relays}
	s.before, s.policy, s.relays = s.after, false, false
	s.nodes = make(map[proto.NodeID]struct{})
	return c, true
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.owner.mu.Lock()
	delete(s.owner.all, s)
	s.owner.mu.Unlock()
	s.end()
}

func (s *Subscription) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.ready)
	}
}

// add merges a change. A node that was added and removed between two looks leaves no trace.
func (s *Subscription) add(after *Snapshot, nodes []proto.NodeID, policy, relays bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.after = after
	s.policy = s.policy || policy
	s.relays = s.relays || relays
	for _, id := range nodes {
		_, was := s.before.Lookup(id)
		_, is := after.Lookup(id)
		if was || is {
			s.nodes[id] = struct{}{}
		} else {
			delete(s.nodes, id)
		}
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// publish makes a snapshot current and notifies the subscribers. A concurrent Subscribe sees either the snapshot or the change
// to it.
func (s *subscriptions) publish(store func(), after *Snapshot, nodes []proto.NodeID, policy, relays bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	store()
	for sub := range s.all {
		sub.add(after, nodes, policy, relays)
	}
}

func (s *subscriptions) close() {
	s.mu.Lock()
	all := s.all
	s.all, s.ended = nil, true
	s.mu.Unlock()
	for sub := range all {
		sub.end()
	}
}
