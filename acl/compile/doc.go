// Package compile turns a policy and what is known of the nodes into what one node needs to enforce: its rules, the sets of
// nodes that they name, the peers that they tie it to, and the routes of those. It is pure.
//
//	acl.Policy ──New──► Program (one mesh, immutable)
//	                       │
//	Inventory ────────────On──► Bound (one moment; remembers sets and routes)
//	(nodes, facts,               ├──For(node)       View{Rules, Sets, Peers, Routes, Withheld} ──► netmap of that node
//	 routes, roles, now)         ├──Decide, Eval    would a node let this connection pass, by which rule, only watched?
//	                             ├──Explain         why not, and which rules come nearest
//	                             ├──Approved        the routes of a node that count
//	                             └──NodeAttrs, SSH  what else the policy gives a node
//
//	whose View may differ:   Affected(before, after, node)  one node differs
//	                         Changed(before, after)         the policy differs
//	                         NextChange(node), Until()      nothing but the time does
//	on the file:             RunTests                       the tests that the policy carries
//	                         Unresolved                     selectors that pick nobody
//	                         Demands, Unadmitted            what is asked of machines, and whose do less
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
// identity, prefixes where it is picked by address; * is the ranges of the mesh and, as a source, the approved routes.
// What a grant tells applications (app) goes to its destinations only.
//
// The sets of a View hold the nodes that the selector picks and that are peers, never the node itself. Two nodes are peers if
// a rule that allows or watches lets one open something to the other over a family in which both sides are covered. That is
// symmetric: whoever is in the other's View has the other in its own, by the same rule in the other direction. A rule that
// denies makes nobody a peer.
//
// # Actions
//
// A connection is judged by all rules that cover both of its ends; their order never matters:
//
//	some deny covers it ──yes──► refused
//	        │ no
//	some rule allows it ──yes──► passes
//	        │ no
//	some monitor covers it ─yes► passes, and is logged as one that would be denied, until the rule's day
//	        │ no
//	     refused
//
// A deny that names one address of a node is about both of them. Rules that watch leave the Views at their day (Until), and
// the filter stops at that moment by itself.
//
// # Routes
//
// A router's approved routes (Approved: offered, and approved by hand or by autoApprovers) are covered like addresses: in
// whole or in part, and that part is in Local of the router's rules. 0.0.0.0/0 and ::/0 make an exit node and stand for the
// internet, nothing private. What is behind a router has no identity, so only literal addresses, ipsets, * and
// autogroup:internet pick it. View.Routes are those of each peer that some rule lets the node use. A grant with via is about
// routes only, and only those of routers with one of its tags:
//
//	src ──► out: prefixes of the routes   ┌─ router with the tag:     in, Local the covered part of its routes
//	                                      └─ router without the tag:  nothing
//
// # Conditions
//
// srcPosture, auth and session ask something of the source beside who it is. Its side then becomes a derived set, the part of
// the selector's set for which the condition holds, so that a fact that changes is a change of a set:
//
//	group:eng ──► "group:eng if posture:managed auth<=1h mfa"     allow: facts must be known, and hold
//	group:eng ──► "group:eng unless known not posture:managed"    deny: a fact that is not set counts as held
//
// Literal sources become such sets, too, one a family (keys grants[0]/in/v4 and /v6). Nothing is known of who stands behind a
// router: rules that allow under a condition never cover routed sources, and rules that deny cover them whatever is known of
// the router itself. A source that lacks what a rule asks does not get the rule; View.Withheld tells it of the rule and of
// what is missing, so that it can say so at once. That ties it to nobody. The age of a login is the only condition that
// changes by itself; NextChange says when.
package compile
