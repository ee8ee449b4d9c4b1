package distribute

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
)

// maxFlight is how many unacknowledged netmaps are remembered per node. A node that comes back with an older one gets a
// snapshot.
const maxFlight = 8

// Stream is the connection of a node. Its methods are called from any goroutine and must not block.
type Stream interface {
	// Wake announces that Session.Next may have something.
	Wake()
	// End closes the stream with a refusal.
	End(*refusal.Refusal)
}

// Update is what a node is sent: either a snapshot or a delta.
type Update struct {
	Netmap *proto.Netmap
	Delta  *proto.Delta
}

// record is what the hub knows about one node.
type record struct {
	id proto.NodeID

	// Guarded by Hub.mu.
	session  *Session
	sessions uint64        // how many there were
	place    *list.Element // in Hub.away while there is no session
	left     time.Time

	mu       sync.Mutex
	turn     uint64 // of the last session that began: a stream that was replaced may still be writing
	features []string
	computed proto.Version // version of the snapshot that wanted was last made from
	wanted   *proto.Netmap // nil while the source does not contain the node
	since    time.Time     // when the node began to lag
	sent     []*proto.Netmap
	delta    *proto.Delta // from the last sent to wanted, if already known
	acked    proto.Version
}

// lags reports whether the node enforces less than the last version that changed its netmap. The caller holds r.mu.
func (r *record) lags() bool { return r.wanted != nil && r.acked.Less(r.wanted.Version) }

func (r *record) lastSent() *proto.Netmap {
	if len(r.sent) == 0 {
		return nil
	}
	return r.sent[len(r.sent)-1]
}

// begin prepares the record for a stream of a node that claims to enforce applied, and returns the version that it is
// believed to enforce. A delta is possible only if that version was sent to the node. If a later session has begun already, ok
// is false.
func (r *record) begin(turn uint64, features []string, applied, now proto.Version) (enforced proto.Version, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if turn < r.turn {
		return proto.Version{}, false
	}
	r.turn = turn
	if !slices.Equal(features, r.features) {
		r.features = slices.Clone(features)
		r.sent, r.wanted, r.computed = nil, nil, proto.Version{}
	}
	i := slices.IndexFunc(r.sent, func(nm *proto.Netmap) bool { return nm.Version == applied })
	if i < 0 {
		r.sent = nil
	} else {
		r.sent = []*proto.Netmap{r.sent[i]}
	}
	r.delta = nil
	if r.acked = applied; i < 0 && !applied.Less(now) {
		r.acked = proto.Version{}
	}
	return r.acked, true
}

// refresh recomputes wanted from a source. It reports whether there is something to send.
func (r *record) refresh(s *bound, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := s.Snapshot.Version(); v.Less(r.computed) || v == r.computed {
		return r.wanted != r.lastSent()
	}
	nm := s.netmap(r.id, r.features)
	if nm == nil {
		return false
	}
	r.computed = nm.Version
	last := r.lastSent()
	if r.wanted != nil && r.wanted != last && proto.Diff(r.wanted, nm).Empty() {
		return true
	}
	var delta *proto.Delta
	if last != nil {
		if delta = proto.Diff(last, nm); delta.Empty() { // nothing changed, or the change was undone before it was sent
			r.wanted, r.delta = last, nil
			return false
		}
	}
	if !r.lags() {
		r.since = now
	}
	r.wanted, r.delta = nm, delta
	return true
}

// next returns what to send in a session and marks it as sent. A session that was replaced gets nothing: what it took, the new
// one would not be sent.
func (r *record) next(turn uint64) (Update, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.lastSent()
	if turn != r.turn || r.wanted == nil || r.wanted == last {
		return Update{}, false
	}
	u := Update{Delta: r.delta}
	r.delta = nil
	switch {
	case last == nil:
		u = Update{Netmap: r.wanted}
	case u.Delta == nil: // the stream began at an older version
		if u.Delta = proto.Diff(last, r.wanted); u.Delta.Empty() {
			r.wanted = last
			return Update{}, false
		}
	}
	if r.sent = append(r.sent, r.wanted); len(r.sent) > maxFlight {
		r.sent = slices.Delete(r.sent, 0, 1)
	}
	return u, true
}

// ack notes that the node enforces a version; ok is false if it was not sent that version, or if the session was replaced. It
// reports whether that is news and, if the node is now current, how long it lagged.
func (r *record) ack(turn uint64, v proto.Version, now time.Time) (lagged time.Duration, news, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if turn != r.turn {
		return 0, false, false
	}
	i := slices.IndexFunc(r.sent, func(nm *proto.Netmap) bool { return nm.Version == v })
	if i < 0 || !r.acked.Less(v) {
		return 0, false, i >= 0
	}
	r.sent = slices.Delete(r.sent, 0, i)
	r.acked = v
	if r.lags() {
		return 0, true, true
	}
	return now.Sub(r.since), true, true
}
