package proto

import (
	"bytes"
	"net/netip"
	"slices"
	"time"
)

// Mesh is what all nodes of a mesh agree on.
type Mesh struct {
	ID     MeshID
	Domain string       // DNS domain of the nodes' names, such as mesh.internal
	V4     netip.Prefix // the range of overlay addresses
	V6     netip.Prefix
}

// Contains reports whether a is an overlay address of this mesh.
func (m Mesh) Contains(a netip.Addr) bool { return m.V4.Contains(a) || m.V6.Contains(a) }

// Netmap is everything that one node knows about the mesh.
type Netmap struct {
	Version Version
	Mesh    Mesh
	Self    NodeID
	// Authorities are the intermediate certificates (DER) that issued the peers' certificates.
	Authorities [][]byte
	Peers       []*Peer // sorted by ID; never holds Self
	Sets        []Set   // sorted by Name
	Rules       []Rule  // sorted by Key
	// Requires names the features needed to enforce this netmap. A node that lacks one enforces the empty policy.
	Requires []string // sorted
	Outage   Outage
	// Withheld are rules for connections from this node that do not apply to it at present, each with what is missing. They
	// permit nothing: their purpose is to explain refusals.
	Withheld []Withheld // sorted by Key
	// Barred are nodes that this node could meet and whose certificates it refuses, whoever presents them. None is a peer.
	Barred []Barred // sorted by ID
	// Relays are the servers that can carry packets where there is no direct path.
	Relays []Relay // sorted by ID
}

// Barred is a node that was revoked or is locked.
type Barred struct {
	ID NodeID
	// Sequence is the number of its last certificate. Certificates up to that number are refused.
	Sequence uint64
}

// Withheld is a rule that does not apply, and the reason.
type Withheld struct {
	Rule
	Reason string // such as: needs posture:managed: node:os is not set
}

// Outage limits how long a node that lost its coordinator trusts what it last received.
type Outage struct {
	// Grace is how long after its own last contact a node that is out of contact honours certificates that were valid then.
	Grace time.Duration
	// Posture is how long after its own last contact a node that is out of contact applies Sets and Rules that are Conditional.
	// It is no longer than Grace.
	Posture time.Duration
}

// Peer is another node. Its certificate says who it is. Netmaps share peers: once it is in a netmap, a Peer does not change.
type Peer struct {
	ID          NodeID
	Certificate []byte // node certificate, DER
	Reach
	// Routes are approved prefixes outside of the mesh's own that the peer serves and that this node may use, sorted.
	Routes []netip.Prefix
}

// Reach is how a node may be reached, as it reports itself. All of it is a hint: nothing is trusted because of it.
type Reach struct {
	Endpoints []Endpoint
	// PathKey is the key that path messages to the node are sealed for; nil if it accepts none.
	PathKey *PathKey
	// HomeRelay is the relay where the node receives relayed packets; 0 means none.
	HomeRelay NodeID
}

// Equal reports whether two nodes are reached in the same way.
func (r *Reach) Equal(o *Reach) bool {
	return r.HomeRelay == o.HomeRelay && r.PathKey.Equal(o.PathKey) && slices.Equal(r.Endpoints, o.Endpoints)
}

// PathKeySize is the length of a path key.
const PathKeySize = 32

// PathKey is an X25519 key that a node generates each time it starts. It is signed by the node's device key, so that a peer
// trusts it because of the node's certificate, whoever delivered it.
type PathKey struct {
	Public    [PathKeySize]byte
	Boot      uint64 // grows with each start of the node
	Signature []byte
}

// Equal reports whether two keys are the same, or both nil.
func (k *PathKey) Equal(o *PathKey) bool {
	if k == nil || o == nil {
		return k == o
	}
	return k.Public == o.Public && k.Boot == o.Boot && bytes.Equal(k.Signature, o.Signature)
}

// EndpointKind is how an endpoint became known.
type EndpointKind uint8

// The kinds of endpoints.
const (
	EndpointInterface EndpointKind = iota + 1 // an address of one of the node's interfaces
	EndpointObserved                          // the node's source address as the coordinator saw it
)

// Endpoint is a UDP address where a node may be reached on the underlay. It is a hint: nothing is trusted because of it.
type Endpoint struct {
	Addr netip.AddrPort
	Kind EndpointKind
}

// Set is a named set of nodes that rules refer to, such as "group:eng" or "tag:db".
type Set struct {
	Name    string
	Members []NodeID // sorted
	// Conditional means that membership depends on facts that age: without contact the set applies for Outage.Posture only.
	Conditional bool
}

// Action is what a rule does with a connection that it matches.
type Action uint8

// Allow permits. Deny refuses, whatever else permits. Monitor passes and logs what no rule permits.
const (
	Allow Action = iota
	Deny
	Monitor
)

func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Deny:
		return "deny"
	case Monitor:
		return "monitor"
	}
	return "?"
}

// Direction is the direction of a rule, as seen by the node that enforces it.
type Direction uint8

// In is for connections that others open to this node, Out for those that it opens.
const (
	In Direction = iota + 1
	Out
)

func (d Direction) String() string {
	switch d {
	case In:
		return "in"
	case Out:
		return "out"
	}
	return "?"
}

// Rule decides what happens to connections between this node and others. The order of rules never matters. Replies belong to
// the connection and need no rule.
type Rule struct {
	Key       string // unique in the netmap: the origin's path and the direction
	Origin    Origin
	Direction Direction
	// Peers is the other side.
	Peers Selector
	// Local are the addresses on this side that the rule covers: this node's own, or routes that it serves.
	Local []netip.Prefix
	// Services are the protocols and ports of the side that is connected to. A rule without any concerns only App.
	Services []Service
	Action   Action
	// Until is when a Monitor rule ends, in mesh time; zero in all others. Whole seconds.
	Until time.Time
	// Conditional means that the rule depends on facts about this node that age: without contact it applies for Outage.Posture
	// only. A Deny is never conditional: it applies if facts are unknown.
	Conditional bool
	// App are capabilities that this node grants to the peers, only if Direction is In; sorted by Name.
	App []Capability
}

// Capability tells an application at the destination what a connection may be used for.
type Capability struct {
	Name   string   // such as example.com/cap/admin
	Values []string // JSON objects
}

// Origin is the place in the policy that a rule came from.
type Origin struct {
	Path string // such as grants[3]
	Line int    // from 1
}

// Selector selects nodes by set, or addresses literally. A node is selected with all of its addresses if it is a member of one
// of Sets; an address is selected if one of Prefixes contains it.
type Selector struct {
	Sets     []string
	Prefixes []netip.Prefix
}

// The IP protocols that policies can refer to by name.
const (
	ProtoICMP   = 1
	ProtoIGMP   = 2
	ProtoIPIP   = 4
	ProtoTCP    = 6
	ProtoEGP    = 8
	ProtoIGP    = 9
	ProtoUDP    = 17
	ProtoDCCP   = 33
	ProtoGRE    = 47
	ProtoESP    = 50
	ProtoAH     = 51
	ProtoICMPv6 = 58
	ProtoSCTP   = 132
)

// Service is a protocol and a range of its ports. For protocols without ports the range is 0-65535.
type Service struct {
	Proto       uint8
	First, Last uint16
}

// HasPorts reports whether a protocol's services are distinguished by port.
func HasPorts(protocol uint8) bool {
	return protocol == ProtoTCP || protocol == ProtoUDP || protocol == ProtoSCTP
}
