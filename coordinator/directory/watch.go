package directory

import (
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// watches holds the watches on nodes and candidates.
type watches struct {
	mu  sync.Mutex
	all map[string]map[*Watch]struct{}
}

// Watch tells once when to look again at a node or candidate.
type Watch struct {
	changed chan struct{}
	owner   *watches
	key     string
}

// Changed is closed when there is something to look at. Changes before the watch began are not reported.
func (w *Watch) Changed() <-chan struct{} { return w.changed }

// Close ends the watch. It may be called more than once.
func (w *Watch) Close() {
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	set := w.owner.all[w.key]
	delete(set, w)
	if len(set) == 0 {
		delete(w.owner.all, w.key)
	}
}

// WatchNode watches for a change of a node or of the policy. The caller must Close it.
func (d *Directory) WatchNode(id proto.NodeID) *Watch { return d.watches.add("n" + idKey(id)) }

// WatchCandidate watches for a machine being judged or forgotten, or a change of the policy. The caller must Close it.
func (d *Directory) WatchCandidate(k key.DevicePublic) *Watch {
	return d.watches.add("c" + deviceKey(k))
}

func (x *watches) add(k string) *Watch {
	w := &Watch{changed: make(chan struct{}), owner: x, key: k}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.all == nil {
		x.all = make(map[string]map[*Watch]struct{})
	}
	if x.all[k] == nil {
		x.all[k] = make(map[*Watch]struct{})
	}
	x.all[k][w] = struct{}{}
	return w
}

// tell wakes the watches that a transaction concerns, each only once.
func (x *watches) tell(t *tx) {
	x.mu.Lock()
	defer x.mu.Unlock()
	wake := func(k string) {
		for w := range x.all[k] {
			close(w.changed)
		}
		delete(x.all, k)
	}
	if t.policy {
		for k := range x.all {
			wake(k)
		}
		return
	}
	for _, id := range t.nodes {
		wake("n" + idKey(id))
	}
	for _, k := range t.judged {
		wake("c" + deviceKey(k))
	}
}
