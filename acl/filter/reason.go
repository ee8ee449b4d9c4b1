package filter

import "github.com/redoubt-mesh/redoubt/acl/packet"

// Reason says why a packet was dropped, or why a flow ended.
type Reason uint8

// The reasons. Between Permitted and Closed are those found by parsing, each equal to its packet.Fault.
const (
	Permitted Reason = 0

	Closed             = Reason(packet.Faults) + iota - 1 // no program is installed
	Multicast                                             // to a multicast or broadcast address; the mesh carries none
	ForeignSource                                         // out, and the source is not one of this node's addresses
	ForeignDestination                                    // in, and the destination is not one of this node's addresses
	UnknownPeer                                           // the other side is not a peer of this node
	Spoofed                                               // in, and the source does not belong to the sender
	NoRule                                                // no rule connects the two nodes in this direction
	NoService                                             // some rule does, but not for this protocol and port
	Forbidden                                             // a rule denies it, whatever else permits it
	NoFlow                                                // belongs to no known connection, and opens none
	Revoked                                               // the policy no longer permits the flow
	PeerQuota                                             // the peer has as many flows as one peer may have
	TableFull                                             // the flow table is full
	FragmentUnknown                                       // later fragment of a packet whose first did not pass
	FragmentOverlap                                       // fragment that overlaps others of its packet or repeats the first
	FragmentLimit                                         // too many fragmented packets at once
	ICMPType                                              // an ICMP message that hosts of a mesh need not send each other
	ICMPUnrelated                                         // an ICMP error that is not about a live flow of its sender
	BadSegments                                           // claims to be several segments of a kind that is not segmented

	Finished // the flow ended by itself
	Idle     // the flow was silent for too long
	Replaced // the flow gave its ports or its room to a newer one

	reasons // the number of reasons
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
