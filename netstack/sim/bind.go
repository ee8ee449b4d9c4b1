package sim

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
)

// batchSize is how many packets the simulated devices transfer at once. An engine keeps a 64 KiB buffer for each.
const batchSize = 4

// udpBind is a conn.Bind over a host's UDP.
type udpBind struct {
	host *Host
	mu   sync.Mutex
	sock *UDPConn
	cuts bool // the network may fragment packets
}

// Bind returns a conn.Bind over the host's UDP, to be used beneath a bind.Bind. It is not open yet.
func (h *Host) Bind() conn.Bind { return &udpBind{host: h} }

// Sibling implements bind.Siblings.
func (b *udpBind) Sibling() conn.Bind { return &udpBind{host: b.host} }

// Open implements conn.Bind.
func (b *udpBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sock != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	sock, err := b.host.ListenUDP(port)
	if err != nil {
		return nil, 0, err
	}
	b.sock = sock
	sock.discover(!b.cuts, false)
	receive := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		got, err := sock.receive(min(len(bufs), batchSize))
		for i, d := range got {
			sizes[i] = copy(bufs[i], d.data)
			eps[i] = &udpEndpoint{AddrPort: d.from, src: d.dst.Addr()}
		}
		return len(got), err
	}
	return []conn.ReceiveFunc{receive}, sock.port, nil
}

// Close implements conn.Bind.
func (b *udpBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sock == nil {
		return nil
	}
	err := b.sock.Close()
	b.sock = nil
	return err
}

// SetMark implements conn.Bind; simulated hosts have a single routing table.
func (b *udpBind) SetMark(uint32) error { return nil }

// BatchSize implements conn.Bind.
func (b *udpBind) BatchSize() int { return batchSize }

// ParseEndpoint implements conn.Bind.
func (b *udpBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &udpEndpoint{AddrPort: a}, nil
}

// Send implements conn.Bind.
func (b *udpBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	b.mu.Lock()
	sock := b.sock
	b.mu.Unlock()
	if sock == nil {
		return net.ErrClosed
	}
	for _, buf := range bufs {
		if err := sock.send(buf, e.SrcIP(), e.AddrPort); err != nil {
			return err
		}
	}
	return nil
}

// Whole implements bind.Whole.
func (b *udpBind) Whole(send func() error) error {
	b.mu.Lock()
	sock := b.sock
	b.mu.Unlock()
	if sock == nil {
		return net.ErrClosed
	}
	sock.discover(true, true)
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		sock.discover(!b.cuts, false)
	}()
	return send()
}

// Fragment implements bind.Whole.
func (b *udpBind) Fragment() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cuts = true
	if b.sock != nil {
		b.sock.discover(false, false)
	}
	return nil
}

// udpEndpoint is the destination of packets, and the address that they are sent from.
type udpEndpoint struct {
	netip.AddrPort
	src       netip.Addr
	forgotten atomic.Bool
}

func (e *udpEndpoint) ClearSrc() { e.forgotten.Store(true) }

func (e *udpEndpoint) SrcIP() netip.Addr {
	if e.forgotten.Load() {
		return netip.Addr{}
	}
	return e.src
}

func (e *udpEndpoint) SrcToString() string { return e.SrcIP().String() }
func (e *udpEndpoint) DstIP() netip.Addr   { return e.Addr() }
func (e *udpEndpoint) DstToString() string { return e.String() }

func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.MarshalBinary() // never fails
	return b
}
