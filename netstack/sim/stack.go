package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// The errors that a Stack gets instead of an answer.
var (
	// ErrReset is a TCP reset.
	ErrReset = errors.New("connection reset")
	// ErrProhibited is ICMP "administratively prohibited".
	ErrProhibited = errors.New("administratively prohibited")
)

// Stack is a small host behind a TUN device. It answers pings to any address, echoes datagrams sent to an open UDP port, and
// accepts TCP connections on open ports, where it echoes what it receives. Its methods make requests to others.
type Stack struct {
	tun *TUN

	mu       sync.Mutex
	addrs    []netip.Addr
	udpPorts map[uint16]bool
	tcpPorts map[uint16]bool
	conns    map[flow]*TCPConn
	answers  map[flow]*answer
	watch    func(Packet)
	nextPort uint16
	received int
	bad      int
}

// flow identifies a conversation from this host's side. For pings the local port is the echo identifier.
type flow struct {
	proto         uint8
	local, remote netip.AddrPort
}

// answer is an answer that somebody waits for.
type answer struct {
	payload []byte
	err     error
	arrived chan struct{} // closed once payload or err is set
}

// NewStack returns a host with these addresses behind a TUN.
func NewStack(t *TUN, addrs ...netip.Addr) *Stack {
	s := &Stack{
		tun: t, addrs: slices.Clone(addrs), udpPorts: map[uint16]bool{}, tcpPorts: map[uint16]bool{},
		conns: map[flow]*TCPConn{}, answers: map[flow]*answer{},
		// A restarted host must not resume connections that others still have with it.
		nextPort: firstEphemeral + rand.N(uint16(8192)),
	}
	t.Handle(s.input)
	return s
}

// SetAddrs changes the host's addresses.
func (s *Stack) SetAddrs(addrs ...netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs = slices.Clone(addrs)
}

// Listen opens ports for TCP and UDP.
func (s *Stack) Listen(ports ...uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range ports {
		s.udpPorts[p], s.tcpPorts[p] = true, true
	}
}

// Watch calls f with every valid packet that arrives, before it is processed. f must not call the Stack.
func (s *Stack) Watch(f func(Packet)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = f
}

// Received returns the number of packets that a host would accept, and of those that it would not.
func (s *Stack) Received() (good, bad int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.received, s.bad
}

// Ping sends one echo request and waits for the answer.
func (s *Stack) Ping(ctx context.Context, dst netip.Addr) (time.Duration, error) {
	begun := time.Now()
	s.mu.Lock()
	src, err := s.source(dst)
	if err != nil {
		s.mu.Unlock()
		return 0, err
	}
	id := s.port()
	p := Echo(src, dst, id, 1, []byte("are you there?"))
	f := flow{p.Proto, netip.AddrPortFrom(src, id), p.Dst}
	_, err = s.ask(ctx, f, p)
	return time.Since(begun), err
}

// Exchange sends one datagram and waits for the answer.
func (s *Stack) Exchange(ctx context.Context, dst netip.AddrPort, payload []byte) ([]byte, error) {
	s.mu.Lock()
	src, err := s.source(dst.Addr())
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	p := UDP(netip.AddrPortFrom(src, s.port()), dst, payload)
	return s.ask(ctx, flow{p.Proto, p.Src, p.Dst}, p)
}

// ask sends a packet and waits for the answer. It is called with the lock held, and releases it.
func (s *Stack) ask(ctx context.Context, f flow, p Packet) ([]byte, error) {
	a := &answer{arrived: make(chan struct{})}
	s.answers[f] = a
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.answers, f)
	}()
	s.tun.Send(p.Bytes())
	select {
	case <-a.arrived:
		return a.payload, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("no answer from %s: %w", p.Dst, ctx.Err())
	}
}

func (s *Stack) source(dst netip.Addr) (netip.Addr, error) {
	for _, a := range s.addrs {
		if a.Is4() == dst.Is4() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address of the family of %s", dst)
}

func (s *Stack) port() uint16 {
	if s.nextPort++; s.nextPort < firstEphemeral {
		s.nextPort = firstEphemeral
	}
	return s.nextPort
}

// input handles a packet from the TUN.
func (s *Stack) input(b []byte) {
	p, err := Parse(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.bad++
		return
	}
	s.received++
	if s.watch != nil {
		s.watch(p)
	}
	switch p.Proto {
	case proto.ProtoICMP, proto.ProtoICMPv6:
		s.icmp(p)
	case proto.ProtoUDP:
		if !s.settle(flow{p.Proto, p.Dst, p.Src}, p.Payload, nil) && s.udpPorts[p.Dst.Port()] {
			s.tun.Send(UDP(p.Dst, p.Src, p.Payload).Bytes())
		}
	case proto.ProtoTCP:
		s.tcp(p)
	}
}

// settle passes an answer to its waiter. It returns false if nobody waits for it.
func (s *Stack) settle(f flow, payload []byte, err error) bool {
	a := s.answers[f]
	if a == nil {
		return false
	}
	delete(s.answers, f)
	a.payload, a.err = payload, err
	close(a.arrived)
	return true
}

func (s *Stack) icmp(p Packet) {
	switch p.Type {
	case EchoRequest:
		p.Src, p.Dst, p.Type = p.Dst, p.Src, EchoReply
		s.tun.Send(p.Bytes())
	case EchoReply:
		s.settle(flow{p.Proto, netip.AddrPortFrom(p.Dst.Addr(), p.ID), p.Src}, p.Payload, nil)
	case Unreachable:
		s.unreachable(p)
	}
}

// unreachable handles an error about a packet that this host sent, and that the error quotes.
func (s *Stack) unreachable(p Packet) {
	f, ok := quoted(p.Payload)
	if !ok {
		return
	}
	err := ErrProhibited
	if p.Code != Prohibited {
		err = fmt.Errorf("unreachable, code %d", p.Code)
	}
	if s.settle(f, nil, err) {
		return
	}
	if c := s.conns[f]; c != nil {
		c.die(err)
	}
}

// quoted parses the flow of a packet from its first bytes.
func quoted(b []byte) (f flow, ok bool) {
	var src, dst netip.Addr
	var t []byte
	switch {
	case len(b) >= headerLen4+8 && b[0]>>4 == 4:
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		f.proto, t = b[9], b[headerLen4:]
	case len(b) >= headerLen6+8 && b[0]>>4 == 6:
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		f.proto, t = b[6], b[headerLen6:]
	default:
		return f, false
	}
	word := func(at int) uint16 { return uint16(t[at])<<8 | uint16(t[at+1]) }
	f.local, f.remote = netip.AddrPortFrom(src, word(0)), netip.AddrPortFrom(dst, word(2))
	if f.proto == proto.ProtoICMP || f.proto == proto.ProtoICMPv6 {
		f.local, f.remote = netip.AddrPortFrom(src, word(4)), netip.AddrPortFrom(dst, 0)
	}
	return f, true
}
