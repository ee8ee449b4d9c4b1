package bind

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Via names a path through a relay. The zero Via means a direct path.
type Via struct{ Relay, Peer proto.NodeID }

// Carrier moves runs through relays.
type Carrier interface {
	// SendRun sends a run of messages of size bytes (the last may be shorter) to a peer through a relay. It never blocks: if a
	// queue is full, the oldest entry is dropped.
	SendRun(run []byte, size int, to Via) error
	// FromUDP strips a relay's header off a run received over UDP, in place: the rest begins where the run did. All messages of
	// the run begin with the same RelayHeader bytes. ok is false if nothing is left for a peer: the run is not from a relay, or
	// was for the Carrier itself. The run is valid only during the call.
	FromUDP(run []byte, size int, from netip.AddrPort) (n, newSize int, via Via, ok bool)
	// Receive waits for a run received over a stream; buf has RunSize bytes or the size of a batch's buffer. It returns
	// net.ErrClosed once closed is closed. It is called by one goroutine at a time.
	Receive(closed <-chan struct{}, buf []byte) (n, size int, via Via, err error)
}

// Handler handles messages that are neither WireGuard's nor a relay's. Messages are valid only during the call, and it may be
// called by several goroutines. It must not block.
type Handler interface {
	// Path handles a path message. It is answered by sending to from.
	Path(from *Endpoint, msg []byte)
	// STUN handles a response or request of RFC 8489.
	STUN(from netip.AddrPort, msg []byte)
}

// RelayHeader is the size of the relay's header at the start of a relayed UDP message.
const RelayHeader = 8

// How messages begin.
const (
	firstPath   = 0xd0 // of the magic of path messages
	firstRelay  = 0xe0 // the high nibble
	stunCookie  = 0x2112a442
	stunHeader  = 20
	stunTopBits = 0xc0
)

// kind is the class of a message.
type kind uint8

const (
	kindEngine kind = iota // WireGuard's, or unknown: the engine counts those
	kindPath
	kindSTUN
	kindRelay
)

// kindOf classifies a message by how it begins. WireGuard's first byte is 1 to 4, followed by three zeros.
func kindOf(msg []byte) kind {
	switch {
	case len(msg) == 0:
		return kindEngine
	case msg[0] == firstPath:
		return kindPath
	case msg[0]&0xf0 == firstRelay:
		return kindRelay
	case msg[0]&stunTopBits == 0 && len(msg) >= stunHeader && binary.BigEndian.Uint32(msg[4:]) == stunCookie:
		return kindSTUN
	}
	return kindEngine
}

// Serve sets who handles non-WireGuard messages. It must be called before Open; without it everything goes to the engine.
func (b *Bind) Serve(h Handler, c Carrier) { b.handler, b.carrier = h, c }

// take passes a message to its handler, unless it is the engine's. Relayed messages must be unwrapped first.
func (b *Bind) take(msg []byte, from *Endpoint) bool {
	if b.handler == nil {
		return false
	}
	switch kindOf(msg) {
	case kindPath:
		b.handler.Path(from, msg)
	case kindSTUN:
		if from.via == (Via{}) && from.extra == nil {
			b.handler.STUN(from.dst, msg)
		}
	default:
		return false
	}
	return true
}

// relayedMessage reports whether a message comes with a relay's header.
func (b *Bind) relayedMessage(msg []byte) bool { return b.carrier != nil && kindOf(msg) == kindRelay }

// unwrap strips a relay's header off a message or run. The rest is the engine's or a path message.
func (b *Bind) unwrap(run []byte, size int, from *Endpoint) (rest []byte, newSize int, e *Endpoint) {
	n, newSize, via, ok := b.carrier.FromUDP(run, size, from.dst)
	if !ok || n == 0 || newSize == 0 {
		return nil, 0, nil
	}
	return run[:n], newSize, b.RelayEndpoint(via)
}

// leading returns the part at the start of a run that is handled at once: the messages that share one relay header, or those
// before the first relayed one.
func (b *Bind) leading(run []byte, size int) (n int, relay bool) {
	if b.carrier == nil {
		return len(run), false
	}
	if b.relayedMessage(run) {
		return sameHeader(run, size), true
	}
	for at := 0; at < len(run); at += size {
		if b.relayedMessage(run[at:]) {
			return at, false
		}
	}
	return len(run), false
}

// sift passes the messages of a run that are not the engine's to their handlers, drops repeated initiations, and closes the
// gaps. Only the last message of a run may be shorter, so the rest is a run as well.
func (b *Bind) sift(run []byte, size int, from *Endpoint) []byte {
	kept, gap := 0, false
	for at := 0; at < len(run); {
		msg := run[at:min(at+size, len(run))]
		at += len(msg)
		if b.take(msg, from) || (isInitiation(msg) && !b.once.first(msg)) {
			gap = true
			continue
		}
		if gap {
			copy(run[kept:], msg)
		}
		kept += len(msg)
	}
	return run[:kept]
}

// sameHeader returns the length of the part at the start of a relayed run whose messages have the same header.
func sameHeader(run []byte, size int) int {
	if size < RelayHeader || len(run) < RelayHeader {
		return len(run)
	}
	at := min(size, len(run))
	for at < len(run) {
		next := run[at:min(at+size, len(run))]
		if len(next) < RelayHeader || !bytes.Equal(next[:RelayHeader], run[:RelayHeader]) {
			break
		}
		at += len(next)
	}
	return at
}

// maxRelayed bounds how many relay endpoints are kept; beyond that it starts over.
const maxRelayed = 1 << 14

// RelayEndpoint returns the endpoint of a peer behind a relay. It has an address of its own that no packet is ever sent to,
// since engines limit handshakes by address and bind their cookies to it.
func (b *Bind) RelayEndpoint(via Via) *Endpoint {
	b.relayedMu.RLock()
	e := b.relayed[via]
	b.relayedMu.RUnlock()
	if e != nil {
		return e
	}
	b.relayedMu.Lock()
	defer b.relayedMu.Unlock()
	if e := b.relayed[via]; e != nil {
		return e
	}
	if b.relayed == nil || len(b.relayed) >= maxRelayed {
		b.relayed = map[Via]*Endpoint{}
	}
	e = &Endpoint{bind: b, via: via, dst: synthetic(via)}
	b.relayed[via] = e
	return e
}

// synthetic derives an address in 100::/16, which is unused, from the numbers of relay and peer. Each pair has its own /64,
// since that counts as one host.
func synthetic(v Via) netip.AddrPort {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], uint64(v.Peer^v.Relay))
	a[0], a[1] = 0x01, 0x00
	binary.BigEndian.PutUint64(a[8:], uint64(v.Peer))
	return netip.AddrPortFrom(netip.AddrFrom16(a), 1)
}

// carry sends a run through a relay.
func (b *Bind) carry(run []byte, size int, e *Endpoint) error {
	if b.carrier == nil {
		return fmt.Errorf("send through relay %s: %w", e.via.Relay, errors.ErrUnsupported)
	}
	return b.carrier.SendRun(run, size, e.via)
}

// SendTo sends a message that is not WireGuard's.
func (b *Bind) SendTo(msg []byte, to netip.AddrPort) error {
	e, err := b.plainEndpoint(to)
	if err != nil {
		return err
	}
	return b.cfg.Inner.Send([][]byte{msg}, e)
}

// SendRunTo sends a run of messages of size bytes, of which the last may be shorter, to an address, in one system call if the
// system supports it.
func (b *Bind) SendRunTo(run []byte, size int, to netip.AddrPort) error {
	e, err := b.plainEndpoint(to)
	if err != nil {
		return err
	}
	if r, ok := b.cfg.Inner.(Runs); ok {
		return r.SendRun(run, size, e)
	}
	return sendSplit(b.cfg.Inner, run, size, e)
}

// sendSplit sends a run as batches of messages.
func sendSplit(inner conn.Bind, run []byte, size int, to conn.Endpoint) error {
	bufs := make([][]byte, 0, inner.BatchSize())
	for len(run) > 0 {
		msg := run[:min(size, len(run))]
		run = run[len(msg):]
		if bufs = append(bufs, msg); len(bufs) == cap(bufs) || len(run) == 0 {
			if err := inner.Send(bufs, to); err != nil {
				return err
			}
			bufs = bufs[:0]
		}
	}
	return nil
}

// maxPlain is how many addresses are remembered in the inner Bind's form.
const maxPlain = 1024

func (b *Bind) plainEndpoint(to netip.AddrPort) (conn.Endpoint, error) {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if b.refuses(to.Addr()) {
		return nil, fmt.Errorf("send to %s: it is in the mesh itself", to)
	}
	b.plainMu.Lock()
	defer b.plainMu.Unlock()
	if e := b.plain[to]; e != nil {
		return e, nil
	}
	e, err := b.cfg.Inner.ParseEndpoint(to.String())
	if err != nil {
		return nil, fmt.Errorf("send to %s: %w", to, err)
	}
	if b.plain == nil || len(b.plain) >= maxPlain {
		b.plain = map[netip.AddrPort]conn.Endpoint{}
	}
	b.plain[to] = e
	return e, nil
}

// receiveStreams returns a RunFunc for what the relays send over streams.
func (b *Bind) receiveStreams(closed <-chan struct{}) RunFunc {
	return func(buf []byte) (int, int, conn.Endpoint, error) {
		for {
			n, size, via, err := b.carrier.Receive(closed, buf)
			if err != nil {
				return 0, 0, nil, err
			}
			e := b.RelayEndpoint(via)
			if kept := b.sift(buf[:n], size, e); len(kept) > 0 {
				return len(kept), size, e, nil
			}
		}
	}
}
