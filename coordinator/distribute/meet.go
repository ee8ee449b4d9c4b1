package distribute

import (
	"cmp"
	"slices"
	"sync"

	"github.com/redoubt-mesh/redoubt/proto"
)

// meetings are those who want to know when it may be others that meet.
type meetings struct {
	mu  sync.Mutex
	all map[*Meetings]func(changed []proto.NodeID)
}

// Meetings ends what WatchMeetings began.
type Meetings struct{ hub *Hub }

// WatchMeetings has f called after each change that the netmaps of connected nodes have caught up with. Changed are nodes that may
// not be trusted any more. It is called by the hub's goroutine, and must not wait.
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

// Close waits for a call that is under way.
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

// Meet says whether two nodes are peers, by the netmap that one of them is sent: whoever is a peer has the other as one. Of
// nodes that no netmap was made for it is found out anew.
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

// peers are those of the netmap that the node should have; false where there is none yet.
func (r *record) peers() ([]*proto.Peer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.wanted == nil {
		return nil, false
	}
	return r.wanted.Peers, true
}

// Peers are the nodes that one may meet, sorted; none of a node that is not trusted.
func (h *Hub) Peers(id proto.NodeID) []proto.NodeID {
	source := *h.source.Load()
	if !source.Snapshot.Trusted(id) {
		return nil
	}
	h.mu.Lock()
	r := h.nodes[id]
	h.mu.Unlock()
	if r != nil {
		if peers, known := r.peers(); known {
			return ids(peers)
		}
	}
	if nm := Netmap(source, id, proto.Features()); nm != nil {
		return ids(nm.Peers)
	}
	return nil
}

func ids(peers []*proto.Peer) []proto.NodeID {
	out := make([]proto.NodeID, len(peers))
	for i, p := range peers {
		out[i] = p.ID
	}
	return out
}
