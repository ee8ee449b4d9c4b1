package sim

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const firstEphemeral = 49152

// Host is a machine on the Internet.
type Host struct {
	net    *Internet
	name   string
	number int

	// Guarded by the Internet's lock.
	realm     *realm
	addrs     []netip.Addr
	asleep    bool
	mtus      map[netip.Addr]int // path MTUs that ICMP reported
	udp       map[uint16]*UDPConn
	listeners map[uint16]*Listener
	nextPort  uint16
}

// Name returns the name that other hosts can dial.
func (h *Host) Name() string { return h.name }

// SetAddrs changes the host's addresses, or removes them all: the host roams, leaves, returns. Streams from or to an address
// that is gone fall silent until it is back.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.place(h.realm, addrs)
}

// MoveTo moves the host to another network: behind a NAT, or onto the Internet itself if t is nil.
func (h *Host) MoveTo(t *NAT, addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	to := h.net.root
	if t != nil {
		to = t.inside
	}
	h.place(to, addrs)
}

func (h *Host) place(to *realm, addrs []netip.Addr) {
	h.settle()
	for _, a := range h.addrs {
		h.realm.drop(a)
	}
	h.realm, h.addrs = to, slices.Clone(addrs)
	for _, a := range addrs {
		to.take(a, owner{host: h})
	}
	h.settle()
	h.net.changed()
}

// Sleep suspends the host: whatever it sends or is sent is lost, and streams stall. Its programs keep running, but cut off.
func (h *Host) Sleep() { h.setAsleep(true) }

// Wake ends a Sleep.
func (h *Host) Wake() { h.setAsleep(false) }

func (h *Host) setAsleep(asleep bool) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.settle()
	h.asleep = asleep
	h.net.changed()
}

// settle delivers what has arrived at the NATs in front of the host.
func (h *Host) settle() {
	if h.realm.gateway != nil {
		h.realm.gateway.settle()
	}
}

// expected returns when the next datagram arrives at one of the NATs in front of the host; zero if none is in transit.
func (h *Host) expected() (first time.Time) {
	for t := h.realm.gateway; t != nil; t = t.outside.gateway {
		if len(t.arriving) > 0 && (first.IsZero() || t.arriving[0].due.Before(first)) {
			first = t.arriving[0].due
		}
	}
	return first
}

// learn records the path MTU to dst that an ICMP message reported.
func (h *Host) learn(dst netip.Addr, mtu int) {
	if h.mtus == nil {
		h.mtus = map[netip.Addr]int{}
	}
	h.mtus[dst] = mtu
}

// Addrs returns the host's addresses.
func (h *Host) Addrs() []netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return slices.Clone(h.addrs)
}

// source returns the source address of a packet to dst. The caller holds the lock.
func (h *Host) source(dst netip.Addr) (netip.Addr, bool) {
	if dst.IsLoopback() {
		return dst, true
	}
	for _, a := range h.addrs {
		if a.Is4() == dst.Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// freePort returns a port for which taken returns false. The caller holds the lock.
func (h *Host) freePort(taken func(uint16) bool) (uint16, error) {
	for range 65536 - firstEphemeral {
		p := h.nextPort
		if h.nextPort++; h.nextPort == 0 {
			h.nextPort = firstEphemeral
		}
		if !taken(p) {
			return p, nil
		}
	}
	return 0, syscall.EADDRINUSE
}

// resolve parses host:port, where host is an address or a host's name, and picks the first address of a family that both hosts
// have. The caller holds the lock.
func (h *Host) resolve(network, address string) (netip.AddrPort, error) {
	name, service, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "no port number", Addr: address}
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		return netip.AddrPortFrom(ip.Unmap(), uint16(port)), nil
	}
	to := h.net.hosts[name]
	if to == nil {
		return netip.AddrPort{}, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	for _, a := range to.addrs {
		_, have := h.source(a)
		if have && network != otherFamily(a.Is6()) {
			return netip.AddrPortFrom(a, uint16(port)), nil
		}
	}
	// A host without addresses keeps its name: packets to it are lost.
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 255}), uint16(port)), nil
}

// otherFamily returns the network that does not use this family.
func otherFamily(v6 bool) string {
	if v6 {
		return "tcp4"
	}
	return "tcp6"
}
