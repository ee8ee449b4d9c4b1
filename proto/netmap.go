package proto

import (
	"net/netip"
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
	Peers       []Peer // sorted by ID; never holds Self
	Sets        []Set  // sorted by Name
	Rules       []Rule // sorted by Key
	// Requires names the features that enforcing this netmap takes. A node that lacks one enforces the empty policy.
	Requires []string // sorted
	Outage   Outage
}

// Outage says how long a node that lost its coordinator trusts what it heard last.
type Outage struct {
	// Grace is how long after its own last contact a node that is out of contact honours certificates that were valid then.
	Grace time.Duration
}

// Peer is another node. Who it is stands in its certificate.
type Peer struct {
	ID          NodeID
	Certificate []byte // node certificate, DER
	Endpoints   []Endpoint
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

// Rule permits connections between this node and others. Rules only permit, and their order never matters.
// Replies belong to the connection and need no rule.
type Rule struct {
	Key       string // unique in the netmap: the origin's path and the direction
	Origin    Origin
	Direction Direction
	// Peers is the other side.
	Peers Selector
	// Local are the addresses on this side that the rule is about: this node's own, or routes that it serves.
	Local []netip.Prefix
	// Services are the protocols and ports of the side that is connected to.
	Services []Service
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
