package directory

import (
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// watches are who waits for something to become of a node or of a candidate.
type watches struct {
	mu  sync.Mutex
	all map[string]map[*Watch]struct{}
}

// Watch tells when to look again at one node or candidate: once.
type Watch struct {
	changed chan struct{}
	owner   *watches
	key     string
}

// Changed is closed when there is something to look at. What changed before the watch began is not told.
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

// WatchNode tells when a node has changed, or the policy has. Close it.
func (d *Directory) WatchNode(id proto.NodeID) *Watch { return d.watches.add("n" + idKey(id)) }

// WatchCandidate tells when a machine was judged or forgotten, or the policy has changed. Close it.
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

// tell wakes those that a transaction concerns; each only once.
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
