package tun

// Verdict is what a Hook says of a packet.
type Verdict struct {
	Pass bool
	// Reply, of a packet that the host may not send, is written back to the host. It is valid until the next call.
	Reply []byte
}

// Hook judges packets. Both methods are called from several goroutines at once, and must not keep the packet.
type Hook interface {
	// Out judges a packet of the host that would go to a peer.
	Out(pkt []byte) Verdict
	// In judges a packet of a peer that would go to the host.
	In(pkt []byte) Verdict
}
