package sim

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Behaviour classifies how much a NAT's mapping or filtering depends on the remote endpoint (RFC 4787, sections 4.1 and 5).
type Behaviour uint8

// The behaviours, from the most to the least permissive.
const (
	EndpointIndependent Behaviour = iota
	AddressDependent
	AddressAndPortDependent
)

// String returns the name that RFC 4787 gives the behaviour.
func (b Behaviour) String() string {
	return [...]string{"endpoint-independent", "address-dependent", "address-and-port-dependent"}[b]
}

// of returns the part of the remote endpoint that matters.
func (b Behaviour) of(remote netip.AddrPort) netip.AddrPort {
	switch b {
	case EndpointIndependent:
		return netip.AddrPort{}
	case AddressDependent:
		return netip.AddrPortFrom(remote.Addr(), 0)
	default:
		return remote
	}
}

// PortPolicy is how a NAT picks the external port of a mapping (RFC 4787, section 4.2).
type PortPolicy uint8

// The policies. A port in use is never given to a second mapping.
const (
	Preserve   PortPolicy = iota // the internal port, or the next free one
	Sequential                   // in sequence
	Random
)

// String returns the name of a policy.
func (p PortPolicy) String() string { return [...]string{"preserve", "sequential", "random"}[p] }

// DefaultTimeout is the default time without packets after which a NAT drops a UDP mapping: the minimum that RFC 4787 allows.
const DefaultTimeout = 2 * time.Minute

// NATConfig configures the behaviour of a NAT. The zero value is the most permissive kind: a "full cone" without hairpinning.
//
// Only private addresses are translated. Others, such as all global IPv6 addresses, are routed: for them the NAT is a firewall
// that admits packets by its filtering behaviour.
type NATConfig struct {
	Mapping, Filtering Behaviour
	Ports              PortPolicy
	Timeout            time.Duration // of UDP mappings and permissions; 0 means DefaultTimeout
	InboundRefresh     bool          // inbound packets keep a mapping alive as well
	Hairpin            bool          // hosts behind it can reach each other at their external addresses
	Open               bool          // routed addresses are reachable from outside unsolicited
	BlockUDP           bool          // no UDP gets out
	TCPPorts           []uint16      // the only ports to which TCP gets out; none means all
	LAN                Link          // between the hosts behind it; the zero value means half a millisecond of latency
	Uplink             Link          // added to the link between the two hosts when crossing the NAT
}

// NAT is a router with hosts, or further NATs, behind it.
type NAT struct {
	net    *Internet
	name   string
	number int
	inside *realm

	// All guarded by the Internet's lock.
	outside  *realm
	cfg      NATConfig
	addrs    []netip.Addr
	rnd      *rand.Rand
	life     int // number of starts
	next     uint16
	streams  uint16             // number of external ports used for streams
	paired   map[netip.Addr]int // index of the external address of each host behind it
	outward  map[session]*mapping
	inward   map[netip.AddrPort]*mapping
	arriving []datagram // by time
}

// session is the key of a mapping.
type session struct{ inside, remote netip.AddrPort }

type mapping struct {
	inside, outside netip.AddrPort
	expires         time.Time // zero means never
	permitted       map[netip.AddrPort]time.Time
}

func (m *mapping) dead(now time.Time) bool { return !m.expires.IsZero() && !m.expires.After(now) }

// NAT adds a router to the Internet, with external addresses addrs; without any it only routes.
func (n *Internet) NAT(name string, cfg NATConfig, addrs ...netip.Addr) *NAT {
	return n.newNAT(n.root, name, cfg, addrs)
}

// NAT adds a router behind this one, which thereby becomes a carrier's NAT.
func (t *NAT) NAT(name string, cfg NATConfig, addrs ...netip.Addr) *NAT {
	return t.net.newNAT(t.inside, name, cfg, addrs)
}

// Host adds a host behind the NAT.
func (t *NAT) Host(name string, addrs ...netip.Addr) *Host {
	return t.net.newHost(t.inside, name, addrs)
}

func (n *Internet) newNAT(outside *realm, name string, cfg NATConfig, addrs []netip.Addr) *NAT {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nats++
	t := &NAT{net: n, name: name, number: n.nats, outside: outside, cfg: cfg}
	t.rnd = rand.New(rand.NewPCG(n.seed, 1<<63|uint64(t.number)))
	t.inside = &realm{gateway: t, owners: map[netip.Addr]owner{}}
	t.setAddrs(addrs)
	return t
}

// Name returns the NAT's name, for messages.
func (t *NAT) Name() string { return t.name }

// Addrs returns the external addresses.
func (t *NAT) Addrs() []netip.Addr {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	return slices.Clone(t.addrs)
}

// SetAddrs changes the external addresses, as some providers do every night. All mappings are dropped.
func (t *NAT) SetAddrs(addrs ...netip.Addr) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.settle()
	t.setAddrs(addrs)
	t.net.changed()
}

func (t *NAT) setAddrs(addrs []netip.Addr) {
	for _, a := range t.addrs {
		t.outside.drop(a)
	}
	t.addrs = slices.Clone(addrs)
	for _, a := range addrs {
		t.outside.take(a, owner{nat: t})
	}
	t.forget()
}

// Reboot drops all mappings. Streams through the NAT fall silent for good.
func (t *NAT) Reboot() {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.settle()
	t.forget()
	t.net.changed()
}

func (t *NAT) forget() {
	t.life++
	t.next = 0
	t.paired = map[netip.Addr]int{}
	t.outward, t.inward = map[session]*mapping{}, map[netip.AddrPort]*mapping{}
}

// Configure changes the NAT's behaviour; existing mappings stay.
func (t *NAT) Configure(change func(cfg *NATConfig)) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.settle()
	change(&t.cfg)
	t.net.changed()
}

// Forward opens an external UDP port to a host for any sender, as a port mapping protocol does; port 0 picks one. It returns the
// external address, or false if the port is taken. A lifetime of 0 ends the forwarding.
func (t *NAT) Forward(inside netip.AddrPort, port uint16, lasts time.Duration) (netip.AddrPort, bool) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.settle()
	now := time.Now()
	key := session{inside: inside, remote: netip.AddrPortFrom(netip.IPv4Unspecified(), 1)} // matches no packet
	m := t.outward[key]
	switch {
	case m != nil && !m.dead(now):
		m.expires = now.Add(lasts)
		return m.outside, true
	case lasts == 0:
		return netip.AddrPort{}, true
	}
	a, ok := t.addrFor(inside.Addr())
	out := netip.AddrPortFrom(a, port)
	if !ok || (port != 0 && t.taken(out, now)) {
		return netip.AddrPort{}, false
	}
	if port == 0 {
		out = t.pick(a, inside.Port(), now)
	}
	t.outward[key] = &mapping{inside: inside, outside: out, expires: now.Add(lasts), permitted: nil}
	t.inward[out] = t.outward[key]
	return out, true
}

// Mapped returns the current external address for packets from a host behind the NAT to a remote, if there is one.
func (t *NAT) Mapped(inside, remote netip.AddrPort) (netip.AddrPort, bool) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.settle()
	m := t.outward[session{inside, t.cfg.Mapping.of(remote)}]
	if m == nil || m.dead(time.Now()) {
		return netip.AddrPort{}, false
	}
	return m.outside, true
}

func (t *NAT) uplink() *link { return &link{Link: t.cfg.Uplink, rnd: t.rnd} }

func (t *NAT) lan() Link {
	if t.cfg.LAN == (Link{}) {
		return Link{Latency: 500 * time.Microsecond}
	}
	return t.cfg.LAN
}

func (t *NAT) timeout() time.Duration {
	if t.cfg.Timeout == 0 {
		return DefaultTimeout
	}
	return t.cfg.Timeout
}

// out translates an outbound datagram. It returns false if the datagram does not get out.
func (t *NAT) out(p *datagram, now time.Time) bool {
	if t.cfg.BlockUDP {
		return false
	}
	m := t.mapping(p.from, p.dst, now)
	if m == nil {
		return false
	}
	if m.permitted != nil {
		m.expires = now.Add(t.timeout())
		m.permitted[t.cfg.Filtering.of(p.dst)] = m.expires
	}
	p.from = m.outside
	return true
}

// mapping finds or creates the mapping of an outbound datagram.
func (t *NAT) mapping(inside, remote netip.AddrPort, now time.Time) *mapping {
	key := session{inside, t.cfg.Mapping.of(remote)}
	routed := !translated(inside.Addr())
	if routed {
		key.remote = netip.AddrPort{}
	}
	if m := t.outward[key]; m != nil {
		if !m.dead(now) {
			return m
		}
		delete(t.outward, key)
		delete(t.inward, m.outside)
	}
	m := &mapping{inside: inside, outside: inside, permitted: map[netip.AddrPort]time.Time{}}
	if !routed {
		a, ok := t.addrFor(inside.Addr())
		if !ok {
			return nil
		}
		m.outside = t.pick(a, inside.Port(), now)
	}
	t.outward[key], t.inward[m.outside] = m, m
	return m
}

// addrFor returns the external address of a host: always the same one (RFC 4787, REQ-2).
func (t *NAT) addrFor(inside netip.Addr) (netip.Addr, bool) {
	var pool []netip.Addr
	for _, a := range t.addrs {
		if a.Is4() == inside.Is4() {
			pool = append(pool, a)
		}
	}
	if len(pool) == 0 {
		return netip.Addr{}, false
	}
	i, ok := t.paired[inside]
	if !ok {
		i = len(t.paired)
		t.paired[inside] = i
	}
	return pool[i%len(pool)], true
}

// The range of external ports.
const (
	firstPort = 1024
	ports     = 65536 - firstPort
)

// pick returns a free port on an external address. A NAT has more ports than any test has mappings.
func (t *NAT) pick(a netip.Addr, inside uint16, now time.Time) netip.AddrPort {
	at := inside
	for range 8 * ports {
		switch t.cfg.Ports {
		case Preserve:
		case Random:
			at = firstPort + uint16(t.rnd.IntN(ports))
		case Sequential:
			at = firstPort + t.next
			t.next = (t.next + 1) % ports
		}
		out := netip.AddrPortFrom(a, at)
		if !t.taken(out, now) {
			return out
		}
		if at++; at < firstPort {
			at = firstPort
		}
	}
	panic(fmt.Sprintf("sim: NAT %s has no free port left", t.name))
}

func (t *NAT) taken(out netip.AddrPort, now time.Time) bool {
	m := t.inward[out]
	return m != nil && !m.dead(now)
}

// in translates an inbound datagram. It returns false if the datagram is not admitted.
func (t *NAT) in(p *datagram, now time.Time) bool {
	m := t.inward[p.dst]
	if _, routed := t.inside.owners[p.dst.Addr()]; routed && t.cfg.Open {
		return true
	}
	if m == nil || m.dead(now) {
		return false
	}
	if m.permitted != nil {
		if t.cfg.Filtering != EndpointIndependent && !m.permitted[t.cfg.Filtering.of(p.from)].After(now) {
			return false
		}
		if t.cfg.InboundRefresh {
			m.expires = now.Add(t.timeout())
			m.permitted[t.cfg.Filtering.of(p.from)] = m.expires
		}
	}
	p.dst = m.inside
	return true
}
