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
	// fold is how long changes are collected before they are sent as one.
	fold = 20 * time.Millisecond
	// foldCalm is the same for changes that do not hurry.
	foldCalm = time.Minute
	// maxAway and maxAwayTime bound what is kept of nodes that went away.
	maxAway     = 8192
	maxAwayTime = 2 * time.Hour
)

// Config is what a hub needs.
type Config struct {
	Directory *directory.Directory
	Clock     func() time.Time
	Log       *slog.Logger
	Registry  prometheus.Registerer
	// Compile makes the program of the policy in force, nil for none. What cannot be compiled permits nothing.
	Compile func(*directory.Policy) *compile.Program
	// Authorities answers the intermediate certificates that are in use, sorted.
	Authorities func() [][]byte
	Outage      proto.Outage
}

// Hub tells nodes what changed. See the package comment.
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
	away  *list.List // of *record without a session, the one that left first in front
	// fresh are nodes that attached before the hub heard of them. If one is gone again before the hub looks, the change that
	// it looks at says nothing of it.
	fresh []proto.NodeID
	// talks are peers of nodes that renew: they learn of it at once.
	talks map[proto.NodeID][]proto.NodeID

	waits    waits
	meetings meetings

	// The loop's own.
	calm map[proto.NodeID]struct{} // nodes that a change touches that does not hurry
}

// New starts a hub on what the directory holds now.
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

// Close stops telling nodes of changes. Sessions stay open and get nothing more. It may be called more than once.
func (h *Hub) Close() error {
	h.closing.Do(func() {
		close(h.stop)
		h.sub.Close()
	})
	<-h.done
	return nil
}

// Source is what netmaps are made of now.
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

// apply finds out whom a change can touch, and refreshes those.
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

// touch finds the nodes whose netmaps can differ after a change: they are added to dirty, and those for whom that does not hurry
// to later, all but those that talk with the node. It answers whether instead it can be all of them.
func touch(before, after Source, c directory.Change, talks map[proto.NodeID][]proto.NodeID, now time.Time, dirty, later map[proto.NodeID]struct{}) (all bool) {
	if c.Relays || before.outage() != after.outage() || ended(before, after) || !slices.EqualFunc(before.Authorities, after.Authorities, slices.Equal) {
		return true
	}
	// A change of nodes comes first, under the policy that was in force, and then one of the policy, with the nodes that there
	// are by then: what neither of the two touches is the same.
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

// ended says whether time alone has changed a policy: a rule that only watches has ended between two snapshots, or the clock was
// set back to before its end.
func ended(before, after Source) bool {
	was, is := before.Snapshot.Now(), after.Snapshot.Now()
	if is.Before(was) {
		was, is = is, was
	}
	over := func(t time.Time) bool { return was.Before(t) && !is.Before(t) }
	return slices.ContainsFunc(before.Program.Until(), over) || slices.ContainsFunc(after.Program.Until(), over)
}

// settle does what did not hurry.
func (h *Hub) settle() {
	h.refresh(h.calm)
	h.calm = make(map[proto.NodeID]struct{})
}

// expel ends the streams of nodes that are not trusted any more, and forgets them. Those that come into quarantine, or out of
// it, have to connect again.
func (h *Hub) expel(before, after Source, changed []proto.NodeID) {
	for _, id := range changed {
		n, known := after.Snapshot.Lookup(id)
		if known && !n.Dismissed() {
			h.part(before, n)
			continue
		}
		h.waits.gone(id)
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
		if why.RetryAfter > 0 { // the trust may come back
			why.RetryAfter = lookSoon
		}
		session.stream.End(why)
	}
}

// lookSoon is when a node comes back whose stream a lock has ended: to wait for the end of the lock on another one.
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

// part ends the stream of a node whose quarantine begins or ends.
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
		r.RetryAfter = time.Second // to be told that it has no peers
		session.stream.End(r)
	default:
		session.stream.End(refusal.Released())
	}
}

// Talks says which peers of a node ought to learn at once of the renewal that it is about to get; nil takes that back.
func (h *Hub) Talks(id proto.NodeID, peers []proto.NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(peers) == 0 {
		delete(h.talks, id)
		return
	}
	h.talks[id] = peers
}

// forget drops a record. Called with the lock held.
func (h *Hub) forget(r *record) {
	delete(h.nodes, r.id)
	if r.place != nil {
		h.away.Remove(r.place)
		r.place = nil
	}
}

// refresh makes the netmaps of nodes again, on all processors, and wakes the streams of those that changed.
func (h *Hub) refresh(ids map[proto.NodeID]struct{}) {
	if len(ids) == 0 {
		return
	}
	records := make([]*record, 0, len(ids))
	h.mu.Lock()
	for id := range ids {
		if r := h.nodes[id]; r != nil {
			records = append(records, r)
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

// prune forgets nodes that have been away too long.
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
