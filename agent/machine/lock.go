package machine

import (
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
)

// barred reports whether the coordinator does not trust this node: it has no peers and no rules.
func (m *Machine) barred() bool { return m.dismissed() || m.quarantine != "" }

// dismissed reports whether the node was revoked or locked: until that is over, there is no netmap to go by.
func (m *Machine) dismissed() bool { return m.wanted.Revoked != nil || m.wanted.Locked != nil }

// lock lets nothing pass until the coordinator serves this node again, even after a restart without a coordinator.
func (m *Machine) lock(message string) {
	if l := m.wanted.Locked; l != nil {
		if l.Message != message {
			m.wanted.Locked = &state.Revocation{At: l.At, Message: message}
			m.do(SaveWanted{m.wanted})
		}
		return
	}
	// Close first and save next: the lock must hold even if the machine goes down at this moment.
	m.wanted.Locked = &state.Revocation{At: m.now, Message: message}
	m.closeAll()
	m.do(RemovePeers{m.engineIDs()}, SaveWanted{m.wanted})
	m.warn("this node is locked", "message", message)
}

// unlock undoes lock: the engine has no peers, and the filter is closed.
func (m *Machine) unlock() {
	if m.wanted.Locked == nil {
		return
	}
	m.wanted.Locked = nil
	m.do(SaveWanted{m.wanted})
	m.log("this node is not locked any more")
	if m.path.up {
		m.open()
	}
}

// open gives all peers to an engine that has none, and a program to the filter.
func (m *Machine) open() {
	m.settle()
	m.assign()
	if peers := m.enginePeers(); len(peers) > 0 {
		m.do(SetPeers{Peers: peers, Again: true})
	}
	m.install(nil, nil)
}

// bar refuses the certificates of some nodes, and no longer refuses those of others.
func (r *roster) bar(put []proto.Barred, remove []proto.NodeID) {
	again := func(id proto.NodeID) {
		if p := r.peers[id]; p != nil {
			r.touch(id)
			r.verify(p)
		}
	}
	for _, id := range remove {
		delete(r.barred, id)
		again(id)
	}
	for _, b := range put {
		r.barred[b.ID] = b.Sequence
		again(b.ID)
	}
}
