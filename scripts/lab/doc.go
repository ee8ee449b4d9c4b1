// Package lab builds small worlds of network namespaces on one Linux machine, for the demo, the benchmarks and the tests with
// real programs. It needs root, or a system that allows user namespaces; it needs no shell tools.
//
//	World ── router namespace: forwards between the LANs, IPv4 and IPv6
//	  │        lan1: bridge 10.99.1.1/24, 2001:db8:99:1::1/64        lan2: bridge 10.99.2.1/24, ...
//	  │          │            │                                       │
//	  │         veth         veth  ◄─ CaptureWire sees here what      veth
//	  │          │            │       really leaves a host; Cut and     │
//	  │          │            │       Unplug break the cable here       │
//	  │        eth0          eth0                                    eth0
//	  ├─ Host a: a namespace   ├─ Host b                               ├─ Host c
//	  │   10.99.1.10           │   10.99.1.11                          │   10.99.2.10
//	  │   its own name, /run   │
//	  │   and Mounts           │
//	  │   Process ...          │   Process ...
//	  └─ a directory in /tmp: each host's /run and the processes' logs
//
// A NAT is a host between a LAN and a new one behind it, 192.168.n.0/24, into which nobody else has a route.
//
// The process that made the world holds everything, and nothing has a name in the system: namespaces are open files, the
// cables are created between them, processes die with their parent. A test killed with -9 leaves a directory behind, which
// the next World removes.
//
// Processes are started through this program itself: it is executed again, enters the namespaces of the host, and becomes the
// requested program. That happens in this package's init, so importing it is enough. Goroutines enter a host's network with
// [Host.Do]; a socket opened there stays there.
//
// Without root, call [Enter] first in main: it executes the program again as root of a user namespace. Package labtest does
// this for tests.
package lab
