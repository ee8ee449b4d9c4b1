// Package osnet is the operating system's side of a node: it assigns the overlay addresses to the TUN device, routes the mesh's
// address ranges to it, and guards the host, so that nothing with an overlay address bypasses the filter.
//
//	         programs of this host
//	                  │
//	     rules 5150 / 5151: to the mesh's ranges        everything else: the host's own rules,
//	        │                     │                     after rule 5152 if anything beyond the mesh is routed to the device
//	with our mark:         table 7707 (ours)            │
//	unreachable             ├─ 100.80.0.0/16 dev redoubt0          gone with the device
//	(underlay sockets       ├─ 10.33.0.0/16, default dev redoubt0  behind peers, by an exit node
//	never loop)             ├─ throw 10.33.5.0/24                  networks that the host itself is on
//	                        └─ unreachable, for each, last         stays until Down, even after a crash
//	                              │
//	                          redoubt0 ──► filter ──► engine ──► marked UDP socket ──► eth0
//	                                                                                    │
//	nftables, inet redoubt-redoubt0: on every device but redoubt0 and lo, packets with ─┘
//	an overlay source or destination are dropped: prerouting, input, forward, output, postrouting
//
// # Why each part is there
//
// The routes lead packets to the filter. When the agent is killed, its device disappears along with the routes over it: the
// unreachable route remains, so that programs get an error at once and no packet takes the default route in the clear. The
// nftables table covers what routing does not decide: a neighbour on the LAN that sends from or to an overlay address (Linux
// answers on any device for any of its addresses, whatever rp_filter says), packets that the host forwards, and hosts with
// routing rules of their own ahead of ours.
//
// Together they are the guard. The guard is set before the first address and removed after the last, each in a single
// transaction as far as nftables is concerned, and it outlives the agent: only Down and Close remove it.
//
// # What is ours, and how it is recognized
//
// No file records what was set. Whatever carries our names is ours, so that a later run can understand from the kernel alone
// what an earlier one, even a crashed one, left behind:
//
//	nftables table   inet redoubt-INTERFACE, its sets overlay4 and overlay6 name the ranges that the instance guards
//	rules            protocol 77, priorities 5150 to 5152
//	routes           protocol 77, table 7707
//	addresses        those on our device within the ranges above
//
//	settings         forwarding and the like: the table's chain "before" notes their previous values
//
// Nothing else is ever changed or removed. An Up that finds its own work intact leaves it alone, so that calling it again costs
// only a check; what is missing or altered is repaired, also while the agent runs (e.g. when a firewall is reloaded with `flush
// ruleset`).
//
// Two agents may run in one network namespace with different devices and different ranges. If the ranges overlap, Up refuses the
// second and names the first. A guard without a device was left by a crash: it is taken over if the ranges overlap, and
// otherwise stays in force until Down.
//
// # Beyond the mesh
//
// Networks behind peers are routed to the device ahead of the host's own tables, except networks that the host itself is on.
// With an exit node everything is, except traffic of marked sockets; what the exit node does not carry is unreachable, whether
// the agent runs or not. Connections of marked sockets are tracked, so that their replies carry the mark as well and pass a
// strict rp_filter.
//
// A node that serves networks forwards between them and the device, and nothing else from or to the device. Packets to them have
// already been judged by the filter, and packets from them will be. Where sources are translated, the kernel's connection
// tracking matches replies to their connections.
//
// # What the guard costs
//
// The guard drops by address, before and after address translation. Hence containers whose packets the host forwards cannot
// reach the mesh through this host, and ports that the host forwards to containers are not reachable at its overlay address: a
// packet without an identity behind it does not belong to the mesh.
//
// # Names
//
// [Network] is what the agent uses; [New] returns the real one (on Linux only; elsewhere it fails) and [Fake] is one for meshes
// in virtual time.
package osnet
