package filter

import "github.com/redoubt-mesh/redoubt/acl/packet"

// Reason says why a packet was dropped, or why a flow ended.
type Reason uint8

// The reasons. Between Permitted and Closed lie those that a packet itself gives, each equal to its packet.Fault.
const (
	Permitted Reason = 0

	Closed             = Reason(packet.Faults) + iota - 1 // no program is installed
	Multicast                                             // to many hosts at once; the mesh carries none
	ForeignSource                                         // out, with a source that is not this node's
	ForeignDestination                                    // in, to a destination that is not this node's
	UnknownPeer                                           // the other side is no peer of this node
	Spoofed                                               // in, with a source that is not its sender's
	NoRule                                                // no rule ties the two nodes in this direction
	NoService                                             // some rule does, but not for this protocol and port
	Forbidden                                             // a rule denies it, whatever else permits
	NoFlow                                                // belongs to a connection that is not known, and opens none
	Revoked                                               // the policy that allowed the flow is no more
	PeerQuota                                             // the peer has as many flows as one peer may have
	TableFull                                             // there are as many flows as there may be
	FragmentUnknown                                       // later fragment of a packet whose first did not pass
	FragmentOverlap                                       // fragment that overlaps others of its packet, or repeats the first
	FragmentLimit                                         // too many packets in fragments at once
	ICMPType                                              // an ICMP message that hosts of a mesh need not send each other
	ICMPUnrelated                                         // an ICMP error about no live flow of its sender's
	BadSegments                                           // said to be many packets at once, of a kind that comes one by one

	Finished // the flow ended by itself
	Idle     // the flow was silent for too long
	Replaced // the flow gave its ports, or its room, to a new one

	reasons // how many there are
)

var reasonNames = [reasons]string{
	Permitted:          "permitted",
	Closed:             "no policy is in force",
	Multicast:          "multicast is not carried",
	ForeignSource:      "source is not an address of this node",
	ForeignDestination: "destination is not an address of this node",
	UnknownPeer:        "no peer of this node has that address",
	Spoofed:            "source is not an address of the sender",
	NoRule:             "no rule lets these nodes connect",
	NoService:          "no rule names this protocol and port",
	Forbidden:          "a rule denies it",
	NoFlow:             "belongs to no known connection",
	Revoked:            "no longer permitted",
	PeerQuota:          "too many connections with this peer",
	TableFull:          "too many connections",
	FragmentUnknown:    "fragment without its beginning",
	FragmentOverlap:    "overlapping fragments",
	FragmentLimit:      "too many fragmented packets",
	ICMPType:           "unwanted ICMP message",
	ICMPUnrelated:      "ICMP error about no known connection",
	BadSegments:        "segments of what is not segmented",
	Finished:           "finished",
	Idle:               "idle",
	Replaced:           "replaced by a newer connection",
}

func (r Reason) String() string {
	switch {
	case r >= reasons:
		return "unknown reason"
	case reasonNames[r] == "":
		return packet.Fault(r).String()
	}
	return reasonNames[r]
}
