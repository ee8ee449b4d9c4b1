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
// A Device is what golang.zx2c4.com/wireguard calls one. On Linux it reads and writes with a virtio header, so that one
// system call moves a super-packet of up to 64 KiB; the device splits it into segments before the Hook sees it, and joins
// what the Hook let through when writing.
//
// Filtered puts a Hook around any Device. Nothing reaches the engine from the host, nor the host from the engine, that
// the Hook did not let through; what the Hook itself wants to say goes out by Inject and Deliver.
package tun
