package machine

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto"
)

// load replaces whatever was there with a whole netmap.
func (m *Machine) load(nm *proto.Netmap) error {
	if err := m.fits(nm); err != nil {
		return err
	}
	if err := m.roster.trust(m.self, nm.Authorities); err != nil {
		return err
	}
	m.netmap = nm
	m.beyond.stale = true
	m.missing = m.missingFeatures(nm)
	m.roster.barred = map[proto.NodeID]uint64{}
	m.roster.bar(nm.Barred, nil)
	m.roster.set(nm.Peers)
	return nil
}

// fits checks that a netmap is for this node, and not older than one that it has seen.
func (m *Machine) fits(nm *proto.Netmap) error {
	return Fits(nm, m.self, maxVersion(m.floors.Version, m.version()))
}

// Fits checks that a netmap is for the node self, and not older than version seen.
func Fits(nm *proto.Netmap, self *identity.Self, seen proto.Version) error {
	if err := nm.Validate(); err != nil {
		return err
	}
	switch {
	case nm.Self != self.Node.ID:
		return fmt.Errorf("it is for node %v", nm.Self)
	case nm.Mesh != self.Record.Mesh:
		return errors.New("it describes another mesh than this node's")
	case nm.Version.IsZero():
		return errors.New("it has no version")
	case nm.Version.Less(seen):
		return fmt.Errorf("it is version %v, but version %v was seen", nm.Version, seen)
	}
	return nil
}

func maxVersion(a, b proto.Version) proto.Version {
	if a.Less(b) {
		return b
	}
	return a
}

// snapshot applies a netmap that came on the stream, as the difference from the present one.
func (m *Machine) snapshot(nm *proto.Netmap) {
	if m.self == nil || !m.wanted.Up {
		return
	}
	if err := m.fits(nm); err != nil {
		m.reject(err)
		return
	}
	if m.netmap == nil {
		if err := m.load(nm); err != nil {
			m.netmap = nil
			m.reject(err)
			return
		}
		m.inForce(true, SaveNetmap{nm})
		return
	}
	if err := m.apply(proto.Diff(m.netmap, nm), nm); err != nil {
		m.reject(err)
		return
	}
	m.inForce(true, SaveNetmap{nm})
}

// change applies a delta that came on the stream.
func (m *Machine) change(d *proto.Delta) {
	if m.self == nil || !m.wanted.Up {
		return
	}
	if m.netmap == nil {
		m.reject(errors.New("received a change before any state"))
		return
	}
	nm, err := m.netmap.Apply(d)
	if err == nil {
		err = m.fits(nm)
	}
	if err == nil {
		err = m.apply(d, nm)
	}
	if err != nil {
		m.reject(err)
		return
	}
	rules := d.Head != nil || len(d.UpsertSets)+len(d.ChangeSets)+len(d.RemoveSets)+len(d.UpsertRules)+len(d.RemoveRules) > 0
	if m.unsaved {
		m.inForce(rules, SaveNetmap{nm})
		return
	}
	m.inForce(rules, SaveDelta{d, nm})
}

// apply makes nm the netmap; d is the delta that leads to it.
func (m *Machine) apply(d *proto.Delta, nm *proto.Netmap) error {
	if d.Head != nil {
		if err := m.roster.trust(m.self, nm.Authorities); err != nil {
			return err
		}
	}
	m.netmap = nm
	m.beyond.stale = m.beyond.stale || d.Head != nil || len(d.UpsertRules)+len(d.RemoveRules) > 0
	m.missing = m.missingFeatures(nm)
	for _, id := range d.RemovePeers {
		m.roster.remove(id)
	}
	m.roster.bar(d.UpsertBarred, d.RemoveBarred)
	m.roster.set(d.UpsertPeers)
	for _, c := range d.Reaches {
		m.roster.setReach(c.ID, c.Reach)
	}
	if d.Head != nil {
		m.roster.regrace() // the grace may have changed
	}
	return nil
}

// inForce enforces the netmap that was just applied, saves it and acknowledges it.
func (m *Machine) inForce(rules bool, save Effect) {
	m.netmapFault = ""
	m.enforce(m.settle(), rules)
	m.saving = true
	if m.roster.raised {
		// A removed peer leaves nothing in the netmap that would tell an older certificate of it from its last one.
		m.saveFloors()
	}
	m.unsaved = false
	m.do(save, Resume{m.lasting()})
	m.log("netmap", "version", m.version(), "peers", len(m.netmap.Peers), "rules", len(m.netmap.Rules))
	m.ack()
}

// ack acknowledges the netmap if the data path enforces it.
func (m *Machine) ack() {
	if m.path.up && m.netmap != nil && m.compileFault == "" && !m.unsaved {
		m.do(Ack{m.version()})
	}
}

// reject keeps what is in force and asks for a whole netmap on another stream.
func (m *Machine) reject(err error) {
	m.netmapFault = "a netmap of the coordinator was refused: " + err.Error()
	m.warn("netmap refused", "reason", err)
	m.do(Resume{}, Redial{Reason: "netmap refused"})
}

// settle re-evaluates the peers for which that is due, and this node's own certificate.
func (m *Machine) settle() []move {
	g := m.contact.grace(m.outage(), m.now)
	m.roster.heard = m.contact.last
	if m.contact.serves {
		m.roster.heard = m.now
	}
	moves := m.roster.settle(m.now, g)
	was := m.selfLive
	m.selfLive, m.selfUntil = live(m.self.Node, m.now, g)
	if was && !m.selfLive && m.now.Before(m.self.Node.NotBefore) {
		m.renewal.due = m.now // the coordinator's clock was ahead when it issued the certificate
	}
	if was != m.selfLive && m.path.up {
		if !m.selfLive {
			m.warn("own certificate is not valid now: nothing passes", "from", stamp(m.self.Node.NotBefore), "to", stamp(m.self.Node.NotAfter))
		}
		m.enforce(moves, true)
		return nil
	}
	return moves
}

// enforce brings filter and engine in line with the peers that may be used, in an order in which no packet passes while they
// disagree. Rules means that the rules have changed as well.
func (m *Machine) enforce(moves []move, rules bool) {
	for _, mv := range moves {
		m.tell(mv)
	}
	if !m.path.up || m.barred() {
		return // what changes meanwhile counts when open gives the engine its peers again
	}
	var gone []proto.NodeID
	var set []Peer
	late := map[proto.NodeID]bool{} // peers with an address that another peer may have had
	for _, mv := range moves {
		switch {
		case mv.after == nil:
			gone = append(gone, mv.id)
			continue
		case mv.before == nil:
			late[mv.id], rules = true, true
		case mv.before.node.Addrs != mv.after.node.Addrs:
			late[mv.id], rules = true, true
			gone = append(gone, mv.id)
		default:
			rules = rules || !sameIdentity(mv.before.node.Identity, mv.after.node.Identity)
			if slices.Equal(mv.before.keys, mv.after.keys) && mv.before.reach.Equal(&mv.after.reach) {
				continue
			}
		}
		set = append(set, m.enginePeer(mv.id, mv.after))
	}
	held, set := m.reroute(set)
	if len(gone) > 0 || len(held) > 0 {
		m.install(late, held)
	}
	if len(gone) > 0 {
		m.do(RemovePeers{gone})
	}
	if len(set) > 0 {
		m.do(SetPeers{Peers: set})
	}
	if rules && len(gone) == 0 || len(late) > 0 || len(held) > 0 {
		m.install(nil, nil)
	}
}

func (m *Machine) install(without map[proto.NodeID]bool, held []netip.Prefix) {
	m.do(Install{m.program(without, held)}, Sweep{})
}

// tell logs a peer that goes by the clock alone; what the coordinator changes is in its netmap.
func (m *Machine) tell(mv move) {
	if mv.after != nil {
		return
	}
	if p := m.roster.peers[mv.id]; p != nil {
		m.warn("peer left out", "peer", mv.before.node.Name, "node", mv.id, "reason", p.why)
	}
}

func (m *Machine) enginePeer(id proto.NodeID, e *entry) Peer {
	return Peer{ID: id, Keys: e.keys, Addrs: e.node.Addrs, Routes: m.routes[id], Reach: e.reach, Device: e.node.Device}
}

// enginePeers returns all peers that the engine may talk to.
func (m *Machine) enginePeers() (peers []Peer) {
	if m.barred() {
		return nil
	}
	for _, p := range m.roster.sorted() {
		if p.live != nil {
			peers = append(peers, m.enginePeer(p.claim.ID, p.live))
		}
	}
	return peers
}

func (m *Machine) engineIDs() (ids []proto.NodeID) {
	for _, p := range m.roster.sorted() {
		if p.live != nil {
			ids = append(ids, p.claim.ID)
		}
	}
	return ids
}
