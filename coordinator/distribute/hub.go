package distribute

import (
	"container/list"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// fold is how long changes are collected before they are sent together.
	fold = 20 * time.Millisecond
	// foldCalm is the same for changes that are not urgent.
	foldCalm = time.Minute
	// maxAway and maxAwayTime bound the records kept for disconnected nodes.
	maxAway     = 8192
	maxAwayTime = 2 * time.Hour
)

// Config holds what a hub needs.
type Config struct {
	Directory *directory.Directory
	Clock     func() time.Time
	Log       *slog.Logger
	Registry  prometheus.Registerer
	// Compile compiles the policy in force, nil if there is none. A policy that does not compile permits nothing.
	Compile func(*directory.Policy) *compile.Program
	// Authorities returns the intermediate certificates in use, sorted.
	Authorities func() [][]byte
	Outage      proto.Outage
}

// Hub sends nodes the changes that affect them. See the package comment.
type Hub struct {
	config  Config
	source  atomic.Pointer[Source]
	sub     *directory.Subscription
	metrics metrics
	closing sync.Once
	started time.Time
	stop    chan struct{}
	done    chan struct{}

	mu    sync.Mutex
	nodes map[proto.NodeID]*record
	away  *list.List // of *record without a session, longest disconnected first
	// fresh lists nodes that attached before the hub saw them in the directory. If such a node is gone again before the hub
	// looks, the change that the hub sees does not mention it.
	fresh []proto.NodeID
	// talks maps a node that is renewing to the peers that must learn of the renewal at once.
	talks map[proto.NodeID][]proto.NodeID

	waits    waits
	meetings meetings

	// Owned by the loop.
	calm map[proto.NodeID]struct{} // nodes touched only by changes that are not urgent
}

// New starts a hub on the current state of the directory.
func New(c Config) *Hub {
	h := newHub(c)
	go h.run()
	return h
}

func newHub(c Config) *Hub {
	h := &Hub{
		config: c, sub: c.Directory.Subscribe(), metrics: newMetrics(c.Registry),
		started: c.Clock(), stop: make(chan struct{}), done: make(chan struct{}),
		nodes: make(map[proto.NodeID]*record), away: list.New(), talks: make(map[proto.NodeID][]proto.NodeID), calm: make(map[proto.NodeID]struct{}),
	}
	snap := h.sub.Snapshot()
	h.source.Store(&Source{Snapshot: snap, Program: c.Compile(snap.Policy()), Authorities: c.Authorities(), Outage: c.Outage, meets: new(pairs)})
	h.waits.flushed = snap.Version()
	return h
}

// Close stops sending changes to nodes. Sessions stay open but get nothing more. It may be called more than once.
func (h *Hub) Close() error {
	h.closing.Do(func() {
		close(h.stop)
		h.sub.Close()
	})
	<-h.done
	return nil
}

// Source returns what netmaps are currently made from.
func (h *Hub) Source() Source { return *h.source.Load() }

func (h *Hub) run() {
	defer close(h.done)
	defer h.waits.close()
	ready := h.sub.Ready()
	var soon, calm <-chan time.Time
	prune := time.NewTicker(time.Minute)
	defer prune.Stop()
	for {
		select {
		case <-h.stop:
			return
		case _, open := <-ready:
			if !open {
				return
			}
			if soon == nil {
				soon = time.After(fold)
			}
		case <-soon:
			soon = nil
			if c, ok := h.sub.Take(); ok {
				h.apply(c)
			}
			if calm == nil && len(h.calm) > 0 {
				calm = time.After(foldCalm)
			}
		case <-calm:
			calm = nil
			h.settle()
		case <-prune.C:
			h.prune()
		}
	}
}

// apply finds the nodes that a change can affect and refreshes them.
func (h *Hub) apply(c directory.Change) {
	before := *h.source.Load()
	after := Source{Snapshot: c.After, Program: before.Program, Authorities: h.config.Authorities(), Outage: h.config.Outage, meets: new(pairs)}
	if c.Policy {
		after.Program = h.config.Compile(c.After.Policy())
	}
	h.source.Store(&after)
	h.mu.Lock()
	fresh := h.fresh
	h.fresh = nil
	talks := make(map[proto.NodeID][]proto.NodeID)
	for _, id := range c.Nodes {
		if peers, ok := h.talks[id]; ok {
			talks[id] = peers
			delete(h.talks, id)
		}
	}
	h.mu.Unlock()
	h.expel(before, after, slices.Concat(c.Nodes, fresh))

	dirty := make(map[proto.NodeID]struct{})
	all := touch(before, after, c, talks, h.config.Clock(), dirty, h.calm)
	if !all {
		after.meets.follow(before.meets, dirty)
	}
	if all {
		h.mu.Lock()
		for id := range h.nodes {
			dirty[id] = struct{}{}
		}
		h.mu.Unlock()
	}
	for id := range dirty {
		delete(h.calm, id)
	}
	h.addRelays(after, dirty)
	h.refresh(dirty)
	h.waits.flush(c.After.Version())
	h.tellMeetings(c.Nodes)
}

// touch adds to dirty the nodes whose netmaps a change can affect, and to later those that it affects without urgency, except
// the peers that talk with the changed node. If all is true, any netmap may have changed and the sets are incomplete.
func touch(before, after Source, c directory.Change, talks map[proto.NodeID][]proto.NodeID, now time.Time, dirty, later map[proto.NodeID]struct{}) (all bool) {
	if c.Relays || before.outage() != after.outage() || ended(before, after) || !slices.EqualFunc(before.Authorities, after.Authorities, slices.Equal) {
		return true
	}
	// First apply the change of nodes under the old policy, then the change of policy to the new set of nodes: a node that
	// neither step touches keeps its netmap.
	between := before
	between.Snapshot = after.Snapshot
	was, is := before.bind(), between.bind()
	for _, id := range c.Nodes {
		if !calm(c.Before, c.After, id, now) {
			affected(was, is, id, dirty)
			continue
		}
		tied := make(map[proto.NodeID]struct{})
		affected(was, is, id, tied)
		for _, peer := range talks[id] {
			if _, ok := tied[peer]; ok {
				dirty[peer] = struct{}{}
				delete(tied, peer)
			}
		}
		maps.Copy(later, tied)
	}
	if c.Policy {
		for _, id := range compile.Changed(is.policy, after.bind().policy) {
			dirty[id] = struct{}{}
		}
	}
	return false
}

// ended reports whether time alone has changed a policy: a watch-only rule ended between the two snapshots, or the clock was
// set back to before its end.
func ended(before, after Source) bool {
	was, is := before.Snapshot.Now(), after.Snapshot.Now()
	if is.Before(was) {
		was, is = is, was
	}
	over := func(t time.Time) bool { return was.Before(t) && !is.Before(t) }
	return slices.ContainsFunc(before.Program.Until(), over) || slices.ContainsFunc(after.Program.Until(), over)
}

// settle sends the changes that were not urgent.
func (h *Hub) settle() {
	h.refresh(h.calm)
	h.calm = make(map[proto.NodeID]struct{})
}

// expel ends the streams of nodes that are no longer trusted and forgets them. Nodes that enter or leave quarantine must
// reconnect.
func (h *Hub) expel(before, after Source, changed []proto.NodeID) {
	for _, id := range changed {
		if _, ok := counted(after.Snapshot, id); !ok {
			h.waits.gone(id)
		}
		n, known := after.Snapshot.Lookup(id)
		if known && !n.Dismissed() {
			h.part(before, n)
			continue
		}
		h.mu.Lock()
		r := h.nodes[id]
		if r == nil {
			h.mu.Unlock()
			continue
		}
		h.forget(r)
		session := r.session
		h.mu.Unlock()
		if session == nil {
			continue
		}
		why := refusal.Of(n)
		if why.RetryAfter > 0 { // the lock may end
			why.RetryAfter = lookSoon
		}
		session.stream.End(why)
	}
}

// lookSoon is how soon a node whose stream a lock has ended reconnects, to wait on the new stream for the end of the lock.
const lookSoon = 2 * time.Second

// Drop ends the stream of a node.
func (h *Hub) Drop(id proto.NodeID, why *refusal.Refusal) {
	h.mu.Lock()
	r := h.nodes[id]
	var session *Session
	if r != nil {
		session = r.session
	}
	h.mu.Unlock()
	if session != nil {
		session.stream.End(why)
	}
}

// part ends the stream of a node that enters or leaves quarantine.
func (h *Hub) part(before Source, n *directory.Node) {
	old, was := before.Snapshot.Lookup(n.ID)
	if !was || (old.Quarantine == nil) == (n.Quarantine == nil) {
		return
	}
	h.mu.Lock()
	var session *Session
	if r := h.nodes[n.ID]; r != nil {
		session = r.session
	}
	h.mu.Unlock()
	switch {
	case session == nil:
	case n.Quarantine != nil:
		r := refusal.Quarantined(n.Quarantine.Why)
		r.RetryAfter = time.Second // so that it learns it has no peers
		session.stream.End(r)
	default:
		session.stream.End(refusal.Released())
	}
}

// Talks sets the peers of id that must learn at once of its upcoming renewal; nil clears them.
func (h *Hub) Talks(id proto.NodeID, peers []proto.NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(peers) == 0 {
		delete(h.talks, id)
		return
	}
	h.talks[id] = peers
}

// forget drops a record. The caller holds h.mu.
func (h *Hub) forget(r *record) {
	delete(h.nodes, r.id)
	if r.place != nil {
		h.away.Remove(r.place)
		r.place = nil
	}
}

// refresh recomputes the netmaps of nodes on all processors and wakes the streams of those that changed.
func (h *Hub) refresh(ids map[proto.NodeID]struct{}) {
	if len(ids) == 0 {
		return
	}
	records, known := make([]*record, 0, len(ids)), make([]proto.NodeID, 0, len(ids))
	h.mu.Lock()
	for id := range ids {
		if r := h.nodes[id]; r != nil {
			records, known = append(records, r), append(known, id)
		}
	}
	h.mu.Unlock()
	source, now := *h.source.Load(), h.config.Clock()
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(records)) {
		workers.Go(func() {
			source := source.bind()
			for i := int(next.Add(1)) - 1; i < len(records); i = int(next.Add(1)) - 1 {
				h.refreshOne(records[i], source, now)
			}
		})
	}
	workers.Wait()
	h.waits.review(h.behind, known...)
}

func (h *Hub) refreshOne(r *record, source *bound, now time.Time) {
	h.metrics.computed.Inc()
	if !r.refresh(source, now) {
		return
	}
	h.mu.Lock()
	session := r.session
	h.mu.Unlock()
	if session != nil {
		session.stream.Wake()
	}
}

// prune forgets nodes that have been disconnected for too long.
func (h *Hub) prune() {
	now := h.config.Clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for e := h.away.Front(); e != nil; e = h.away.Front() {
		r := e.Value.(*record)
		if h.away.Len() <= maxAway && now.Sub(r.left) < maxAwayTime {
			return
		}
		h.forget(r)
	}
}
