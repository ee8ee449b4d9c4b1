// Package wg is the WireGuard engine: it encrypts IP packets from the TUN device and sends them to peers, and back.
//
//	              NodeID ─┬─ keys          (node keys currently valid)
//	SetPeer ────►  peer   ├─ addresses     (one per family; packets from any other are dropped)
//	RemovePeer     │      ├─ candidates    (netstack/path chooses, netstack/bind sprays)
//	Probe          │      └─ pre-shared key
//	               ▼
//	tun.Device ◄─► Engine ◄─► conn.Bind ◄─► network
//
// Peers are identified by NodeID, whatever their keys. Every change is incremental: whatever does not change keeps its session.
//
// Reference is the unmodified engine of golang.zx2c4.com/wireguard, driven by its text protocol. Inline is our own: it runs
// each packet to completion without queues, lets peers without traffic sleep, and handles several keys at both ends at once, so
// that keys change without losing a packet. Its protocol is in packages noise (the handshake) and session (the timers and
// state); the two engines interoperate with each other and with every other WireGuard.
//
// Package wgtest holds the contract that every Engine keeps. ServeUAPI gives `wg show` a read-only view of an engine.
package wg
