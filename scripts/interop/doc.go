// Package interop tests the WireGuard engine of netstack/wg against other implementations, on separate hosts, which are
// network namespaces (see scripts/lab): wireguard-go as its module provides it, configured with wg as people do; and, with
// the build tag kernel, the kernel of a virtual machine (make test-kernel, see there).
//
//	begin     each side initiates, over IPv4 and IPv6, with and without a pre-shared key; traffic both ways
//	portable  our engine on the module's device and sockets, as on systems other than Linux
//	secrets   a wrong pre-shared key, and an unknown peer
//	roam      each side changes its address, and the other follows
//	load      each side is flooded by a stranger, and the other must prove its address
//	restart   each side loses its sessions
//
// It also tests the STUN prober of netstack/stun against coturn, without a NAT and behind those of the kernel, and the port
// mapping client of netstack/portmap against miniupnpd on such a NAT.
//
// What would take hours there, rekeying by time and by message count, is tested in virtual time: see the tests of
// netstack/wg.
package interop
