package relay

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// runner is an open stream to a relay: one goroutine reads, one writes.
type runner struct {
	conn    net.Conn
	unheard atomic.Int64 // when something was sent with nothing received since, in Unix nanoseconds; 0 if never

	mu    sync.Mutex
	queue queue
	wake  chan struct{}
}

// wantsStream reports whether there should be a stream to the relay: when UDP does not work.
func (h *hop) wantsStream(now time.Time) bool {
	if !h.want || h.cur != nil || len(h.relay.URLs) == 0 || h.client.cfg.Open == nil {
		return false
	}
	return len(h.addrs) == 0 || h.failures > 0 || (h.try != nil && now.Sub(h.try.said) >= headStart)
}

// streamDue returns when to look at the stream again.
func (h *hop) streamDue(now time.Time) time.Time {
	if !h.want || h.cur != nil || h.dialing != nil {
		return time.Time{}
	}
	if h.wantsStream(now) {
		return laterOf(h.redial, now)
	}
	if h.try != nil {
		return h.try.said.Add(headStart)
	}
	return time.Time{}
}

// tendStream opens a stream if one is wanted, and ends one that is no longer wanted. The caller holds the lock.
func (c *Client) tendStream(now time.Time, h *hop) {
	if !h.want && h.stream.Load() != nil {
		h.hangUp()
		return
	}
	if h.dialing != nil || !h.wantsStream(now) || now.Before(h.redial) {
		return
	}
	ctx, cancel := context.WithCancel(c.ctx)
	h.dialing = cancel
	c.all.Go(func() {
		err := c.stream(ctx, h)
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		h.stream.Store(nil)
		h.dialing = nil
		if h.cur == nil {
			h.since = time.Time{}
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			h.streamErr = err
			wait := min(pause<<min(h.streams, 10), maxPause)
			h.streams++
			h.redial = time.Now().Add(time.Duration(c.chance.Float64() * float64(wait)))
			c.cfg.Log.Debug("stream to a relay ended", "relay", h.relay.ID, "err", err)
		}
		c.changed()
		c.wake()
	})
}

// hangUp ends the stream, or the attempt to open one. The caller holds the lock.
func (h *hop) hangUp() {
	if h.dialing != nil {
		h.dialing()
	}
	h.stream.Store(nil)
}

// stream opens a stream and serves it until it ends.
func (c *Client) stream(ctx context.Context, h *hop) error {
	conn, err := c.cfg.Open(ctx, &h.relay)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	x := &runner{conn: conn, queue: queue{limit: waiting}, wake: make(chan struct{}, 1)}
	ended := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() { x.write(ctx, ended) })
	defer writer.Wait()
	defer close(ended)
	return c.readStream(ctx, h, x)
}

// readStream handles frames until the stream ends.
func (c *Client) readStream(ctx context.Context, h *hop, x *runner) error {
	r := bufio.NewReaderSize(x.conn, gathered)
	buf := make([]byte, relaymsg.MaxFrame)
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_ = x.conn.SetReadDeadline(time.Now().Add(deaf))
		f, body, err := relaymsg.ReadFrame(r, buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if x.silent(time.Now()) >= silence {
				return errMute
			}
			return err
		}
		x.unheard.Store(0)
		if f.Kind == relaymsg.Data {
			in := newFrame()
			in.b, in.size, in.via = append(in.b, body...), f.Size, bind.Via{Relay: h.relay.ID, Peer: f.Peer}
			select {
			case c.inbox <- in:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		m, err := relaymsg.ParseControl(f, body)
		if err != nil {
			return err
		}
		c.streamTold(ctx, h, x, m)
	}
}

// streamTold handles a control message received over a stream.
func (c *Client) streamTold(ctx context.Context, h *hop, x *runner, m relaymsg.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	switch m.Kind {
	case relaymsg.Bound:
		if h.cur != nil || ctx.Err() != nil {
			h.hangUp() // UDP won
			return
		}
		h.streams, h.streamErr, h.streamSeen, h.since, h.drains = 0, nil, m.Addr, now, time.Time{}
		h.stream.Store(x)
		c.flush(h)
		c.changed()
	case relaymsg.Pong:
		if d := now.Sub(time.Unix(0, int64(m.Token))); d >= 0 && d < time.Minute {
			h.setRTT(now, d)
		}
	case relaymsg.Drain:
		c.do(h, h.told(now, &bound{}, m))
	case relaymsg.Unreached:
		c.do(h, []effect{unreachable{m.Peer, m.Reason}})
	}
	c.wake()
}

// send queues a run; if too much is waiting, the oldest is dropped.
func (x *runner) send(run []byte, size int, peer proto.NodeID) {
	f := newFrame()
	f.b = append(relaymsg.Frame{Kind: relaymsg.Data, Size: min(size, len(run)), Length: len(run), Peer: peer}.Append(f.b), run...)
	x.mu.Lock()
	x.queue.put(peer, f)
	x.mu.Unlock()
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

const (
	// doubtful is how long a stream may be silent after something was sent before the relay is pinged.
	doubtful = time.Second
	// silence is how long until the stream is given up. TCP alone needs minutes to notice that a NAT has forgotten it; a slow
	// uplink may well have some seconds of data queued.
	silence = 6 * time.Second
)

// silent returns how long nothing has been received since something was sent.
func (x *runner) silent(now time.Time) time.Duration {
	since := x.unheard.Load()
	if since == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, since))
}

// write sends waiting frames, and a ping if none were sent for long or nothing comes back. It ends a stream that stays silent.
func (x *runner) write(ctx context.Context, ended <-chan struct{}) {
	b := make([]byte, 0, gathered+relaymsg.MaxFrame)
	due := time.NewTimer(0)
	defer due.Stop()
	var warm time.Time // when the next ping is due in any case
	var asked int64    // the value of unheard for which the relay was pinged
	for {
		select {
		case <-ended:
			return
		case <-x.wake:
		case <-due.C:
		}
		now, since := time.Now(), x.unheard.Load()
		switch d := x.silent(now); {
		case d >= silence:
			_ = x.conn.SetDeadline(time.Unix(1, 0)) // the reader then ends
			return
		case !now.Before(warm), d >= doubtful && asked != since:
			x.mu.Lock()
			x.queue.putControl(relaymsg.AppendControl(nil, &relaymsg.Message{
				Header: relaymsg.Header{Kind: relaymsg.Ping}, Token: uint64(now.UnixNano()),
			}))
			x.mu.Unlock()
			warm, asked = now.Add(keepWarm), since
		}
		if !x.writeWaiting(ctx, b) {
			_ = x.conn.SetDeadline(time.Unix(1, 0))
			return
		}
		next := time.Until(warm)
		if since := x.unheard.Load(); since != 0 {
			limit := doubtful
			if since == asked {
				limit = silence
			}
			next = min(next, limit-x.silent(time.Now()))
		}
		due.Reset(next)
	}
}

// writeWaiting writes the waiting frames; it returns false if that fails. b is its buffer.
func (x *runner) writeWaiting(ctx context.Context, b []byte) bool {
	for ctx.Err() == nil {
		x.mu.Lock()
		b = x.queue.take(b[:0], gathered)
		x.mu.Unlock()
		if len(b) == 0 {
			break
		}
		_ = x.conn.SetWriteDeadline(time.Now().Add(stuck))
		if _, err := x.conn.Write(b); err != nil {
			return false
		}
		x.unheard.CompareAndSwap(0, time.Now().UnixNano())
	}
	return true
}
