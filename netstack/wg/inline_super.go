package wg

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
)

// maxBurst is how many super-packets are read before others get the engine's lock and the clock is read again.
const maxBurst = 64

// superSender is the state of one queue's reader. It gathers messages for one peer into a run.
type superSender struct {
	packet *tun.Super
	now    time.Time
	mtu    int // for packets to node
	limit  int // on packets to node; 0 means none but the device's

	to   netip.Addr // destination of the last packet
	over *node      // peer that to belongs to

	node     *node // that the run is for; nil if there is no run
	session  *session.Session
	endpoint conn.Endpoint
	sealed   bool // something in this burst was sealed
	staged   bool // something waits for a session

	run   []byte // the messages so far
	size  int    // of its messages except the last
	count int
	short bool // the last one is shorter, so none can follow
}

func newSuperSender() *superSender {
	return &superSender{packet: tun.NewSuper(), run: make([]byte, 0, bind.MaxRun)}
}

// readSupers seals and sends the host's packets from one queue until the device breaks.
func (e *Inline) readSupers(q tun.SuperReader) {
	defer e.stop()
	s := newSuperSender()
	for {
		if ok, err := q.ReadSuper(s.packet, true); err != nil {
			if err == tun.ErrMalformed { //nolint:errorlint // it comes bare, and often
				continue
			}
			e.log.Debug("the device cannot be read any more", "err", err)
			return
		} else if ok {
			e.burst(s, q)
		}
	}
}

// burst sends the packet just read, and whatever else is ready.
func (e *Inline) burst(s *superSender, q tun.SuperReader) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	s.now = e.now()
	for n := 1; ; n++ {
		e.forward(s)
		if n == maxBurst {
			break
		}
		if ok, err := q.ReadSuper(s.packet, false); !ok || err != nil {
			break // a lasting error recurs, and is handled then
		}
	}
	e.finish(s)
	s.to, s.over = netip.Addr{}, nil // the address may change owners meanwhile
}

// forward seals a packet, or all of a super-packet, and sends the run whenever the next message does not fit.
func (e *Inline) forward(s *superSender) {
	to, ok := destination(s.packet.Packet())
	if !ok {
		return
	}
	if to != s.to {
		s.to, s.over = to, e.behind(to)
	}
	if s.over == nil {
		e.lose(nil, DropNoPeer, s.packet.Count())
		return
	}
	if s.over != s.node {
		e.finish(s)
		e.begin(s)
	}
	if s.limit > 0 && s.packet.Largest() > s.limit && !e.fit(s.node, s.packet, s.limit, s.now) {
		return
	}
	for pkt := s.packet.Next(); pkt != nil; pkt = s.packet.Next() {
		if s.session != nil && e.append(s, pkt) {
			continue
		}
		s.session, s.staged = nil, true
		s.node.mu.Lock()
		e.stage(s.node, pkt)
		s.node.mu.Unlock()
	}
}

// begin starts a run for a peer.
func (e *Inline) begin(s *superSender) {
	n := s.over
	n.mu.Lock()
	defer n.mu.Unlock()
	e.wake(n, s.now)
	if len(n.waiting) > 0 && n.peer.Current(s.now) != nil {
		e.flush(n, s.now)
	}
	s.node, s.session, s.endpoint = n, n.peer.Current(s.now), n.endpoint
	s.mtu, s.limit = e.mtuTo(n)
}

// append seals a packet at the end of the run. It returns false if the session has reached its message limit.
func (e *Inline) append(s *superSender, pkt []byte) bool {
	full := session.Padded(len(pkt), s.mtu) + noise.Overhead
	if full > cap(s.run) { // no message is that long
		e.lose(s.node, DropUnsent, 1)
		return true
	}
	used := len(s.run)
	if s.count > 0 && (full > s.size || s.short || s.count == bind.MaxRunCount || used+full > cap(s.run)) {
		e.sendRun(s)
		used = 0
	}
	if _, ok := s.session.SealTo(s.run[used:used+full], pkt, s.mtu); !ok {
		return false
	}
	if s.count == 0 {
		s.size = full
	}
	s.short = full < s.size
	s.run = s.run[:used+full]
	s.count++
	s.sealed = true
	return true
}

// sendRun sends the run and starts an empty one.
func (e *Inline) sendRun(s *superSender) {
	if s.count == 0 {
		return
	}
	if err := e.handOver(s); err != nil {
		e.log.Debug("not sent", "node", s.node.id, "messages", s.count, "err", err)
		e.lose(s.node, DropUnsent, s.count)
	} else {
		s.node.tx.Add(uint64(len(s.run)))
	}
	s.run, s.count, s.short = s.run[:0], 0, false
}

var errNowhere = errors.New("nobody knows where the peer is")

func (e *Inline) handOver(s *superSender) error {
	if s.endpoint == nil {
		return errNowhere
	}
	return e.runs.SendRun(s.run, s.size, s.endpoint)
}

// finish sends the run of a peer, and reports it to the peer.
func (e *Inline) finish(s *superSender) {
	n := s.node
	if n == nil {
		return
	}
	e.sendRun(s)
	n.mu.Lock()
	defer n.mu.Unlock()
	if s.staged {
		e.wake(n, s.now)
	}
	if n.peer != nil {
		if s.sealed {
			e.step(n, s.now, session.Sent{Data: true})
		}
		if s.staged {
			e.step(n, s.now, session.Want{})
		}
		e.settle(n)
	}
	s.node, s.session, s.endpoint, s.sealed, s.staged = nil, nil, nil, false, false
}

// maxRunOut is how many packets of a run are written to the device at once.
const maxRunOut = 128

// newRunReceiver returns a receiver for runs: packets stay in place, and the device joins them there.
func newRunReceiver() *receiver { return &receiver{out: make([][]byte, 0, maxRunOut)} }

// receiveRuns opens and delivers runs received on one socket until it closes.
func (e *Inline) receiveRuns(fn bind.RunFunc) {
	r := newRunReceiver()
	buf := make([]byte, bind.RunSize)
	for bad := 0; ; {
		n, size, from, err := fn(buf)
		if err == nil {
			bad = 0
			e.inboundRun(r, buf[:n], size, from)
			continue
		}
		if bad++; !e.tryAgain(err, bad) {
			return
		}
	}
}

// inboundRun handles a received run.
func (e *Inline) inboundRun(r *receiver, run []byte, size int, from conn.Endpoint) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	now := e.now()
	for len(run) > 0 {
		msg := run[:min(size, len(run))]
		run = run[len(msg):]
		switch {
		case len(msg) < noise.Overhead:
			e.lose(nil, DropMalformed, 1)
		case binary.LittleEndian.Uint32(msg) == noise.TypeTransport:
			e.transport(r, msg, from, now)
			if len(r.out) == cap(r.out) {
				e.deliver(r)
			}
		default:
			e.note(r, now)
			e.handshake(msg, from, now)
		}
	}
	e.note(r, now)
	e.deliver(r)
}
