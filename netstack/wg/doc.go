// Package wg is the WireGuard engine: what turns IP packets from the TUN device into encrypted ones for peers, and back.
//
//	              NodeID ─┬─ keys          (node keys that are good now)
//	SetPeer ────►  peer   ├─ addresses     (one of each family; nothing else is let in from it)
//	RemovePeer     │      ├─ candidates    (netstack/path chooses, netstack/bind sprays)
//	Probe          │      └─ pre-shared key
//	               ▼
//	tun.Device ◄─► Engine ◄─► conn.Bind ◄─► network
//
// Peers are known by their NodeID, whatever keys they have. Every change is incremental: what stays the same keeps its
// session.
//
// Reference is the engine of golang.zx2c4.com/wireguard, unmodified, driven by its text protocol. Inline is our own: it
// moves packets to completion without queues, lets peers sleep that have no traffic, and knows several keys of both ends
// at once, so that they change without a lost packet. Its protocol is in packages noise (the handshake) and session (what
// happens when); both engines talk to each other, and to every other WireGuard.
//
// Package wgtest holds the contract that every Engine keeps. ServeUAPI lets `wg show` look at an engine, and change nothing.
package wg
