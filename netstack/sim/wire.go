package sim

import (
	"fmt"
	"net/netip"
	"slices"
)

// Seen is what an on-path observer sees: a datagram, or a piece of a stream.
type Seen struct {
	From, To netip.AddrPort // of a datagram, as translated at that point
	Data     []byte         // read-only

	at     *realm // nil for a piece of a stream
	sender *Host
}

// Datagram reports whether it is a datagram, which can be injected again.
func (s Seen) Datagram() bool { return s.at != nil }

// Public reports whether it was seen on the Internet itself, and not behind a NAT.
func (s Seen) Public() bool { return s.at != nil && s.at.gateway == nil }

// Tap calls f with everything that is sent: datagrams in the network where they meet their receiver or the NAT in front of it,
// whether they are delivered or not, and streams where they are written. f must not call the Internet, and may keep what it is
// given.
func (n *Internet) Tap(f func(Seen)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

// see shows a datagram to the tap, if there is one.
func (n *Internet) see(at *realm, d *datagram) {
	if n.tap != nil {
		n.tap(Seen{From: d.from, To: d.dst, Data: d.data, at: at, sender: d.sender})
	}
}

// Inject sends a datagram from the place where it was seen, with the current contents of s. It takes the path of the seen one.
func (n *Internet) Inject(s Seen) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.Datagram() {
		n.enter(s.at, datagram{sender: s.sender, asked: s.To, from: s.From, dst: s.To, whole: true, data: slices.Clone(s.Data)}, 0)
	}
}

// Open returns the sockets, listeners and streams that nobody has closed.
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
