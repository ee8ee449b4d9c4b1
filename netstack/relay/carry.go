package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// ErrNoRelay means that there is no such relay.
var ErrNoRelay = errors.New("no such relay")

// route is what it takes to send packets over one UDP session.
type route struct {
	hop     *hop
	session uint32
	addr    netip.AddrPort
	key     *relaymsg.Key
	heard   atomic.Int64 // Unix nanoseconds
	asked   atomic.Int64 // when the first packet since heard was sent, in Unix nanoseconds

	mu  sync.RWMutex
	out numbers
	in  []proto.NodeID // indexed by the relay's numbers
}

func newRoute(h *hop, b *bound) *route {
	r := &route{hop: h, session: b.session, addr: b.addr, key: b.key}
	r.heard.Store(time.Now().UnixNano())
	return r
}

// number returns the header for packets to a peer.
func (r *route) number(peer proto.NodeID, now int64) relaymsg.Header {
	if h, ok := r.known(peer, now); ok {
		return h
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.out.of[peer]
	if o == nil {
		o = r.out.add(peer, now)
	}
	return o.header(r.session, now)
}

func (r *route) known(peer proto.NodeID, now int64) (relaymsg.Header, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	o := r.out.of[peer]
	if o == nil {
		return relaymsg.Header{}, false
	}
	return o.header(r.session, now), true
}

// SendRun implements bind.Carrier.
func (c *Client) SendRun(run []byte, size int, to bind.Via) error {
	h := (*c.table.Load())[to.Relay]
	if h == nil {
		return fmt.Errorf("relay %s: %w", to.Relay, ErrNoRelay)
	}
	now := time.Now().UnixNano()
	if last := h.usedAt.Swap(now); now-last > int64(suspect) {
		c.wake() // the relay may be asleep, or must be watched more closely
	}
	for {
		if r := h.route.Load(); r != nil {
			return c.sendUDP(r, run, size, to.Peer, now)
		}
		if s := h.stream.Load(); s != nil {
			s.send(run, size, to.Peer)
			return nil
		}
		if h.wait(run, size, to.Peer) {
			c.wake()
			return nil
		}
	}
}

func (c *Client) sendUDP(r *route, run []byte, size int, peer proto.NodeID, now int64) error {
	if asked := r.asked.Load(); asked <= r.heard.Load() && now > asked {
		r.asked.Store(now)
	}
	head := r.number(peer, now)
	return sendWrapped(run, min(size, len(run)), 0, head, peer, func(run []byte, size int) error { return c.cfg.Send(run, size, r.addr) })
}

// wait keeps a run until there is a session; if too much is waiting, the oldest runs are dropped. It returns false if there is
// a session by now, whose flush may be over.
func (h *hop) wait(run []byte, size int, peer proto.NodeID) bool {
	h.waitMu.Lock()
	defer h.waitMu.Unlock()
	if h.route.Load() != nil || h.stream.Load() != nil {
		return false
	}
	h.waits = append(h.waits, &parcel{peer: peer, size: size, b: append([]byte(nil), run...)})
	h.waiting += len(run)
	for h.waiting > pending {
		h.waiting -= len(h.waits[0].b)
		h.waits = h.waits[1:]
	}
	return true
}

// flush sends the waiting runs. The caller holds the client's lock.
func (c *Client) flush(h *hop) {
	h.waitMu.Lock()
	waits := h.waits
	h.waits, h.waiting = nil, 0
	h.waitMu.Unlock()
	now := time.Now().UnixNano()
	for _, p := range waits {
		if r := h.route.Load(); r != nil {
			if err := c.sendUDP(r, p.b, p.size, p.peer, now); err != nil {
				c.cfg.Log.Debug("cannot send to a relay", "relay", h.relay.ID, "err", err)
			}
		} else if s := h.stream.Load(); s != nil {
			s.send(p.b, p.size, p.peer)
		}
	}
}

// FromUDP implements bind.Carrier.
func (c *Client) FromUDP(run []byte, size int, from netip.AddrPort) (n, newSize int, via bind.Via, ok bool) {
	if !relaymsg.Is(run) {
		return 0, 0, bind.Via{}, false
	}
	size = min(size, len(run))
	h := relaymsg.ParseHeader(run)
	if h.Kind != relaymsg.Data && h.Kind != relaymsg.DataFor {
		for len(run) > 0 {
			msg := run[:min(size, len(run))]
			run = run[len(msg):]
			c.control(msg, from)
		}
		return 0, 0, bind.Via{}, false
	}
	c.sessionsMu.RLock()
	r := c.sessions[h.Session]
	c.sessionsMu.RUnlock()
	if r == nil || r.addr != netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) {
		return 0, 0, bind.Via{}, false
	}
	r.heard.Store(time.Now().UnixNano())
	peer := r.sender(h, run)
	if peer == 0 {
		c.tell(r, relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Unknown, Number: h.Number}})
		return 0, 0, bind.Via{}, false
	}
	if h.Kind == relaymsg.DataFor {
		c.tell(r, relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Learned, Number: h.Number}, Peer: peer})
	}
	skip := headSize(h.Kind)
	if size <= skip {
		return 0, 0, bind.Via{}, false
	}
	n, newSize = strip(run, size, skip)
	return n, newSize, bind.Via{Relay: r.hop.relay.ID, Peer: peer}, n > 0
}

// sender returns the peer that the relay's number stands for.
func (r *route) sender(h relaymsg.Header, run []byte) proto.NodeID {
	number := int(h.Number)
	r.mu.RLock()
	var known proto.NodeID
	if number < len(r.in) {
		known = r.in[number]
	}
	r.mu.RUnlock()
	if h.Kind == relaymsg.Data {
		return known
	}
	peer := relaymsg.Peer(run)
	if peer == known || number >= maxPeers {
		return known
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.in) <= number {
		r.in = append(r.in, 0)
	}
	r.in[number] = peer
	return peer
}

// tell sends a control datagram of a session.
func (c *Client) tell(r *route, m relaymsg.Message) {
	m.Session = r.session
	b := relaymsg.Append(make([]byte, 0, 64), &m, r.key, false)
	if err := c.cfg.Send(b, len(b), r.addr); err != nil {
		c.cfg.Log.Debug("cannot send to a relay", "relay", r.hop.relay.ID, "err", err)
	}
}

// control handles a datagram that carries no packet.
func (c *Client) control(b []byte, from netip.AddrPort) {
	m, err := relaymsg.Parse(b)
	if err != nil {
		return
	}
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if m.Kind == relaymsg.Learned || m.Kind == relaymsg.Unknown {
		c.sessionsMu.RLock()
		r := c.sessions[m.Session]
		c.sessionsMu.RUnlock()
		if r != nil && r.addr == from && r.key.Verify(b, true) {
			r.learned(&m)
		}
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range *c.table.Load() {
		if (h.try != nil && h.try.session == m.Session) || (h.cur != nil && h.cur.session == m.Session) {
			c.sync(h)
			c.do(h, h.Step(time.Now(), arrived{from: from, m: m, raw: b}, c.chance))
			if r := h.route.Load(); r != nil && h.cur != nil && h.cur.heard.UnixNano() > r.heard.Load() {
				r.heard.Store(h.cur.heard.UnixNano())
			}
			c.wake()
			return
		}
	}
}

// learned records whether the relay knows which peer a number stands for.
func (r *route) learned(m *relaymsg.Message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.learn(m)
}

// Receive implements bind.Carrier.
func (c *Client) Receive(closed <-chan struct{}, buf []byte) (n, size int, via bind.Via, err error) {
	for {
		select {
		case <-closed:
			return 0, 0, bind.Via{}, net.ErrClosed
		case <-c.ctx.Done():
			return 0, 0, bind.Via{}, net.ErrClosed
		case f := <-c.inbox:
			n, size = copy(buf, f.b), min(f.size, len(f.b))
			via = f.via
			fits := n == len(f.b)
			f.free()
			if fits {
				return n, size, via, nil
			}
		}
	}
}
