package sim

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	tcpRetry   = time.Second
	tcpSegment = 1200
)

// TCPConn is a TCP connection of a Stack, limited to what tests need: stop-and-wait, and it accepts a reset only with exactly
// the right sequence number (RFC 5961).
type TCPConn struct {
	stack *Stack
	flow  flow

	// Guarded by the stack's lock.
	opening        bool // our SYN has not been answered yet
	echo           bool // an accepted connection: it echoes what it receives
	sent, received uint32
	unacked        []byte // last data sent, until it is acknowledged
	acked          uint32
	inbox          []byte
	moved          signal
	err            error
	ended          chan struct{}
}

// DialTCP opens a connection.
func (s *Stack) DialTCP(ctx context.Context, dst netip.AddrPort) (*TCPConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	src, err := s.source(dst.Addr())
	if err != nil {
		return nil, err
	}
	c := s.newConn(flow{proto.ProtoTCP, netip.AddrPortFrom(src, s.port()), dst})
	c.opening = true
	c.sent = c.acked + 1
	if err := c.persist(ctx, func() { c.emit(SYN, c.acked, nil) }, func() bool { return !c.opening }); err != nil {
		c.die(err)
		return nil, fmt.Errorf("connect to %s: %w", dst, err)
	}
	return c, nil
}

func (s *Stack) newConn(f flow) *TCPConn {
	first := uint32(f.local.Port())<<16 | uint32(f.remote.Port())
	c := &TCPConn{stack: s, flow: f, sent: first, acked: first, ended: make(chan struct{})}
	s.conns[f] = c
	return c
}

// persist repeats do until worked returns true. The caller holds the lock.
func (c *TCPConn) persist(ctx context.Context, do func(), worked func() bool) error {
	s := c.stack
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.moved.fire()
	})
	defer stop()
	var again time.Time
	for {
		switch {
		case worked():
			return nil
		case c.err != nil:
			return c.err
		case ctx.Err() != nil:
			return ctx.Err()
		case again.IsZero() || past(again):
			do()
			again = time.Now().Add(tcpRetry)
			continue
		}
		ch := c.moved.changed()
		s.mu.Unlock()
		await(ch, again)
		s.mu.Lock()
	}
}

// Echo sends data and waits for as much in return, which it returns.
func (c *TCPConn) Echo(ctx context.Context, data []byte) ([]byte, error) {
	s := c.stack
	s.mu.Lock()
	defer s.mu.Unlock()
	var back []byte
	for len(data) > 0 {
		part := data[:min(len(data), tcpSegment)]
		data = data[len(part):]
		at := c.sent
		c.sent += uint32(len(part))
		err := c.persist(ctx, func() { c.emit(ACK|PSH, at, part) }, func() bool { return len(c.inbox) >= len(part) })
		if err != nil {
			return back, err
		}
		back = append(back, c.inbox[:len(part)]...)
		c.inbox = c.inbox[len(part):]
	}
	return back, nil
}

// Close ends the connection from this side, without waiting for the other.
func (c *TCPConn) Close() error {
	c.stack.mu.Lock()
	defer c.stack.mu.Unlock()
	if c.err == nil {
		c.emit(FIN|ACK, c.sent, nil)
		c.die(io.EOF)
	}
	return nil
}

// Ended returns a channel that is closed when the connection has ended: Err tells why.
func (c *TCPConn) Ended() <-chan struct{} { return c.ended }

// Err returns why the connection has ended; nil while it lives.
func (c *TCPConn) Err() error {
	c.stack.mu.Lock()
	defer c.stack.mu.Unlock()
	return c.err
}

// Accepted returns the live connections that others opened.
func (s *Stack) Accepted() []*TCPConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*TCPConn
	for _, c := range s.conns {
		if c.echo {
			out = append(out, c)
		}
	}
	return out
}

func (c *TCPConn) die(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	delete(c.stack.conns, c.flow)
	close(c.ended)
	c.moved.fire()
}

func (c *TCPConn) emit(flags uint8, seq uint32, data []byte) {
	c.stack.tun.Send(TCP(c.flow.local, c.flow.remote, flags, seq, c.received, data).Bytes())
}

// tcp handles a TCP segment, for a connection or not.
func (s *Stack) tcp(p Packet) {
	f := flow{p.Proto, p.Dst, p.Src}
	c := s.conns[f]
	switch {
	case c != nil:
		c.input(p)
	case p.Flags&RST != 0:
	case p.Flags&(SYN|ACK) == SYN && s.tcpPorts[p.Dst.Port()]:
		c = s.newConn(f)
		c.echo = true
		c.received = p.Seq + 1
		c.emit(SYN|ACK, c.sent, nil)
		c.sent++
	case p.Flags&ACK != 0:
		s.tun.Send(TCP(p.Dst, p.Src, RST, p.Ack, 0, nil).Bytes())
	default:
		s.tun.Send(TCP(p.Dst, p.Src, RST|ACK, 0, p.Seq+uint32(len(p.Payload))+1, nil).Bytes())
	}
}

func (c *TCPConn) input(p Packet) {
	switch {
	case p.Flags&RST != 0:
		if (c.opening && p.Flags&ACK != 0 && p.Ack == c.sent) || (!c.opening && p.Seq == c.received) {
			c.die(ErrReset)
		}
	case c.opening:
		if p.Flags&(SYN|ACK) == SYN|ACK && p.Ack == c.sent {
			c.opening, c.acked, c.received = false, p.Ack, p.Seq+1
			c.emit(ACK, c.sent, nil)
			c.moved.fire()
		}
	case p.Flags&(SYN|ACK) == SYN: // repeated: our answer was lost
		c.emit(SYN|ACK, c.sent-1, nil)
	case p.Flags&SYN != 0: // repeated: our acknowledgement was lost
		c.emit(ACK, c.sent, nil)
	default:
		c.segment(p)
	}
}

func (c *TCPConn) segment(p Packet) {
	if p.Flags&ACK != 0 && int32(p.Ack-c.acked) > 0 {
		c.acked = p.Ack
		if c.acked == c.sent {
			c.unacked = nil
		}
		c.moved.fire()
	}
	switch n := uint32(len(p.Payload)); {
	case n > 0 && p.Seq != c.received: // repeated: our answer was lost
		c.emit(ACK|PSH, c.sent-uint32(len(c.unacked)), c.unacked)
	case n > 0 && c.echo:
		c.received += n
		c.unacked = p.Payload
		c.emit(ACK|PSH, c.sent, p.Payload)
		c.sent += n
	case n > 0:
		c.received += n
		c.inbox = append(c.inbox, p.Payload...)
		c.emit(ACK, c.sent, nil)
		c.moved.fire()
	}
	if p.Flags&FIN != 0 && p.Seq+uint32(len(p.Payload)) == c.received {
		c.received++
		c.emit(ACK|FIN, c.sent, nil)
		c.die(io.EOF)
	}
}
