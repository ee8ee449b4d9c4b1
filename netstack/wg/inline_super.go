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

// maxBurst is how many super-packets are read before others get the engine's lock, and time is looked at again.
const maxBurst = 64

// superSender is what the reader of one queue works with. It gathers messages for one peer into a run.
type superSender struct {
	packet *tun.Super
	now    time.Time
	mtu    int // to node
	limit  int // of packets to node; 0: none but the device's

	to   netip.Addr // of the last packet
	over *node      // that it goes to

	node     *node // that the run is for; nil: there is none
	session  *session.Session
	endpoint conn.Endpoint
	sealed   bool // something of the burst was
	staged   bool // something waits for a session

	run   []byte // as far as used
	size  int    // of its messages but the last
	count int
	short bool // the last one is shorter, so that none can follow
}

func newSuperSender() *superSender {
	return &superSender{packet: tun.NewSuper(), run: make([]byte, 0, bind.MaxRun)}
}

// readSupers seals and sends what the host sends by one queue, until the device breaks.
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

// burst sends the packet that was read, and what else there is.
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
			break // an error that lasts comes again, and is dealt with then
		}
	}
	e.finish(s)
	s.to, s.over = netip.Addr{}, nil // who it belongs to may change meanwhile
}

// forward seals a packet, or all of a super-packet, and sends what does not fit the run any more.
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

// begin begins a run for a peer.
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

// append seals a packet at the end of the run. It is false when the session has carried all that it may.
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

// sendRun sends the run, and makes room for the next.
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

// finish sends what there is for a peer, and tells it.
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

// maxRunOut is how many packets of a run are given to the host together.
const maxRunOut = 128

// newRunReceiver is a receiver for runs: packets stay where they are, and the device joins them there.
func newRunReceiver() *receiver { return &receiver{out: make([][]byte, 0, maxRunOut)} }

// receiveRuns opens and delivers what comes by one socket, until that is closed.
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

// inboundRun takes a run.
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
