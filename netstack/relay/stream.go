package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

const (
	// stuck is how long a node may take to read what it is sent.
	stuck = 20 * time.Second
	// deaf is how long a stream may be silent. Both sides send pings every keepWarm.
	deaf = 2*keepWarm + 10*time.Second
	// gathered is how many bytes are written at once.
	gathered = 64 << 10
)

// stream is a node's session over a stream. The goroutine that serves it reads; another one writes.
type stream struct {
	server *Server
	conn   net.Conn
	node   proto.NodeID
	until  time.Time
	began  time.Time
	heard  atomic.Int64 // time of the last packets, in Unix nanoseconds

	mu     sync.Mutex
	queue  queue
	told   chan struct{} // closed once what is queued has been written; nil if nobody waits for that
	closed bool
	wake   chan struct{} // holds a value while there is something to write
	ended  chan struct{}

	// Used only by the reader.
	pairs  map[proto.NodeID]*pair
	bucket bucket
}

// ErrRefused means that a relay does not serve a node.
var ErrRefused = errors.New("relay refuses")

// ServeStream serves a node over a stream, after the Upgrade, until it ends. The certificate (DER) is the one that the node has
// presented in the stream's TLS, and decides whether it is admitted.
func (s *Server) ServeStream(c net.Conn, certificate []byte) error {
	defer c.Close()
	id, until, err := s.cfg.Permit.Admit(certificate)
	if err != nil {
		return err
	}
	x := &stream{
		server: s, conn: c, node: id, until: until, began: time.Now(), queue: queue{limit: waiting},
		wake: make(chan struct{}, 1), ended: make(chan struct{}), pairs: map[proto.NodeID]*pair{},
	}
	if err := s.join(x); err != nil {
		return err
	}
	remote, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // invalid if there is none
	x.control(&relaymsg.Message{
		Header: relaymsg.Header{Kind: relaymsg.Bound}, Seconds: uint32(max(0, time.Until(until)/time.Second)),
		Addr: netip.AddrPortFrom(remote.Addr().Unmap().WithZone(""), remote.Port()),
	})
	var writer sync.WaitGroup
	writer.Go(x.write)
	err = x.read()
	x.close()
	writer.Wait()
	s.leave(x)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// join registers a stream: of a node's, only the last one stays.
func (s *Server) join(x *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.nodes[x.node]
	switch {
	case s.closed || s.draining:
		return errors.Join(ErrRefused, errors.New(relaymsg.ReasonDraining.String()))
	case !s.cfg.Permit.Trusted(x.node):
		return errors.Join(ErrRefused, errors.New(relaymsg.ReasonCertificate.String()))
	case a == nil && len(s.sessions)+len(s.streams) >= s.cfg.Sessions:
		return errors.Join(ErrRefused, errors.New(relaymsg.ReasonFull.String()))
	case a == nil:
		a = &attached{}
		s.nodes[x.node] = a
	}
	if a.stream != nil {
		a.stream.close()
	}
	a.stream = x
	s.streams[x] = struct{}{}
	return nil
}

func (s *Server) leave(x *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, x)
	if a := s.nodes[x.node]; a != nil && a.stream == x {
		a.stream = nil
		if a.session == nil {
			delete(s.nodes, x.node)
		}
	}
}

// close ends the stream; it may be called more than once, and does not wait.
func (x *stream) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return
	}
	x.closed = true
	x.queue.clear()
	close(x.ended)
	// This stops the reader and writer. Closing is up to whoever serves the stream, since that may block to send a last message.
	_ = x.conn.SetDeadline(time.Unix(1, 0))
}

// deadline sets a deadline for reading or writing, and reports whether the stream is still open.
func (x *stream) deadline(set func(time.Time) error, in time.Duration) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.closed {
		_ = set(time.Now().Add(in))
	}
	return !x.closed
}

// push queues a frame of packets, after writing the length in its header.
func (x *stream) push(from proto.NodeID, f *frame) {
	f.setLength()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		f.free()
		return
	}
	before := x.queue.dropped
	x.queue.put(from, f)
	x.server.metrics.dropped.Add(float64(x.queue.dropped - before))
	x.signal()
}

func (x *stream) control(m *relaymsg.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.put(m)
}

// put queues a control message. The caller holds x.mu.
func (x *stream) put(m *relaymsg.Message) {
	if !x.closed {
		x.queue.putControl(relaymsg.AppendControl(nil, m))
		x.signal()
	}
}

// tell queues a control message, and returns a channel that is closed once it has been written.
func (x *stream) tell(m *relaymsg.Message) <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.told == nil {
		x.told = make(chan struct{})
	}
	x.put(m)
	return x.told
}

func (x *stream) signal() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// write sends waiting frames, many at once.
func (x *stream) write() {
	b := make([]byte, 0, gathered+relaymsg.MaxFrame)
	for {
		select {
		case <-x.ended:
			return
		case <-x.wake:
		}
		for {
			x.mu.Lock()
			b = x.queue.take(b[:0], gathered)
			told := x.told
			x.told = nil
			x.mu.Unlock()
			if len(b) == 0 {
				break
			}
			if !x.deadline(x.conn.SetWriteDeadline, stuck) {
				return
			}
			if _, err := x.conn.Write(b); err != nil {
				x.close()
				return
			}
			if told != nil {
				close(told)
			}
		}
	}
}

// read forwards what the node sends until the stream ends.
func (x *stream) read() error {
	s := x.server
	in := counted{s.metrics.packets.WithLabelValues("stream"), s.metrics.bytes.WithLabelValues("stream")}
	for x.deadline(x.conn.SetReadDeadline, deaf) {
		if err := x.next(in); err != nil {
			return err
		}
	}
	return net.ErrClosed
}

// next handles one frame. A buffer is borrowed only while there is something to put in it.
func (x *stream) next(in counted) error {
	var head [relaymsg.FrameSize]byte
	if _, err := io.ReadFull(x.conn, head[:]); err != nil {
		return err
	}
	f, err := relaymsg.ParseFrame(head[:])
	if err != nil {
		return err
	}
	p := buffers.Get().(*[]byte) //nolint:errcheck // nothing else is put there
	defer buffers.Put(p)
	body := (*p)[:f.Length]
	if _, err := io.ReadFull(x.conn, body); err != nil {
		return err
	}
	if f.Kind == relaymsg.Data {
		x.forward(time.Now(), f, body, in)
		return nil
	}
	m, err := relaymsg.ParseControl(f, body)
	if err == nil && m.Kind == relaymsg.Ping {
		x.control(&relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Pong}, Token: m.Token})
	}
	return err
}

func (x *stream) forward(now time.Time, f relaymsg.Frame, body []byte, in counted) {
	s := x.server
	x.heard.Store(now.UnixNano())
	if !x.bucket.take(now, float64(s.cfg.Rate), float64(s.cfg.Rate)/8, float64(len(body))) {
		s.metrics.refused.WithLabelValues(relaymsg.ReasonRate.String()).Inc()
		return
	}
	p := x.pairs[f.Peer]
	if p == nil {
		if len(x.pairs) >= maxPeers {
			clear(x.pairs)
		}
		p = &pair{peer: f.Peer}
		x.pairs[f.Peer] = p
	}
	reason := relaymsg.Reason(0)
	target, stream := s.way(f.Peer)
	switch {
	case f.Peer == x.node || !s.permitted(x.node, p):
		reason = relaymsg.ReasonNotPermitted
	case target != nil:
		s.mu.RLock()
		udp := s.udp
		s.mu.RUnlock()
		s.toSession(udp, now, x.node, target, body, f.Size, 0)
	case stream != nil:
		out := newFrame()
		out.b = append(relaymsg.Frame{Kind: relaymsg.Data, Size: f.Size, Length: 1, Peer: x.node}.Append(out.b), body...)
		stream.push(x.node, out)
	default:
		reason = relaymsg.ReasonAway
	}
	if reason != 0 {
		s.metrics.refused.WithLabelValues(reason.String()).Inc()
		if p.tell(now) {
			x.control(&relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Unreached}, Peer: f.Peer, Reason: reason})
		}
		return
	}
	in.packets.Add(float64((len(body) + f.Size - 1) / f.Size))
	in.bytes.Add(float64(len(body)))
}
