package distribute

import (
	"cmp"
	"slices"
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
)

// meetings holds the callbacks registered with WatchMeetings.
type meetings struct {
	mu  sync.Mutex
	all map[*Meetings]func(changed []proto.NodeID)
}

// Meetings is a registration made by WatchMeetings.
type Meetings struct{ hub *Hub }

// WatchMeetings registers f, which is called after each change, once the netmaps of connected nodes reflect it. changed lists
// nodes that may no longer be trusted. f runs on the hub's goroutine and must not block.
func (h *Hub) WatchMeetings(f func(changed []proto.NodeID)) *Meetings {
	m := &Meetings{h}
	h.meetings.mu.Lock()
	defer h.meetings.mu.Unlock()
	if h.meetings.all == nil {
		h.meetings.all = map[*Meetings]func([]proto.NodeID){}
	}
	h.meetings.all[m] = f
	return m
}

// Close removes the registration. It waits for a call in flight.
func (m *Meetings) Close() {
	m.hub.meetings.mu.Lock()
	defer m.hub.meetings.mu.Unlock()
	delete(m.hub.meetings.all, m)
}

func (h *Hub) tellMeetings(changed []proto.NodeID) {
	h.meetings.mu.Lock()
	defer h.meetings.mu.Unlock()
	for _, f := range h.meetings.all {
		f(changed)
	}
}

// Meet reports whether two nodes are peers: both netmaps must say so, since one may be without peers, as for a node that lacks a
// feature. If only one node has a netmap, that one decides: rules tie nodes to each other in both directions. If neither has one,
// Meet computes them.
func (h *Hub) Meet(a, b proto.NodeID) bool {
	source := *h.source.Load()
	if !source.Snapshot.Trusted(a) || !source.Snapshot.Trusted(b) {
		return false
	}
	ofA, haveA := h.peers(a)
	ofB, haveB := h.peers(b)
	if !haveA && !haveB {
		return ties(source, a, b) && ties(source, b, a)
	}
	return (!haveA || has(ofA, b)) && (!haveB || has(ofB, a))
}

// ties reports whether the netmap of a has the peer b, if a has all features.
func ties(source Source, a, b proto.NodeID) bool {
	nm := Netmap(source, a, proto.Features())
	return nm != nil && has(nm.Peers, b)
}

func has(peers []*proto.Peer, id proto.NodeID) bool {
	_, ok := slices.BinarySearchFunc(peers, id, func(p *proto.Peer, id proto.NodeID) int { return cmp.Compare(p.ID, id) })
	return ok
}

// peers returns the peers in the netmap that a node should have; false if there is none yet.
func (h *Hub) peers(id proto.NodeID) ([]*proto.Peer, bool) {
	h.mu.Lock()
	r := h.nodes[id]
	h.mu.Unlock()
	if r == nil {
		return nil, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wanted == nil {
		return nil, false
	}
	return r.wanted.Peers, true
}
