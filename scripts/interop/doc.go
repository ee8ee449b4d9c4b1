// Package interop tries the WireGuard engine of netstack/wg against other people's, on hosts of their own, which are network
// namespaces (see scripts/lab): wireguard-go as it comes out of its module, configured by wg as people do it; and, with the
// build tag kernel, the kernel of a virtual machine (make test-kernel, see there).
//
//	begin     each side begins, over IPv4 and IPv6, with a pre-shared key and without; traffic both ways
//	portable  our engine on the module's device and sockets, as on systems other than Linux
//	secrets   a wrong pre-shared key, and a peer that is not known
//	roam      each side moves, and the other follows
//	load      each side is flooded by a stranger, and the other has to prove where it is
//	restart   each side forgets its sessions
//
// And the STUN prober of netstack/stun against coturn, without a NAT and behind those of the kernel; and
// the port mapping client of netstack/portmap against miniupnpd, on such a NAT.
//
// What takes hours there, the renewal of sessions by time and by count, is tried in virtual time: see the tests of netstack/wg.
package interop
