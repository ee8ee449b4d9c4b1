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

// Meet reports whether two nodes are peers, according to the netmap of a or, if it has none yet, that of b: rules tie nodes
// to each other in both directions. If neither has one, Meet computes a's.
func (h *Hub) Meet(a, b proto.NodeID) bool {
	source := *h.source.Load()
	if !source.Snapshot.Trusted(a) || !source.Snapshot.Trusted(b) {
		return false
	}
	for _, pair := range [][2]proto.NodeID{{a, b}, {b, a}} {
		h.mu.Lock()
		r := h.nodes[pair[0]]
		h.mu.Unlock()
		if r == nil {
			continue
		}
		if peers, known := r.peers(); known {
			return has(peers, pair[1])
		}
	}
	nm := Netmap(source, a, proto.Features())
	return nm != nil && has(nm.Peers, b)
}

func has(peers []*proto.Peer, id proto.NodeID) bool {
	_, ok := slices.BinarySearchFunc(peers, id, func(p *proto.Peer, id proto.NodeID) int { return cmp.Compare(p.ID, id) })
	return ok
}

// peers returns the peers in the netmap that the node should have; false if there is none yet.
func (r *record) peers() ([]*proto.Peer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wanted == nil {
		return nil, false
	}
	return r.wanted.Peers, true
}
