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

	// All guarded by the Internet's lock.
	realm     *realm
	addrs     []netip.Addr
	asleep    bool
	mtus      map[netip.Addr]int // what ICMP said about destinations
	udp       map[uint16]*UDPConn
	listeners map[uint16]*Listener
	nextPort  uint16
}

// Name is what other hosts can dial.
func (h *Host) Name() string { return h.name }

// SetAddrs gives the host other addresses, or none: it roams, leaves, returns. Streams from or to an address that is
// gone fall silent until it is back.
func (h *Host) SetAddrs(addrs ...netip.Addr) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.place(h.realm, addrs)
}

// MoveTo takes the host to another network, behind a NAT or, for none, on the Internet itself.
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

// Sleep stops the host: what it sends and what is sent to it is lost, streams stand still. Its programs go on, but nobody
// hears of it.
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

// settle lets in what has arrived at the NATs before the host.
func (h *Host) settle() {
	if h.realm.gateway != nil {
		h.realm.gateway.settle()
	}
}

// expected is when the next datagram arrives at one of the NATs before the host; zero if none is on its way.
func (h *Host) expected() (first time.Time) {
	for t := h.realm.gateway; t != nil; t = t.outside.gateway {
		if len(t.arriving) > 0 && (first.IsZero() || t.arriving[0].due.Before(first)) {
			first = t.arriving[0].due
		}
	}
	return first
}

// learn keeps what an ICMP message said: no larger packets to dst.
func (h *Host) learn(dst netip.Addr, mtu int) {
	if h.mtus == nil {
		h.mtus = map[netip.Addr]int{}
	}
	h.mtus[dst] = mtu
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
