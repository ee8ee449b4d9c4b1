// Package compile turns a policy and what is known of the nodes into what one node needs to enforce: its rules, the sets of
// nodes that they name, and the peers that they tie it to. It is pure.
//
//	acl.Policy ──New──► Program ──For(inventory, node)──► View{Rules, Sets, Peers} ──► netmap of that node
//	                       │
//	                       ├──Affected(before, after, node)  whose View may have changed with that node
//	                       ├──Eval(inventory, at, packet)    would that node accept this connection, and by which rule
//	                       ├──RunTests(inventory)            the tests that the policy carries
//	                       └──Unresolved(inventory)          selectors that pick nobody
//
// How a rule becomes rules of a node:
//
//	grants[0]: src [group:eng *]  dst [tag:db autogroup:self]  ip [tcp:443]
//
//	key                  on          direction  peers               local
//	grants[0]/in         tag:db      in         group:eng, *        its addresses
//	grants[0]/out        everybody   out        tag:db              its addresses
//	grants[0].dst[1]/in  each user   in         that user's nodes   its addresses
//	grants[0].dst[1]/out each user   out        that user's nodes   its addresses
//
// Destinations of one rule that share their services stay together; others get a key of their own. A node has a rule in a
// direction if the selectors of its own side cover it, and Local says which of its addresses they cover: identity covers
// both, a literal address or range only those that it holds. Peers are sets of nodes where the other side is picked by
// identity, prefixes where it is picked by address; * is the ranges of the mesh.
//
// The sets of a View hold every node that the selector picks except the node itself, which is never its own peer. Two nodes
// are peers if a rule lets one open something to the other over a family in which both sides are covered. That is
// symmetric: whoever is in the other's View has the other in its own, by the same rule in the other direction.
package compile
