// Package tun is the device between the host's network stack and the WireGuard engine, with the filter in its batches.
//
//	host ──route──► TUN ──Read──► Hook.Out ──► engine ──► peers        denied: the Hook's reply goes back to the host
//	                                ▲
//	                   Inject ──────┘ (already judged)
//
//	host ◄──────── TUN ◄──Write── Hook.In ◄── engine ◄── peers         denied: gone
//	                ▲
//	   Deliver ─────┘ (already judged)
//
// A Device is what golang.zx2c4.com/wireguard calls one, and on most systems that module makes it. On Linux it is our own, and
// reads and writes with a virtio header, so that one system call moves a super-packet of up to 64 KiB: packets of one flow, with
// one set of headers. Who asks for Supers gets them as they are, judged once, and splits them where they lie; Read gives them
// split. Write joins what follows each other in a flow, again where it lies.
//
//	Read or a call for each of Supers  ──►  Super.take ──► Super.Next ──►      packets, checksums written
//	Write  ──►  joiner.add ──► joiner.flush  ──►  writev                       packets, checksums checked
//
// A device has as many queues as there are processors, up to a few, and the host keeps each flow in one of them: the one
// that its packets from the far end are written to.
//
// Filtered puts a Hook around any Device. Nothing reaches the engine from the host, nor the host from the engine, that
// the Hook did not let through; what the Hook itself wants to say goes out by Inject and Deliver.
package tun
