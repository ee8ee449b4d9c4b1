package machine

import (
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
)

// barred says that the coordinator does not trust this node: it has no peers and no rules.
func (m *Machine) barred() bool { return m.dismissed() || m.quarantine != "" }

// dismissed says that there is no netmap to go by until that is over.
func (m *Machine) dismissed() bool { return m.wanted.Revoked != nil || m.wanted.Locked != nil }

// lock lets nothing pass until the coordinator serves this node again, also after a restart without one.
func (m *Machine) lock(message string) {
	if l := m.wanted.Locked; l != nil {
		if l.Message != message {
			m.wanted.Locked = &state.Revocation{At: l.At, Message: message}
			m.do(SaveWanted{m.wanted})
		}
		return
	}
	// Closed first, and on the disk next: it must hold even if the machine goes down at this moment.
	m.wanted.Locked = &state.Revocation{At: m.now, Message: message}
	m.closeAll()
	m.do(RemovePeers{m.engineIDs()}, SaveWanted{m.wanted})
	m.warn("this node is locked", "message", message)
}

// unlock goes on where lock ended: the engine has no peers, and the filter is closed.
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

// open tells an engine that has no peers of all that there are, and the filter what to let pass.
func (m *Machine) open() {
	m.settle()
	m.assign()
	if peers := m.enginePeers(); len(peers) > 0 {
		m.do(SetPeers{Peers: peers, Again: true})
	}
	m.install(nil, nil)
}

// bar refuses the certificates of some nodes from now on, and takes those of others again.
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
