package directory

import (
	"maps"
	"slices"
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Change is the difference between two snapshots: what happened between them, folded.
type Change struct {
	Before, After *Snapshot
	Nodes         []proto.NodeID // that appeared, went or changed, endpoints included; sorted
	Policy        bool
	Relays        bool // others serve
}

// Subscription tells one reader what changed since it looked last. It never holds up the writer, and holds no more than
// one id for each node that is in the directory or was when the reader looked last.
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

// Subscribe begins with the snapshot of now, which is the first Change's Before. Close it.
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

// Ready gets a value when there is something to Take, and is closed when the directory or the subscription is.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Snapshot is the one that the next Change begins with.
func (s *Subscription) Snapshot() *Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.before
}

// Take answers all that changed since the last Take as one Change, and false where nothing did.
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

// add folds a change in. A node that came and went between two looks leaves nothing.
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

// publish makes a snapshot the current one and tells the subscribers. A new subscription sees either the snapshot or the
// change to it.
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
