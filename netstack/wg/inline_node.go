package wg

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// node is a peer as Inline sees it. Its cfg and remotes change only while mu of the engine is held for writing.
type node struct {
	id      proto.NodeID
	cfg     PeerConfig
	remotes []*remoteKey // in the order of cfg.Keys
	rx, tx  atomic.Uint64
	drops   atomic.Pointer[drops] // nil if there are none
	told    atomic.Int64          // when the host was last told that a packet was too large, in Unix nanoseconds

	mu       sync.Mutex
	endpoint conn.Endpoint // nil if unknown
	known    bool          // an authentic packet came from endpoint
	home     netip.Addr    // source of the last authentic packet; zero if none came
	peer     *session.Peer // nil while asleep
	pairs    []*session.Pair
	effects  []session.Effect // kept to reuse its capacity
	waiting  [][]byte         // packets waiting for a session, with room for header and tag
	shaken   time.Time        // last handshake before it fell asleep
	shakes   uint64           // completed handshakes
	missed   uint64           // unanswered ones
	armed    time.Time        // when its timer is due; zero if not set

	timer timer

	batch []int // indexes of its packets in the device reader's batch
}

// remoteKey is a node key of a peer.
type remoteKey struct {
	public key.NodePublic
	since  time.Time
	noise  *noise.Remote // nil until the peer first wakes
	seen   *session.Seen
}

// entry is what an index refers to: a session, or a handshake if session is nil.
type entry struct {
	node    *node
	session *session.Session
}

// SetPeer implements Engine.
func (e *Inline) SetPeer(cfg PeerConfig) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.setPeer(cfg); err != nil {
		return fmt.Errorf("peer %s: %w", cfg.ID, err)
	}
	return nil
}

// setPeer changes nothing until everything has been checked. The caller holds mu for writing.
func (e *Inline) setPeer(cfg PeerConfig) error {
	if err := e.check(cfg); err != nil {
		return err
	}
	n := e.nodes[cfg.ID]
	var before PeerConfig
	if n != nil {
		before = n.cfg
	}
	var endpoint conn.Endpoint
	left := before.Course != nil && cfg.Course == nil
	if left && len(cfg.Endpoints) == 0 {
		if at := before.Course.Known(); at.IsValid() {
			cfg.Endpoints = []netip.AddrPort{at}
		}
	}
	moved := cfg.Course == nil && len(cfg.Endpoints) > 0 && (left || !sameCandidates(before.Endpoints, cfg.Endpoints))
	if moved {
		var err error
		if endpoint, err = e.bind.ParseEndpoint(bind.FormatCandidates(cfg.Endpoints)); err != nil {
			return err
		}
	}
	if len(cfg.Endpoints) == 0 {
		cfg.Endpoints = before.Endpoints
	}
	cfg.Keys, cfg.Routes, cfg.Endpoints = slices.Clone(cfg.Keys), slices.Clone(cfg.Routes), slices.Clone(cfg.Endpoints)
	if n == nil {
		n = &node{id: cfg.ID}
		e.nodes[cfg.ID] = n
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case cfg.Course != nil:
		n.endpoint, n.known = cfg.Course, false
	case moved || left:
		n.endpoint, n.known = endpoint, false
	}
	e.apply(n, cfg, e.now())
	return nil
}

// apply updates n to cfg. The caller holds both locks.
func (e *Inline) apply(n *node, cfg PeerConfig, now time.Time) {
	before := n.cfg
	n.cfg = cfg
	if before.Addrs != cfg.Addrs {
		for _, a := range before.Addrs.Slice() {
			if e.byAddr[a] == n {
				delete(e.byAddr, a)
			}
		}
		for _, a := range cfg.Addrs.Slice() {
			if a.IsValid() {
				e.byAddr[a] = n
			}
		}
	}
	e.setRoutes(n, before.Routes, cfg.Routes)
	if !slices.Equal(before.Keys, cfg.Keys) {
		e.setRemotes(n, now)
	}
	if n.peer != nil && before.PSK != cfg.PSK {
		e.step(n, now, session.SetPSK{PSK: cfg.PSK})
	}
	switch {
	case n.peer == nil && cfg.Keepalive > 0:
		e.wake(n, now)
	case n.peer != nil && before.Keepalive != cfg.Keepalive:
		e.step(n, now, session.SetKeepalive{Interval: cfg.Keepalive})
	}
	e.settle(n)
}

// setRemotes updates n.remotes to the keys in n.cfg. The state of those that stay is kept.
func (e *Inline) setRemotes(n *node, now time.Time) {
	old := n.remotes
	n.remotes = make([]*remoteKey, 0, len(n.cfg.Keys))
	for _, k := range n.cfg.Keys {
		i := slices.IndexFunc(old, func(r *remoteKey) bool { return r.public == k })
		if i >= 0 {
			n.remotes = append(n.remotes, old[i])
			continue
		}
		n.remotes = append(n.remotes, &remoteKey{public: k, since: now, seen: e.seen.take(k)})
		e.byKey[k.Array()] = n
	}
	for _, r := range old {
		if !slices.Contains(n.remotes, r) {
			e.forget(r, now)
		}
	}
	if n.peer != nil {
		e.pairUp(n, e.locals, n.remotes, now)
	}
}

// forget drops a peer's key, but keeps its replay protection.
func (e *Inline) forget(r *remoteKey, now time.Time) {
	delete(e.byKey, r.public.Array())
	e.seen.put(r.public, r.seen, now)
}

// check returns an error if a peer cannot be configured as cfg says.
func (e *Inline) check(cfg PeerConfig) error {
	switch {
	case e.ended() != nil:
		return ErrClosed
	case cfg.ID == 0:
		return errors.New("no node id")
	case len(cfg.Keys) == 0:
		return errors.New("no node key")
	case len(cfg.Keys) > maxRemotes:
		return fmt.Errorf("%d node keys: want %d at most", len(cfg.Keys), maxRemotes)
	case !cfg.Addrs.V4.IsValid() && !cfg.Addrs.V6.IsValid():
		return errors.New("no address in the mesh")
	case cfg.Keepalive < 0 || cfg.Keepalive%time.Second != 0 || cfg.Keepalive/time.Second > 65535:
		return fmt.Errorf("keepalive of %s: want whole seconds up to 65535", cfg.Keepalive)
	}
	for i, k := range cfg.Keys {
		switch owner := e.byKey[k.Array()]; {
		case k.IsZero():
			return errors.New("no node key")
		case slices.Contains(cfg.Keys[:i], k):
			return errors.New("the same node key twice")
		case e.local(k.Array()) != nil:
			return errors.New("it has this node's own key")
		case owner != nil && owner.id != cfg.ID:
			return fmt.Errorf("its node key is that of peer %s", owner.id)
		}
	}
	return checkRoutes(cfg.Routes)
}

// AddRemoteKey implements Engine.
func (e *Inline) AddRemoteKey(id proto.NodeID, k key.NodePublic) error {
	return e.changeKeys(id, func(keys []key.NodePublic) []key.NodePublic {
		return append([]key.NodePublic{k}, slices.DeleteFunc(keys, func(o key.NodePublic) bool { return o == k })...)
	})
}

// RemoveRemoteKey implements Engine.
func (e *Inline) RemoveRemoteKey(id proto.NodeID, k key.NodePublic) error {
	return e.changeKeys(id, func(keys []key.NodePublic) []key.NodePublic {
		return slices.DeleteFunc(keys, func(o key.NodePublic) bool { return o == k })
	})
}

func (e *Inline) changeKeys(id proto.NodeID, change func([]key.NodePublic) []key.NodePublic) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ended(); err != nil {
		return err
	}
	n := e.nodes[id]
	if n == nil {
		return fmt.Errorf("change the keys of peer %s: there is no such peer", id)
	}
	cfg := n.cfg
	cfg.Keys = change(slices.Clone(cfg.Keys))
	if err := e.setPeer(cfg); err != nil {
		return fmt.Errorf("change the keys of peer %s: %w", id, err)
	}
	return nil
}

// RemovePeer implements Engine.
func (e *Inline) RemovePeer(id proto.NodeID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := e.nodes[id]
	if n == nil {
		return nil
	}
	delete(e.nodes, id)
	for _, a := range n.cfg.Addrs.Slice() {
		if e.byAddr[a] == n {
			delete(e.byAddr, a)
		}
	}
	e.setRoutes(n, n.cfg.Routes, nil)
	now := e.now()
	for _, r := range n.remotes {
		e.forget(r, now)
	}
	e.unplug(n)
	return nil
}

// unplug ends a peer's sessions, handshake and timer, and drops its waiting packets. The caller holds mu for writing.
func (e *Inline) unplug(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e.dropWaiting(n)
	if n.peer != nil {
		e.step(n, e.now(), session.SetPairs{})
		e.sleep(n)
	}
	e.timers.remove(n)
	e.homes.move(&n.home, netip.Addr{})
}

// Probe implements Engine.
func (e *Inline) Probe(id proto.NodeID, candidates []netip.AddrPort) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.ended(); err != nil {
		return err
	}
	n := e.nodes[id]
	if n == nil {
		return fmt.Errorf("probe peer %s: there is no such peer", id)
	}
	if len(candidates) == 0 {
		candidates = n.cfg.Endpoints
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(candidates) > 0 && n.cfg.Course == nil {
		endpoint, err := e.bind.ParseEndpoint(bind.FormatCandidates(candidates))
		if err != nil {
			return fmt.Errorf("probe peer %s: %w", id, err)
		}
		n.endpoint, n.known = endpoint, false
		n.cfg.Endpoints = slices.Clone(candidates)
	}
	now := e.now()
	e.wake(n, now)
	e.step(n, now, session.Probe{})
	e.settle(n)
	return nil
}

// wake creates the state needed to talk to a peer. The caller holds the node's lock.
func (e *Inline) wake(n *node, now time.Time) {
	if n.peer == nil {
		e.rouse(n, now)
		e.equip(n, now)
	}
}

// rouse wakes a peer that has no pairs yet.
func (e *Inline) rouse(n *node, now time.Time) {
	n.peer = session.New(session.Config{
		Higher: e.self > n.id,
		Index:  func() uint32 { return e.indexes.reserve(n) },
		Random: rand.Reader,
		Limits: e.limits,
	})
	e.active.add(n)
	e.step(n, now, session.SetPSK{PSK: n.cfg.PSK})
}

// equip gives a roused peer all pairs of our keys and its own, and its keepalive interval.
func (e *Inline) equip(n *node, now time.Time) {
	e.pairUp(n, e.locals, n.remotes, now)
	if n.cfg.Keepalive > 0 {
		e.step(n, now, session.SetKeepalive{Interval: n.cfg.Keepalive})
	}
}

// sleep drops the state that wake made. The caller holds the node's lock.
func (e *Inline) sleep(n *node) {
	if t := n.peer.LastHandshake(); t.After(n.shaken) {
		n.shaken = t
	}
	n.peer, n.pairs, n.effects = nil, nil, nil
	e.active.remove(n)
}

// settle puts a peer that has nothing to do to sleep, and otherwise sets its timer.
func (e *Inline) settle(n *node) {
	switch {
	case n.peer == nil:
	case n.peer.Idle() && len(n.waiting) == 0:
		e.sleep(n)
	default:
		if next := n.peer.Next(); !next.IsZero() && (n.armed.IsZero() || next.Before(n.armed)) {
			n.armed = next
			e.timers.set(n, next)
		}
	}
}

// pairUp gives a peer the pairs of keys of ours and of its own, in this order.
func (e *Inline) pairUp(n *node, locals []*local, remotes []*remoteKey, now time.Time) {
	list := make([]*session.Pair, 0, len(locals)*len(remotes))
	for _, l := range locals {
		for _, r := range remotes {
			p, err := n.pair(l, r)
			if err != nil {
				e.log.Debug("a peer's key is of no use", "node", n.id, "err", err)
				continue
			}
			list = append(list, p)
		}
	}
	n.pairs = list
	e.step(n, now, session.SetPairs{Pairs: list})
}

// pair returns the pair of two keys, creating it if needed.
func (n *node) pair(l *local, r *remoteKey) (*session.Pair, error) {
	for _, p := range n.pairs {
		if p.Local == l.Local && p.Remote == r.noise {
			return p, nil
		}
	}
	if r.noise == nil {
		k, err := noise.NewRemote(r.public.Array())
		if err != nil {
			return nil, err
		}
		r.noise = k
	}
	p, err := noise.NewPair(l.Local, r.noise)
	if err != nil {
		return nil, err
	}
	return &session.Pair{Pair: p, Seen: r.seen}, nil
}

// step passes an event to the peer and carries out the effects. The caller holds the node's lock.
func (e *Inline) step(n *node, now time.Time, ev session.Event) { e.stepFrom(n, now, ev, nil, 0) }

// stepFrom is step for a message received from an endpoint.
func (e *Inline) stepFrom(n *node, now time.Time, ev session.Event, from conn.Endpoint, size int) {
	room := n.effects
	n.effects = nil
	effects := n.peer.Step(now, ev, room[:0])
	for _, f := range effects {
		switch f := f.(type) {
		case session.Heard:
			n.rx.Add(uint64(size))
			e.cameFrom(n, from)
		case session.Message:
			e.send(n, n.endpoint, [][]byte{f.Bytes})
		case session.Keepalive:
			e.sendKeepalive(n, now)
		case session.Ready:
			n.shakes++
			switch {
			case len(n.waiting) > 0:
				e.flush(n, now)
			case f.Confirm:
				e.sendKeepalive(n, now)
				e.step(n, now, session.Sent{})
			}
		case session.GiveUp:
			e.lose(n, DropNoAnswer, len(n.waiting))
			e.dropWaiting(n)
		case session.Unanswered:
			n.missed++
		case session.Dropped:
			e.lose(n, dropOf[f.Why], 1)
		case session.ForgetSource:
			if n.endpoint != nil {
				n.endpoint.ClearSrc()
			}
		case session.Install:
			e.indexes.set(f.Session.Index, entry{n, f.Session})
		case session.Release:
			e.indexes.release(f.Index)
		}
	}
	clear(effects)
	n.effects = effects[:0]
}

// dropOf maps the errors of sessions and handshakes to drop reasons.
var dropOf = map[error]Drop{
	session.ErrForged: DropForged, session.ErrReplay: DropReplay, session.ErrStale: DropStale, session.ErrUnknown: DropNoSession,
}

// active is the set of awake peers.
type active struct {
	mu  sync.Mutex
	all map[*node]struct{}
}

func (a *active) add(n *node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all[n] = struct{}{}
}

func (a *active) remove(n *node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, n)
}

func (a *active) list() []*node {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Keys(a.all))
}

// archive keeps the replay protection of keys that no peer has any longer: their owner may come back while the key is still
// valid.
type archive struct {
	all   map[key.NodePublic]archived
	queue []archived // oldest first
}

type archived struct {
	key  key.NodePublic
	seen *session.Seen
	at   time.Time
}

const (
	archiveTime = 24 * time.Hour // longer than a node key is valid
	maxArchived = 1 << 16
)

func (a *archive) take(k key.NodePublic) *session.Seen {
	if x, ok := a.all[k]; ok {
		return x.seen
	}
	return &session.Seen{}
}

func (a *archive) put(k key.NodePublic, s *session.Seen, now time.Time) {
	if s.At.IsZero() {
		return
	}
	if a.all == nil {
		a.all = map[key.NodePublic]archived{}
	}
	x := archived{k, s, now}
	a.all[k] = x
	a.queue = append(a.queue, x)
	for len(a.queue) > maxArchived || (len(a.queue) > 0 && now.Sub(a.queue[0].at) > archiveTime) {
		if old := a.queue[0]; a.all[old.key] == old { // unless it was added again since
			delete(a.all, old.key)
		}
		a.queue = a.queue[1:]
	}
}
