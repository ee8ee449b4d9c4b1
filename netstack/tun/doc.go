// Package tun is the device between the host's network stack and the WireGuard engine, with the filter applied to each batch.
//
//	host ──route──► TUN ──Read──► Hook.Out ──► engine ──► peers        denied: the Hook's reply goes back to the host
//	                                ▲
//	                   Inject ──────┘ (already judged)
//
//	host ◄──────── TUN ◄──Write── Hook.In ◄── engine ◄── peers         denied: dropped
//	                ▲
//	   Deliver ─────┘ (already judged)
//
// A Device is a device of golang.zx2c4.com/wireguard, and on most systems that module implements it. On Linux we use our own,
// which reads and writes with a virtio header, so that one system call moves a super-packet of up to 64 KiB: packets of one flow
// that share one set of headers. Callers that use Supers get super-packets whole, judged once, and split them in place; Read
// returns them split. Write joins consecutive packets of a flow, again in place.
//
//	Read or a call for each of Supers  ──►  Super.take ──► Super.Next ──►      packets, checksums written
//	Write  ──►  joiner.add ──► joiner.flush  ──►  writev                       packets, checksums checked
//
// A device has one queue for every two processors, at least one and at most four, and the host keeps each flow on one queue: the
// one to which packets from the flow's far end are written.
//
// Filtered wraps a Hook around any Device. Nothing passes between the host and the engine in either direction unless the Hook
// let it through; the Hook's own packets go out by Inject and Deliver.
package tun
