package proto

import (
	"bytes"
	"net/netip"
	"slices"
	"time"
)

// Mesh is what every node of one mesh agrees on.
type Mesh struct {
	ID     MeshID
	Domain string       // DNS domain of the nodes' names, such as mesh.internal
	V4     netip.Prefix // where overlay addresses come from
	V6     netip.Prefix
}

// Contains says whether a is an overlay address of this mesh.
func (m Mesh) Contains(a netip.Addr) bool { return m.V4.Contains(a) || m.V6.Contains(a) }

// Netmap is what one node knows of the mesh, and nothing else.
type Netmap struct {
	Version Version
	Mesh    Mesh
	Self    NodeID
	// Authorities are the intermediate certificates (DER) under which the peers' certificates were issued.
	Authorities [][]byte
	Peers       []*Peer // sorted by ID; never holds Self
	Sets        []Set   // sorted by Name
	Rules       []Rule  // sorted by Key
	// Requires names the features that enforcing this netmap takes. A node that lacks one enforces the empty policy.
	Requires []string // sorted
	Outage   Outage
	// Withheld are rules about what this node opens that do not hold for it now, each with what is missing. They permit
	// nothing: they are there so that a refusal can be explained.
	Withheld []Withheld // sorted by Key
	// Barred are nodes that this node could meet and whose certificates it refuses, whoever shows them. None is a peer.
	Barred []Barred // sorted by ID
	// Relays are the servers that can carry packets where there is no direct way.
	Relays []Relay // sorted by ID
}

// Barred is a node that was revoked, or is locked.
type Barred struct {
	ID NodeID
	// Sequence is the number of its last certificate. Those up to it are refused.
	Sequence uint64
}

// Withheld is a rule that does not hold, and why.
type Withheld struct {
	Rule
	Reason string // such as: needs posture:managed: node:os is not set
}

// Outage says how long a node that lost its coordinator trusts what it heard last.
type Outage struct {
	// Grace is how long after its own last contact a node that is out of contact honours certificates that were valid then.
	Grace time.Duration
	// Posture is how long after its own last contact a node that is out of contact goes by Sets and Rules that are
	// Conditional. It is no longer than Grace.
	Posture time.Duration
}

// Peer is another node. Who it is stands in its certificate. Netmaps share peers: once it is in one, a Peer does not change.
type Peer struct {
	ID          NodeID
	Certificate []byte // node certificate, DER
	Reach
	// Routes are approved prefixes outside of the mesh's own that the peer serves and that this node may use, sorted.
	Routes []netip.Prefix
}

// Reach is how a node may be reached, as it reports itself. All of it is hints: nothing is trusted for it.
type Reach struct {
	Endpoints []Endpoint
	// PathKey is what messages about paths to the node are sealed for; nil: it takes none.
	PathKey *PathKey
	// HomeRelay is where the node waits for what others relay to it; 0: nowhere.
	HomeRelay NodeID
}

// Equal says whether two nodes are reached in the same way.
func (r *Reach) Equal(o *Reach) bool {
	return r.HomeRelay == o.HomeRelay && r.PathKey.Equal(o.PathKey) && slices.Equal(r.Endpoints, o.Endpoints)
}

// PathKeySize is the length of a path key.
const PathKeySize = 32

// PathKey is an X25519 key that a node draws each time that it starts. It is signed by the node's device key, so that a
// peer believes it for the node's certificate and not for who delivered it.
type PathKey struct {
	Public    [PathKeySize]byte
	Boot      uint64 // grows with each start of the node
	Signature []byte
}

// Equal says whether two keys are the same, or both none.
func (k *PathKey) Equal(o *PathKey) bool {
	if k == nil || o == nil {
		return k == o
	}
	return k.Public == o.Public && k.Boot == o.Boot && bytes.Equal(k.Signature, o.Signature)
}

// EndpointKind says how an endpoint came to be known.
type EndpointKind uint8

// The kinds of endpoints.
const (
	EndpointInterface EndpointKind = iota + 1 // an address of one of the node's interfaces
	EndpointObserved                          // where the coordinator saw the node come from
)

// Endpoint is a UDP address where a node may be reached on the underlay. It is a hint: nothing is trusted for it.
type Endpoint struct {
	Addr netip.AddrPort
	Kind EndpointKind
}

// Set is a named set of nodes that rules refer to, such as "group:eng" or "tag:db".
type Set struct {
	Name    string
	Members []NodeID // sorted
	// Conditional says that members are there for facts that age: without contact the set holds for Outage.Posture only.
	Conditional bool
}

// Action is what a rule does with a connection that it matches.
type Action uint8

// Allow permits. Deny refuses, whatever else permits. Monitor lets pass what no rule permits, and has it logged.
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

// Direction is a rule's, as seen by the node that enforces it.
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

// Rule says what becomes of connections between this node and others. Their order never matters.
// Replies belong to the connection and need no rule.
type Rule struct {
	Key       string // unique in the netmap: the origin's path and the direction
	Origin    Origin
	Direction Direction
	// Peers is the other side.
	Peers Selector
	// Local are the addresses on this side that the rule is about: this node's own, or routes that it serves.
	Local []netip.Prefix
	// Services are the protocols and ports of the side that is connected to. A rule without any is only about App.
	Services []Service
	Action   Action
	// Until is when a Monitor rule ends, in mesh time; zero in all others. Whole seconds.
	Until time.Time
	// Conditional says that the rule is there for facts of this node that age: without contact it holds for Outage.Posture
	// only. A Deny is never conditional: where facts are not known, it holds.
	Conditional bool
	// App are capabilities that this node grants to the peers, only where Direction is In; sorted by Name.
	App []Capability
}

// Capability is what an application on the destination may make of a connection.
type Capability struct {
	Name   string   // such as example.com/cap/admin
	Values []string // JSON objects
}

// Origin is the place in the policy that a rule came from.
type Origin struct {
	Path string // such as grants[3]
	Line int    // from 1
}

// Selector picks nodes by set, or addresses literally. A node is picked with all of its addresses if it is a member of
// one of Sets; an address is picked if one of Prefixes holds it.
type Selector struct {
	Sets     []string
	Prefixes []netip.Prefix
}

// The IP protocols that policies can name by a word.
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

// HasPorts says whether a protocol's services are told apart by port.
func HasPorts(protocol uint8) bool {
	return protocol == ProtoTCP || protocol == ProtoUDP || protocol == ProtoSCTP
}
