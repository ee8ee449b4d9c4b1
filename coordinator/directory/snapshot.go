package directory

import (
	"iter"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Snapshot is the directory at one moment. It never changes and may be retained.
//
// Policies are compiled against Node, ByUser, ByTag, ByAddr, All, Traits, Routers, Roles and Now. These include locked nodes,
// and revoked ones as long as somebody might trust their certificates: the nodes that the policy connects to them must know to
// refuse them. Code that builds netmaps must check whether a node is Barred. Lookup, Nodes, Named, Known and Device cover every
// node, for people and for enrolment.
type Snapshot struct {
	version proto.Version
	mesh    Mesh
	now     time.Time
	state   state
}

// Version returns the version carried by every netmap made from this snapshot.
func (s *Snapshot) Version() proto.Version { return s.version }

// Mesh returns the mesh.
func (s *Snapshot) Mesh() proto.Mesh { return s.mesh.Mesh }

// Policy returns the policy in force, or nil.
func (s *Snapshot) Policy() *Policy { return s.state.policy }

// Len returns the number of nodes, including revoked ones.
func (s *Snapshot) Len() int { return s.state.nodes.Len() }

// Lookup returns a node, revoked or not.
func (s *Snapshot) Lookup(id proto.NodeID) (*Node, bool) { return s.state.nodes.Get(id) }

// Named returns the node with a name, revoked or not.
func (s *Snapshot) Named(name string) (*Node, bool) {
	return s.resolve(s.state.names.Get(name))
}

// Device returns the node with a device key, revoked or not.
func (s *Snapshot) Device(k key.DevicePublic) (*Node, bool) {
	return s.resolve(s.state.devices.Get(deviceKey(k)))
}

func (s *Snapshot) resolve(id proto.NodeID, ok bool) (*Node, bool) {
	if !ok {
		return nil, false
	}
	return s.Lookup(id)
}

// Find returns the node identified by an id, a name or an overlay address.
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

// Peers yields the nodes with the given sorted ids as their peers see them, without routes, since those depend on the peer. It
// yields nil for a node that nobody may trust.
func (s *Snapshot) Peers(ids []proto.NodeID) iter.Seq2[proto.NodeID, *proto.Peer] {
	return s.state.peers.among(ids)
}

// Reach returns how a node may be reached on the underlay, as it last reported.
func (s *Snapshot) Reach(id proto.NodeID) proto.Reach {
	r, _ := s.state.reaches.Get(id)
	return r
}

// Token returns the token with a public key.
func (s *Snapshot) Token(public key.TokenPublic) (*Token, bool) {
	t, ok := s.state.tokens.Get(TokenID(public))
	if !ok || t.Public != public {
		return nil, false
	}
	return t, true
}

// TokenByID returns the token with an id.
func (s *Snapshot) TokenByID(id string) (*Token, bool) { return s.state.tokens.Get(id) }

// Tokens yields every token, sorted by id.
func (s *Snapshot) Tokens() iter.Seq[*Token] { return values(s.state.tokens) }

// Node returns a node's identity; ok is false for nodes that policies are not about.
func (s *Snapshot) Node(id proto.NodeID) (proto.Identity, bool) {
	n, ok := s.Lookup(id)
	if !ok || !s.state.seen(n) {
		return proto.Identity{}, false
	}
	return n.Identity, true
}

// Trusted reports whether a node is known and not barred: neither revoked, quarantined nor locked.
func (s *Snapshot) Trusted(id proto.NodeID) bool {
	n, ok := s.Lookup(id)
	return ok && !n.Barred()
}

// Bars reports whether a barred node may still hold valid certificates, and up to which sequence number they must be refused.
func (s *Snapshot) Bars(id proto.NodeID) (sequence uint64, ok bool) {
	n, known := s.Lookup(id)
	if !known || !n.Barred() || s.Lapsed(id) {
		return 0, false
	}
	return n.Certificate.Sequence, true
}

// seen reports whether policies apply to a node.
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

// All yields all nodes that policies apply to, sorted by id.
func (s *Snapshot) All() iter.Seq[proto.NodeID] { return values(s.state.trusted) }

// ByAddr returns the node with an overlay address.
func (s *Snapshot) ByAddr(a netip.Addr) (proto.NodeID, bool) {
	n, ok := s.resolve(s.state.addrs.Get(addrKey(a.Unmap())))
	if !ok || !s.state.seen(n) {
		return 0, false
	}
	return n.ID, true
}
