// Package osnet is the operating system's side of a node: it gives the TUN device the overlay addresses, leads the
// mesh's address ranges to it, and keeps the host closed, so that nothing with an overlay address passes the filter by.
//
//	         programs of this host
//	                  │
//	     rules 5150 / 5151: to the mesh's ranges        everything else: the host's own rules,
//	        │                     │                     after rule 5152 where something is led beyond the mesh
//	with our mark:         table 7707 (ours)            │
//	unreachable             ├─ 100.80.0.0/16 dev redoubt0          gone with the device
//	(underlay sockets       ├─ 10.33.0.0/16, default dev redoubt0  behind peers, by an exit node
//	never loop)             ├─ throw 10.33.5.0/24                  networks that the host is in itself
//	                        └─ unreachable, for each, worst        stays until down, crash or not
//	                              │
//	                          redoubt0 ──► filter ──► engine ──► marked UDP socket ──► eth0
//	                                                                                    │
//	nftables, inet redoubt-redoubt0: on every device but redoubt0 and lo, whatever ─────┘
//	has an overlay source or destination is dropped: prerouting, input, forward, output, postrouting
//
// # Why each part is there
//
// The routes lead packets to the filter. When the agent is killed its device goes, and the routes over it: the
// unreachable route is what is left, so that programs get an error at once and no packet takes the default route in clear.
// The nftables table is what holds where routing does not decide: a neighbour on the LAN that sends from or to an
// overlay address (Linux answers on any device for any of its addresses, whatever rp_filter says), packets that the host
// forwards, and hosts with routing rules of their own before ours.
//
// Together they are the guard. The guard is set before the first address and removed after the last, both in one
// transaction where nftables is concerned, and it outlives the agent: only Down and Close remove it.
//
// # What is ours, and how it is known
//
// No file remembers what was set. Ours is what carries our names, so that a later run, or one that has crashed, is
// understood from the kernel alone:
//
//	nftables table   inet redoubt-INTERFACE, its sets overlay4 and overlay6 name the ranges that the instance guards
//	rules            protocol 77, priorities 5150 to 5152
//	routes           protocol 77, table 7707
//	addresses        those on our device within the ranges above
//
//	settings         forwarding and the like: the table's chain "before" has notes of what they were
//
// Nothing else is ever changed or removed. An Up that finds its own work whole leaves it alone, so that calling it
// again costs a look; what is missing or altered is put right, also while the agent runs (when a firewall is
// reloaded with `flush ruleset`, say).
//
// Two agents may run in one network namespace with different devices and different ranges. Where the ranges
// overlap, the second is refused by Up with the first one's name. A guard without a device is one that a crash left: it is
// taken over when the ranges overlap, and else left in force until Down.
//
// # Beyond the mesh
//
// Networks behind peers are led to the device before whatever the host's own tables say, but for networks that the host is
// in itself, to which it is nearer. With an exit node everything is, but for marked sockets; what the exit node does not carry is
// unreachable, with the agent and without it. Connections of marked sockets are remembered, so that their answers
// have the mark as well and a strict rp_filter looks for their sources where they come from.
//
// A node that serves networks forwards between them and the device, and nothing else from or to the device. What goes there
// has been judged by the filter, and what comes from there will be. Answers are told from what they answer by the kernel's
// connection tracking, where sources are translated.
//
// # What the guard costs
//
// The guard drops by address, before and after address translation. Hence containers whose packets the host forwards do
// not reach the mesh through this host, and ports that the host forwards to containers are not reachable by their
// overlay address: a packet that no identity stands behind is not the mesh's.
//
// # Names
//
// [Network] is what the agent uses; [New] gives the real one (Linux only, others say so) and [Fake] one for meshes in
// virtual time.
package osnet
