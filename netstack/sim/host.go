package sim

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
)

const firstEphemeral = 49152

// Host is a machine on the Internet.
type Host struct {
	net    *Internet
	name   string
	number int

	// All guarded by the Internet's lock.
	addrs     []netip.Addr
	udp       map[uint16]*UDPConn
	listeners map[uint16]*Listener
	nextPort  uint16
}

// Name is what other hosts can dial.
func (h *Host) Name() string { return h.name }

// SetAddrs gives the host other addresses, or none: it roams, leaves, returns. Streams from or to an address that is
// gone fall silent until it is back.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range h.addrs {
		delete(n.owners, a)
	}
	h.addrs = slices.Clone(addrs)
	for _, a := range addrs {
		if o := n.owners[a]; o != nil {
			panic(fmt.Sprintf("sim: host %s wants %s, which host %s has", h.name, a, o.name))
		}
		n.owners[a] = h
	}
	n.changed()
}

// Addrs are the host's addresses.
func (h *Host) Addrs() []netip.Addr {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	return slices.Clone(h.addrs)
}

// source picks the address that a packet to dst leaves from. The caller holds the lock.
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

// freePort finds a port that taken does not know. The caller holds the lock.
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

// resolve reads host:port, where the host is an address or a host's name, and picks the first address of a family that
// both have. The caller holds the lock.
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
	// A host without addresses keeps its name: packets to it arrive nowhere.
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 255}), uint16(port)), nil
}

// otherFamily is the network that has no addresses of this family.
func otherFamily(v6 bool) string {
	if v6 {
		return "tcp4"
	}
	return "tcp6"
}
