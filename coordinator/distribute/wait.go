package distribute

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Status summarizes which nodes enforce the policy.
type Status struct {
	Version  proto.Version // of the newest change processed
	Nodes    int           // trusted nodes that have not lapsed
	Laggards []Laggard     // sorted by name
}

// Laggard is a node that has not acknowledged the last version that changed its netmap.
type Laggard struct {
	ID              proto.NodeID
	Name            string
	Connected       bool
	Applied, Wanted proto.Version
	Lag             time.Duration
}

// Status inspects all nodes. A node not seen since the coordinator started counts as lagging: nobody knows what it enforces.
func (h *Hub) Status() Status {
	s := h.Source()
	now := h.config.Clock()
	st := Status{Version: s.Snapshot.Version()}
	for id := range s.Snapshot.All() {
		n, ok := counted(s.Snapshot, id)
		if !ok {
			continue
		}
		st.Nodes++
		l := Laggard{ID: id, Name: n.Name, Wanted: st.Version, Lag: now.Sub(n.Created)}
		if n.Created.Before(h.started) {
			l.Lag = now.Sub(h.started)
		}
		h.mu.Lock()
		r := h.nodes[id]
		l.Connected = r != nil && r.session != nil
		h.mu.Unlock()
		if r != nil && !r.describe(&l, now) {
			continue
		}
		st.Laggards = append(st.Laggards, l)
	}
	slices.SortFunc(st.Laggards, func(a, b Laggard) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return st
}

// counted returns a node if anyone may still trust it: nobody waits for the others.
func counted(s *directory.Snapshot, id proto.NodeID) (*directory.Node, bool) {
	n, known := s.Lookup(id)
	return n, known && !n.Barred() && !s.Lapsed(id)
}

// describe fills in what the record knows and reports whether the node lags.
func (r *record) describe(l *Laggard, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wanted == nil {
		return true
	}
	l.Applied, l.Wanted, l.Lag = r.acked, r.wanted.Version, now.Sub(r.since)
	return r.lags()
}

// Applied returns the version that a node enforces, as far as is known.
func (h *Hub) Applied(id proto.NodeID) proto.Version {
	h.mu.Lock()
	r := h.nodes[id]
	h.mu.Unlock()
	if r == nil {
		return proto.Version{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acked
}

// Connected reports whether a node has a session.
func (h *Hub) Connected(id proto.NodeID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.nodes[id]
	return r != nil && r.session != nil
}

// Settled waits until version v of the directory has been processed, and returns the status.
func (h *Hub) Settled(ctx context.Context, v proto.Version) Status {
	h.waits.settle(ctx, v)
	return h.Status()
}

// Await waits until all of ids enforce what they should after version v of the directory, or until ctx ends. It returns how
// many do.
func (h *Hub) Await(ctx context.Context, ids []proto.NodeID, v proto.Version) int {
	if !h.waits.settle(ctx, v) {
		return 0
	}
	w := h.waits.add(func() map[proto.NodeID]proto.Version { return h.behind(ids) })
	defer h.waits.remove(w)
	select {
	case <-w.done:
	case <-ctx.Done():
	}
	return len(ids) - h.waits.left(w)
}

// AwaitAll waits until no node lags, or until ctx ends.
func (h *Hub) AwaitAll(ctx context.Context, v proto.Version) Status {
	for {
		if !h.waits.settle(ctx, v) {
			return h.Status()
		}
		st := h.Status()
		if len(st.Laggards) == 0 || ctx.Err() != nil {
			return st
		}
		ids := make([]proto.NodeID, len(st.Laggards))
		for i, l := range st.Laggards {
			ids[i] = l.ID
		}
		h.Await(ctx, ids, v)
	}
}

// behind returns the nodes among ids that lag, with the version that each must acknowledge.
func (h *Hub) behind(ids []proto.NodeID) map[proto.NodeID]proto.Version {
	left := make(map[proto.NodeID]proto.Version)
	s := h.Source().Snapshot
	for _, id := range ids {
		if _, ok := counted(s, id); !ok {
			continue
		}
		h.mu.Lock()
		r := h.nodes[id]
		h.mu.Unlock()
		if r == nil {
			left[id] = s.Version()
			continue
		}
		r.mu.Lock()
		if r.wanted == nil {
			left[id] = s.Version()
		} else if r.lags() {
			left[id] = r.wanted.Version
		}
		r.mu.Unlock()
	}
	return left
}

// waits tracks the callers waiting for acknowledgements.
type waits struct {
	mu      sync.Mutex
	flushed proto.Version
	next    chan struct{} // closed at the next flush; nil if nobody waits
	all     map[*wait]struct{}
	ended   bool
}

type wait struct {
	left map[proto.NodeID]proto.Version
	done chan struct{}
}

func (w *waits) flush(v proto.Version) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flushed = v
	if w.next != nil {
		close(w.next)
		w.next = nil
	}
}

// settle waits until version v has been processed. It returns false if ctx ends or the hub closes first.
func (w *waits) settle(ctx context.Context, v proto.Version) bool {
	for {
		w.mu.Lock()
		if !w.flushed.Less(v) || w.ended {
			ended := w.ended
			w.mu.Unlock()
			return !ended
		}
		if w.next == nil {
			w.next = make(chan struct{})
		}
		next := w.next
		w.mu.Unlock()
		select {
		case <-next:
		case <-ctx.Done():
			return false
		}
	}
}

// add starts a wait for the acknowledgements that find returns. It blocks acknowledgements meanwhile, so that none is missed.
func (w *waits) add(find func() map[proto.NodeID]proto.Version) *wait {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := &wait{left: find(), done: make(chan struct{})}
	if len(x.left) == 0 || w.ended {
		close(x.done)
		return x
	}
	if w.all == nil {
		w.all = make(map[*wait]struct{})
	}
	w.all[x] = struct{}{}
	return x
}

func (w *waits) remove(x *wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.all, x)
}

func (w *waits) left(x *wait) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(x.left)
}

func (w *waits) acked(id proto.NodeID, v proto.Version) {
	w.strike(id, func(need proto.Version) bool { return !v.Less(need) })
}

// gone removes a node that no longer counts from all waits: there is nothing it could enforce.
func (w *waits) gone(id proto.NodeID) { w.strike(id, func(proto.Version) bool { return true }) }

func (w *waits) strike(id proto.NodeID, enough func(need proto.Version) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for x := range w.all {
		if need, ok := x.left[id]; ok && enough(need) {
			w.drop(x, id)
		}
	}
}

// drop removes a node from a wait. The caller holds w.mu.
func (w *waits) drop(x *wait, id proto.NodeID) {
	delete(x.left, id)
	if len(x.left) == 0 {
		close(x.done)
		delete(w.all, x)
	}
}

// review asks behind again about nodes whose netmaps were looked at: a change that was undone before it was sent is never
// acknowledged.
func (w *waits) review(behind func([]proto.NodeID) map[proto.NodeID]proto.Version, ids ...proto.NodeID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.all) == 0 {
		return
	}
	needs := behind(ids)
	for x := range w.all {
		for _, id := range ids {
			before, waiting := x.left[id]
			need, lags := needs[id]
			switch {
			case !waiting:
			case !lags:
				w.drop(x, id)
			case need.Less(before):
				x.left[id] = need
			}
		}
	}
}

func (w *waits) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.next != nil {
		close(w.next)
		w.next = nil
	}
	for x := range w.all {
		close(x.done)
	}
	w.all = nil
}
