// Package proto is the vocabulary of a Redoubt mesh: the values that coordinator, agent, policy and data path
// exchange. It holds no behaviour beyond what keeps a value valid, does no I/O, and imports nothing of ours.
//
//	Netmap ─┬─ Mesh      which mesh this is: id, DNS domain, address ranges
//	        ├─ Version   (epoch, n): later ones replace earlier ones, never the other way round
//	        ├─ Peers     nodes that some rule ties to this one: id, certificate, endpoints
//	        ├─ Sets      named sets of node ids, that rules refer to
//	        └─ Rules     what this node lets in and out, each with the place in the policy that it came from
//
//	Delta    ─── from one Version of a node's netmap to a later one: what Diff finds and Apply checks and carries out
//
// Validate says of each value whether a coordinator may send it and an agent may act on it; limits.go has the bounds.
// All values are immutable once shared: whoever wants another one makes another one. What a Peer is (its name, user,
// tags, addresses and keys) is said by its certificate alone, see proto/cert; the netmap only carries it.
//
// The encoding of these values is in proto/redoubt/v1 (schema) and proto/wire (mapping); keys are in proto/key.
package proto
