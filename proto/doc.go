// Package proto defines the vocabulary of a Redoubt mesh: the values that coordinator, agent, policy and data path exchange. It
// has no behaviour beyond what keeps a value valid, does no I/O, and imports no other package of this module.
//
//	Netmap ─┬─ Mesh      which mesh this is: ID, DNS domain, address ranges
//	        ├─ Version   (epoch, n): later ones replace earlier ones, never the reverse
//	        ├─ Peers     nodes that some rule connects to this one: ID, certificate, endpoints
//	        ├─ Sets      named sets of node IDs, which rules refer to
//	        └─ Rules     what this node lets in and out, each with its place in the policy
//
//	Delta    ─── from one Version of a node's netmap to a later one: Diff computes it, Apply checks and applies it
//
// Validate checks that a coordinator may send a value and an agent may act on it; limits.go has the bounds. All values are
// immutable once shared: to change one, make another. What a Peer is (its name, user, tags, addresses and keys) is defined by
// its certificate alone, see proto/cert; the netmap only carries it.
//
// The encoding of these values is in proto/redoubt/v1 (schema) and proto/wire (mapping); keys are in proto/key.
package proto
