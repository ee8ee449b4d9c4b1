package sim

import (
	"fmt"
	"net/netip"
	"slices"
)

// Seen is what somebody on the way sees: a datagram, or a piece of a stream.
type Seen struct {
	From, To netip.AddrPort // of a datagram, as translated there
	Data     []byte         // not to be changed

	at     *realm // nil: it is of a stream
	sender *Host
}

// Datagram says whether it is one, which can be injected again.
func (s Seen) Datagram() bool { return s.at != nil }

// Public says whether it was seen on the Internet itself, and not behind a NAT.
func (s Seen) Public() bool { return s.at != nil && s.at.gateway == nil }

// Tap shows f all that is sent: datagrams in the network where they meet their receiver, or the NAT before it, whether they get
// there or not, and streams where they are written. f must not call the Internet, and it may keep what it is shown.
func (n *Internet) Tap(f func(Seen)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

// see shows a datagram to who taps the wire.
func (n *Internet) see(at *realm, d *datagram) {
	if n.tap != nil {
		n.tap(Seen{From: d.from, To: d.dst, Data: d.data, at: at, sender: d.sender})
	}
}

// Inject puts a datagram on the wire at the place where it was seen, with whatever it says now. It goes the way of the seen one.
func (n *Internet) Inject(s Seen) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.Datagram() {
		n.enter(s.at, datagram{sender: s.sender, asked: s.To, from: s.From, dst: s.To, whole: true, data: slices.Clone(s.Data)}, 0)
	}
}

// Open are the sockets, listeners and streams that somebody has not closed.
func (n *Internet) Open() (list []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range n.hosts {
		for p := range h.udp {
			list = append(list, fmt.Sprintf("%s: UDP port %d", h.name, p))
		}
		for p := range h.listeners {
			list = append(list, fmt.Sprintf("%s: listener on port %d", h.name, p))
		}
	}
	for p := range n.pipes {
		list = append(list, fmt.Sprintf("stream from %s to %s", p.fromHost.name, p.toHost.name))
	}
	slices.Sort(list)
	return list
}
