package distribute

import (
	"container/list"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
)

// maxFlight is how many netmaps a node may have been sent without an acknowledgement before the older ones are forgotten;
// a node that comes back with a forgotten one gets a snapshot.
const maxFlight = 8

// Stream is the connection of a node. Its methods are called from any goroutine and must not wait.
type Stream interface {
	// Wake says that Session.Next may have something.
	Wake()
	// End closes the stream with a refusal.
	End(*refusal.Refusal)
}

// Update is what a node is sent: a snapshot or a delta.
type Update struct {
	Netmap *proto.Netmap
	Delta  *proto.Delta
}

// record is what the hub knows of one node.
type record struct {
	id proto.NodeID

	// Guarded by Hub.mu.
	session *Session
	place   *list.Element // in Hub.away while there is no session
	left    time.Time

	mu       sync.Mutex
	features []string
	computed proto.Version // of the snapshot that wanted was made from last
	wanted   *proto.Netmap // nil while the node is not in the source yet
	since    time.Time     // when the node began to lag
	sent     []*proto.Netmap
	delta    *proto.Delta // from the last sent to wanted, where it is known already
	acked    proto.Version
}

// lags says whether the node enforces less than the last version that changed its netmap. Called with the lock held.
func (r *record) lags() bool { return r.wanted != nil && r.acked.Less(r.wanted.Version) }

func (r *record) lastSent() *proto.Netmap {
	if len(r.sent) == 0 {
		return nil
	}
	return r.sent[len(r.sent)-1]
}

// begin prepares the record for a stream of a node that enforces a version already, and answers which one that is as far as
// it can be believed. Whether a delta can lead on from there is known only if that version is one that was sent.
func (r *record) begin(features []string, applied proto.Version, now proto.Version) proto.Version {
	r.mu.Lock()
	defer r.mu.Unlock()
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
	return r.acked
}

// refresh makes wanted again from a source. It answers whether there is something to send now.
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
		if delta = proto.Diff(last, nm); delta.Empty() { // nothing changed, or it changed back before it was sent
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

// next takes what to send.
func (r *record) next() (Update, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.lastSent()
	if r.wanted == nil || r.wanted == last {
		return Update{}, false
	}
	u := Update{Delta: r.delta}
	r.delta = nil
	switch {
	case last == nil:
		u = Update{Netmap: r.wanted}
	case u.Delta == nil: // a stream that began at an older one
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

// ack notes that the node enforces a version; ok is false for one that it was not sent. It answers whether that is news and,
// if the node is current by it, how long it lagged.
func (r *record) ack(v proto.Version, now time.Time) (lagged time.Duration, news, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
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
