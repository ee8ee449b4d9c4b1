package tun

import "github.com/redoubt-mesh/redoubt/acl/filter"

// Hook judges packets; *filter.Filter is one. Its methods are called from several goroutines at once, and do not keep the
// packet.
type Hook interface {
	// Out judges a packet of the host that would go to a peer.
	Out(pkt []byte) filter.Verdict
	// In judges a packet of a peer that would go to the host.
	In(pkt []byte) filter.Verdict
}

var _ Hook = (*filter.Filter)(nil)
