package directory

import (
	"iter"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Snapshot is the directory at one moment. It never changes and may be kept.
//
// Node, ByUser, ByTag, ByAddr, All, Traits, Routers, Roles and Now are what policies are compiled against. Nodes that are locked
// are among them, and revoked ones as long as their certificates could be trusted by somebody: whoever the policy ties to them
// must know to refuse them. Whether a node is Barred is for those to ask who make netmaps of it. Lookup, Nodes, Named, Known and
// Device know every node, for people and for enrolment.
type Snapshot struct {
	version proto.Version
	mesh    Mesh
	now     time.Time
	state   state
}

// Version is the number that every netmap made from this snapshot carries.
func (s *Snapshot) Version() proto.Version { return s.version }

// Mesh is the mesh.
func (s *Snapshot) Mesh() proto.Mesh { return s.mesh.Mesh }

// Policy is the policy in force, or nil.
func (s *Snapshot) Policy() *Policy { return s.state.policy }

// Len is the number of nodes, revoked ones included.
func (s *Snapshot) Len() int { return s.state.nodes.Len() }

// Lookup answers a node, revoked or not.
func (s *Snapshot) Lookup(id proto.NodeID) (*Node, bool) { return s.state.nodes.Get(id) }

// Named answers the node with a name, revoked or not.
func (s *Snapshot) Named(name string) (*Node, bool) {
	return s.resolve(s.state.names.Get(name))
}

// Device answers the node with a device key, revoked or not.
func (s *Snapshot) Device(k key.DevicePublic) (*Node, bool) {
	return s.resolve(s.state.devices.Get(deviceKey(k)))
}

func (s *Snapshot) resolve(id proto.NodeID, ok bool) (*Node, bool) {
	if !ok {
		return nil, false
	}
	return s.Lookup(id)
}

// Find answers the node that a person means by an id, a name or an overlay address.
func (s *Snapshot) Find(what string) (*Node, bool) {
	if id, err := proto.ParseNodeID(what); err == nil {
		return s.Lookup(id)
	}
	if a, err := netip.ParseAddr(what); err == nil {
		return s.resolve(s.state.addrs.Get(addrKey(a)))
	}
	return s.Named(what)
}

// Nodes yields every node, revoked or not, sorted by id.
func (s *Snapshot) Nodes() iter.Seq[*Node] { return values(s.state.nodes) }

// Peers yields some nodes, whose ids are sorted, as those see them whom the policy lets know of them, without routes: that hangs
// on who asks. It yields nil for a node that nobody may trust.
func (s *Snapshot) Peers(ids []proto.NodeID) iter.Seq2[proto.NodeID, *proto.Peer] {
	return s.state.peers.among(ids)
}

// Reach is how a node may be reached on the underlay, as it last reported.
func (s *Snapshot) Reach(id proto.NodeID) proto.Reach {
	r, _ := s.state.reaches.Get(id)
	return r
}

// Token answers the token with a public key.
func (s *Snapshot) Token(public key.TokenPublic) (*Token, bool) {
	t, ok := s.state.tokens.Get(TokenID(public))
	if !ok || t.Public != public {
		return nil, false
	}
	return t, true
}

// TokenByID answers the token with an id.
func (s *Snapshot) TokenByID(id string) (*Token, bool) { return s.state.tokens.Get(id) }

// Tokens yields every token, sorted by id.
func (s *Snapshot) Tokens() iter.Seq[*Token] { return values(s.state.tokens) }

// Node answers who a node is.
func (s *Snapshot) Node(id proto.NodeID) (proto.Identity, bool) {
	n, ok := s.Lookup(id)
	if !ok || !s.state.seen(n) {
		return proto.Identity{}, false
	}
	return n.Identity, true
}

// Trusted says whether a node is known, and neither revoked nor locked.
func (s *Snapshot) Trusted(id proto.NodeID) bool {
	n, ok := s.Lookup(id)
	return ok && !n.Barred()
}

// Bars says whether certificates of a node could still be shown that nobody may take, and up to which number.
func (s *Snapshot) Bars(id proto.NodeID) (sequence uint64, ok bool) {
	n, known := s.Lookup(id)
	if !known || !n.Barred() || s.Lapsed(id) {
		return 0, false
	}
	return n.Certificate.Sequence, true
}

// seen says whether policies are about a node.
func (s *state) seen(n *Node) bool {
	switch {
	case n.Quarantine != nil || n.Relay:
		return false
	case n.Revoked == nil:
		return true
	}
	_, over := s.lapsed.Get(n.ID)
	return !over
}

// ByUser yields the nodes of a user, by login name, sorted by id.
func (s *Snapshot) ByUser(name string) iter.Seq[proto.NodeID] { return members(s.state.users, name) }

// ByTag yields the nodes with a tag, sorted by id.
func (s *Snapshot) ByTag(tag string) iter.Seq[proto.NodeID] { return members(s.state.tags, tag) }

// All yields all nodes, sorted by id.
func (s *Snapshot) All() iter.Seq[proto.NodeID] { return values(s.state.trusted) }

// ByAddr answers the node with an overlay address.
func (s *Snapshot) ByAddr(a netip.Addr) (proto.NodeID, bool) {
	n, ok := s.resolve(s.state.addrs.Get(addrKey(a.Unmap())))
	if !ok || !s.state.seen(n) {
		return 0, false
	}
	return n.ID, true
}
