// Package compile turns a policy and what is known about the nodes into what one node needs to enforce: its rules, the sets of
// nodes that they name, the peers that they connect it to, and the routes of those peers. It does no I/O.
//
//	acl.Policy ──New──► Program (one mesh, immutable)
//	                       │
//	Inventory ────────────On──► Bound (one moment; remembers sets and routes)
//	(nodes, facts,               ├──For(node)       View{Rules, Sets, Peers, Routes, Withheld} ──► netmap of that node
//	 routes, roles, now)         ├──Decide          may a node let this connection pass, by which rule, only monitored?
//	                             ├──Explain         why not, and which rules come nearest
//	                             ├──Approved        the effective routes of a node
//	                             └──NodeAttrs       what else the policy gives a node
//
//	whose View may differ:   Affected(before, after, node)  if one node changes
//	                         Changed(before, after)         if the policy changes
//	                         NextChange(node), Until()      if only time passes
//	about the file:          RunTests                       the tests in the policy
//	                         Unresolved                     selectors that match nothing
//	                         Demands, Unadmitted            requirements on machines, and the nodes that do not meet them
//
// How a rule of the policy becomes rules of nodes:
//
//	grants[0]: src [group:eng *]  dst [tag:db autogroup:self]  ip [tcp:443]
//
//	key                  on          direction  peers               local
//	grants[0]/in         tag:db      in         group:eng, *        its addresses
//	grants[0]/out        everybody   out        tag:db              its addresses
//	grants[0].dst[1]/in  each user   in         that user's nodes   its addresses
//	grants[0].dst[1]/out each user   out        that user's nodes   its addresses
//
// Destinations of one rule that have the same services stay together; others get a key of their own. A node has a rule in a
// direction if the selectors of its own side cover it, and Local holds its addresses that they cover: a selector by identity
// covers both, a literal address or range only those in it. Peers are sets of nodes if the other side is selected by identity,
// prefixes if it is selected by address; * is the ranges of the mesh and, as a source, the approved routes. Application
// capabilities of a grant (app) are sent only to its destinations.
//
// The sets of a View hold those nodes that the selector picks and that are peers, never the node itself. Two nodes are peers if
// an allow or monitor rule lets one open a connection to the other over a family in which both sides are covered. Peering is
// symmetric: if a node is in another's View, the other is in its View too, by the same rule in the other direction. A deny rule
// makes no peers.
//
// # Actions
//
// A connection is judged by all rules that cover both of its ends; the order of rules never matters:
//
//	some deny covers it ──yes──► refused
//	        │ no
//	some rule allows it ──yes──► passes
//	        │ no
//	some monitor covers it ─yes► passes, and is logged as one that would be denied, until the rule ends
//	        │ no
//	     refused
//
// A deny that names one address of a node applies to both. Monitor rules leave the Views when they end (Until), and agents
// stop applying them at that time by themselves.
//
// # Routes
//
// A router's approved routes (Approved: advertised, and approved by hand or by autoApprovers) are covered like addresses: in
// whole or in part, and that part is in Local of the router's rules. 0.0.0.0/0 and ::/0 make an exit node and stand for the
// internet, nothing private. What is behind a router has no identity, so only literal addresses, ipsets, * and
// autogroup:internet select it. View.Routes holds each peer's routes that some rule lets the node use. A grant with via applies
// to routes only, and only to those of routers with one of its tags:
//
//	src ──► out: prefixes of the routes   ┌─ router with the tag:     in, Local the covered part of its routes
//	                                      └─ router without the tag:  nothing
//
// # Conditions
//
// srcPosture, auth and session put conditions on the source besides its identity. Its side then becomes a derived set, the part
// of the selector's set for which the condition holds, so that a changed fact becomes a changed set:
//
//	group:eng ──► "group:eng if posture:managed auth<=1h mfa"     allow: facts must be known, and hold
//	group:eng ──► "group:eng unless known not posture:managed"    deny: an unset fact counts as held
//
// Literal sources become such sets too, one per family (keys grants[0]/in/v4 and /v6). Nothing is known about hosts behind a
// router: allow rules with a condition never cover routed sources, and deny rules cover them whatever is known about the router
// itself. A source that does not meet a rule's condition does not get the rule; View.Withheld lists the rule and what is
// missing, so that it can report that at once. That makes no peers. The age of a login is the only condition that changes by
// itself; NextChange returns when.
package compile
