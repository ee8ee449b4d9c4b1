package relay

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// session is a node's UDP session.
type session struct {
	id        uint32
	node      proto.NodeID
	key       *relaymsg.Key
	ephemeral [relaymsg.KeySize]byte
	until     time.Time
	heard     atomic.Int64 // Unix nanoseconds
	place     atomic.Pointer[place]

	mu      sync.Mutex
	counter uint64  // of the last Rebind
	bucket  bucket  // limits the bytes that the node may send
	in      []*pair // indexed by the node's numbers
	out     numbers
}

// place is the address that a session is bound to.
type place struct {
	addr netip.AddrPort
	ep   conn.Endpoint
}

// number returns the header of packets from a sender to this session.
func (x *session) number(from proto.NodeID, now time.Time) relaymsg.Header {
	x.mu.Lock()
	defer x.mu.Unlock()
	o := x.out.of[from]
	if o == nil {
		o = x.out.add(from, now.UnixNano())
	}
	return o.header(x.id, now.UnixNano())
}

// learned records whether the node knows which peer a number stands for.
func (x *session) learned(m *relaymsg.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.out.learn(m)
}

// receive serves one socket until it is closed.
func (s *Server) receive(udp bind.Runs, fn bind.RunFunc) {
	buf := make([]byte, bind.RunSize)
	asked := stun.NewServer()
	in := counted{s.metrics.packets.WithLabelValues("udp"), s.metrics.bytes.WithLabelValues("udp")}
	for {
		n, size, from, err := fn(buf)
		if err != nil {
			if s.ctx.Err() == nil {
				s.cfg.Log.Error("relay's UDP socket failed", "err", err)
			}
			return
		}
		run, now := buf[:n], time.Now()
		addr := addrOf(from)
		for len(run) > 0 {
			part := run[:sameHead(run, size)]
			run = run[len(part):]
			switch {
			case relaymsg.Is(part):
				s.take(udp, now, part, min(size, len(part)), addr, from, in)
			case stun.Is(part):
				s.tellSource(asked, now, part, size, addr, func(answer []byte) { s.send(answer, from) })
			}
		}
	}
}

// tellSource answers STUN requests with their source address. The clients may be strangers.
func (s *Server) tellSource(asked *stun.Server, now time.Time, run []byte, size int, addr netip.AddrPort, tell func([]byte)) {
	var b [64]byte
	for len(run) > 0 {
		msg := run[:min(size, len(run))]
		run = run[len(msg):]
		if answer, ok := asked.Answer(b[:0], msg, now, addr); ok {
			tell(answer)
		}
	}
}

// receiveNext answers STUN on a socket of its own until that is closed.
func (s *Server) receiveNext(udp bind.Runs, fn bind.RunFunc) {
	buf := make([]byte, bind.RunSize)
	asked := stun.NewServer()
	for {
		n, size, from, err := fn(buf)
		if err != nil {
			return
		}
		s.tellSource(asked, time.Now(), buf[:n], size, addrOf(from), func(answer []byte) {
			if err := udp.SendRun(answer, len(answer), from); err != nil {
				s.cfg.Log.Debug("relay cannot send", "to", from.DstToString(), "err", err)
			}
		})
	}
}

type counted struct{ packets, bytes interface{ Add(float64) } }

// sameHead returns the length of the part at the start of a run whose messages have the same header.
func sameHead(run []byte, size int) int {
	at := min(size, len(run))
	if at < relaymsg.HeaderSize {
		return at
	}
	head := binary.BigEndian.Uint64(run)
	for at < len(run) {
		next := run[at:min(at+size, len(run))]
		if len(next) < relaymsg.HeaderSize || binary.BigEndian.Uint64(next) != head {
			break
		}
		at += len(next)
	}
	return at
}

// take handles messages with the same header.
func (s *Server) take(udp bind.Runs, now time.Time, run []byte, size int, addr netip.AddrPort, from conn.Endpoint, in counted) {
	h := relaymsg.ParseHeader(run)
	if h.Kind != relaymsg.Data && h.Kind != relaymsg.DataFor {
		for len(run) > 0 {
			msg := run[:min(size, len(run))]
			run = run[len(msg):]
			s.control(now, msg, addr, from)
		}
		return
	}
	s.mu.RLock()
	x := s.sessions[h.Session]
	s.mu.RUnlock()
	if x == nil {
		s.answer(from, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Refused, Session: h.Session}, Reason: relaymsg.ReasonUnknownSession}, size)
		return
	}
	if x.place.Load().addr != addr {
		s.challenge(now, h.Session, addr, from, size)
		return
	}
	s.forward(udp, now, x, h, run, size, in)
}

// challenge answers a message from an address that is not bound, with no more bytes than it had.
func (s *Server) challenge(now time.Time, session uint32, addr netip.AddrPort, from conn.Endpoint, size int) {
	s.answer(from, &relaymsg.Message{
		Header: relaymsg.Header{Kind: relaymsg.Challenge, Session: session}, Cookie: s.jar.give(now, addr, session),
	}, size)
}

// answer sends a message without a tag, unless it is longer than what it answers.
func (s *Server) answer(to conn.Endpoint, m *relaymsg.Message, size int) {
	b := relaymsg.Append(make([]byte, 0, relaymsg.HelloSize), m, nil, true)
	if len(b) <= size {
		s.send(b, to)
	}
}

func (s *Server) send(b []byte, to conn.Endpoint) {
	s.mu.RLock()
	udp := s.udp
	s.mu.RUnlock()
	if err := udp.SendRun(b, len(b), to); err != nil {
		s.cfg.Log.Debug("relay cannot send", "to", to.DstToString(), "err", err)
	}
}

// say sends a control datagram of a session.
func (s *Server) say(x *session, m *relaymsg.Message) {
	m.Session = x.id
	s.send(relaymsg.Append(make([]byte, 0, 128), m, x.key, true), x.place.Load().ep)
}

// forward forwards packets to their destination.
func (s *Server) forward(udp bind.Runs, now time.Time, x *session, h relaymsg.Header, run []byte, size int, in counted) {
	x.heard.Store(now.UnixNano())
	skip := headSize(h.Kind)
	if size <= skip {
		return
	}
	p, reason := s.pairOf(now, x, h, run)
	if p == nil {
		if reason == 0 {
			s.say(x, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Unknown, Number: h.Number}})
		}
		return
	}
	if h.Kind == relaymsg.DataFor {
		s.say(x, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Learned, Number: h.Number}, Peer: p.peer})
	}
	if reason != 0 {
		s.unreached(now, x, p, reason)
		return
	}
	target, stream := s.way(p.peer)
	switch {
	case target != nil:
		s.toSession(udp, now, x.node, target, run, size, skip)
	case stream != nil:
		f := newFrame()
		f.b = relaymsg.Frame{Kind: relaymsg.Data, Size: size - skip, Length: 1, Peer: x.node}.Append(f.b)
		for at := 0; at < len(run); at += size {
			if msg := run[at:min(at+size, len(run))]; len(msg) > skip {
				f.b = append(f.b, msg[skip:]...)
			}
		}
		stream.push(x.node, f)
	default:
		s.unreached(now, x, p, relaymsg.ReasonAway)
		return
	}
	in.packets.Add(float64((len(run) + size - 1) / size))
	in.bytes.Add(float64(len(run)))
}

// unreached tells a sender, at a limited rate, that nothing arrives.
func (s *Server) unreached(now time.Time, x *session, p *pair, reason relaymsg.Reason) {
	s.metrics.refused.WithLabelValues(reason.String()).Inc()
	x.mu.Lock()
	tell := p.tell(now)
	x.mu.Unlock()
	if tell {
		s.say(x, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Unreached}, Peer: p.peer, Reason: reason})
	}
}

// pairOf returns the pair of packets, and the reason not to forward them, if any. The pair is nil if the destination is unknown
// or the packets are dropped for that reason.
func (s *Server) pairOf(now time.Time, x *session, h relaymsg.Header, run []byte) (*pair, relaymsg.Reason) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.bucket.take(now, float64(s.cfg.Rate), float64(s.cfg.Rate)/8, float64(len(run))) {
		s.metrics.refused.WithLabelValues(relaymsg.ReasonRate.String()).Inc()
		return nil, relaymsg.ReasonRate
	}
	number := int(h.Number)
	if h.Kind == relaymsg.DataFor {
		peer := relaymsg.Peer(run)
		if number >= maxPeers || peer == 0 || peer == x.node {
			return nil, relaymsg.ReasonFull
		}
		for len(x.in) <= number {
			x.in = append(x.in, nil)
		}
		if p := x.in[number]; p == nil || p.peer != peer {
			x.in[number] = &pair{peer: peer}
		}
	}
	if number >= len(x.in) || x.in[number] == nil {
		return nil, 0
	}
	p := x.in[number]
	if !s.permitted(x.node, p) {
		return p, relaymsg.ReasonNotPermitted
	}
	return p, 0
}

// toSession forwards a node's packets over UDP.
func (s *Server) toSession(udp bind.Runs, now time.Time, from proto.NodeID, target *session, run []byte, size, skip int) {
	h := target.number(from, now)
	to := target.place.Load().ep
	var err error
	if headSize(h.Kind) <= skip {
		n, each := rewrap(run, size, skip, h, from)
		err = udp.SendRun(run[:n], each, to)
	} else {
		err = sendWrapped(run, size, skip, h, from, func(run []byte, size int) error { return udp.SendRun(run, size, to) })
	}
	if err != nil {
		s.cfg.Log.Debug("relay cannot send", "to", target.node, "err", err)
	}
}

// control handles a datagram that carries no packet.
func (s *Server) control(now time.Time, b []byte, addr netip.AddrPort, from conn.Endpoint) {
	m, err := relaymsg.Parse(b)
	if err != nil {
		return
	}
	switch m.Kind {
	case relaymsg.Hello:
		s.challenge(now, m.Session, addr, from, len(b))
		return
	case relaymsg.Bind:
		s.bind(now, &m, addr, from)
		return
	case relaymsg.Challenge, relaymsg.Bound, relaymsg.Refused, relaymsg.Unreached, relaymsg.Pong, relaymsg.Drain:
		// Only relays send these. If they were answered, a single datagram with the source of another relay, or this one's own,
		// would go back and forth forever.
		return
	}
	s.mu.RLock()
	x := s.sessions[m.Session]
	s.mu.RUnlock()
	if x == nil {
		s.answer(from, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Refused, Session: m.Session}, Reason: relaymsg.ReasonUnknownSession}, len(b))
		return
	}
	if !x.key.Verify(b, false) {
		return
	}
	if m.Kind == relaymsg.Rebind {
		s.rebind(now, x, &m, addr, from)
		return
	}
	if x.place.Load().addr != addr {
		s.challenge(now, m.Session, addr, from, len(b))
		return
	}
	x.heard.Store(now.UnixNano())
	switch m.Kind {
	case relaymsg.Ping:
		s.say(x, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Pong}, Token: m.Token})
	case relaymsg.Learned, relaymsg.Unknown:
		x.learned(&m)
	case relaymsg.Bye:
		s.mu.Lock()
		s.end(x)
		s.mu.Unlock()
	}
}

// rebind moves a session to another address of its node.
func (s *Server) rebind(now time.Time, x *session, m *relaymsg.Message, addr netip.AddrPort, from conn.Endpoint) {
	if !s.jar.take(now, addr, m.Session, m.Cookie) {
		return
	}
	x.mu.Lock()
	fresh := m.Token > x.counter
	if fresh {
		x.counter = m.Token
		x.place.Store(&place{addr: addr, ep: from})
	}
	x.mu.Unlock()
	if fresh {
		x.heard.Store(now.UnixNano())
		s.bound(now, x)
	}
}

func (s *Server) bound(now time.Time, x *session) {
	s.say(x, &relaymsg.Message{
		Header: relaymsg.Header{Kind: relaymsg.Bound}, Addr: x.place.Load().addr, Seconds: uint32(max(0, x.until.Sub(now)/time.Second)),
	})
}

// binding is a bind with a valid cookie, whose signature has not been verified yet.
type binding struct {
	m    relaymsg.Message
	cert []byte
	sig  []byte
	addr netip.AddrPort
	from conn.Endpoint
}

var hashSeed = maphash.MakeSeed()

// bind checks the cookie, which proves the address; the signature is verified elsewhere, since that takes time.
func (s *Server) bind(now time.Time, m *relaymsg.Message, addr netip.AddrPort, from conn.Endpoint) {
	if !s.jar.take(now, addr, m.Session, m.Cookie) {
		s.challenge(now, m.Session, addr, from, relaymsg.HelloSize)
		return
	}
	if m.RelayKey != s.cfg.Secret.Public() {
		s.refuse(m.Session, from, relaymsg.ReasonKey)
		return
	}
	s.mu.RLock()
	x, draining := s.sessions[m.Session], s.draining
	s.mu.RUnlock()
	if x != nil && x.ephemeral == m.Ephemeral && x.place.Load().addr == addr {
		s.bound(now, x) // the answer was lost
		return
	}
	ip := addr.Addr().As16()
	if addr.Addr().Is6() {
		clear(ip[8:])
	}
	s.paceMu.Lock()
	mayTry := s.pace.take(now, maphash.Bytes(hashSeed, ip[:]))
	s.paceMu.Unlock()
	switch {
	case x != nil:
		s.refuse(m.Session, from, relaymsg.ReasonTaken)
	case draining:
		s.refuse(m.Session, from, relaymsg.ReasonDraining)
	case !mayTry:
		s.refuse(m.Session, from, relaymsg.ReasonRate)
	default:
		b := binding{m: *m, addr: addr, from: from, cert: append([]byte(nil), m.Certificate...), sig: append([]byte(nil), m.Signature...)}
		select {
		case s.binds <- b:
		default:
			s.refuse(m.Session, from, relaymsg.ReasonRate)
		}
	}
}

func (s *Server) refuse(session uint32, to conn.Endpoint, reason relaymsg.Reason) {
	s.metrics.refused.WithLabelValues(reason.String()).Inc()
	s.answer(to, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Refused, Session: session}, Reason: reason}, relaymsg.HelloSize)
}

// judge does the slow work: it verifies signatures.
func (s *Server) judge() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case b := <-s.binds:
			if x, reason := s.admit(&b); reason != 0 {
				s.refuse(b.m.Session, b.from, reason)
			} else {
				s.bound(time.Now(), x)
			}
		}
	}
}

// admit creates a session from a bind that verifies.
func (s *Server) admit(b *binding) (*session, relaymsg.Reason) {
	id, until, err := s.cfg.Permit.Admit(b.cert)
	if err != nil {
		s.cfg.Log.Debug("relay refuses a certificate", "remote", b.addr, "err", err)
		return nil, relaymsg.ReasonCertificate
	}
	leaf, err := x509.ParseCertificate(b.cert)
	if err != nil {
		return nil, relaymsg.ReasonCertificate
	}
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	transcript := relaymsg.Transcript(s.cfg.ID, s.cfg.Secret.Public(), b.m.Ephemeral, b.m.Session, b.cert)
	if !ok || !ecdsa.VerifyASN1(public, transcript[:], b.sig) {
		return nil, relaymsg.ReasonCertificate
	}
	key, err := s.cfg.Secret.Agree(b.m.Ephemeral, transcript)
	if err != nil {
		return nil, relaymsg.ReasonCertificate
	}
	x := &session{id: b.m.Session, node: id, key: key, ephemeral: b.m.Ephemeral, until: until}
	x.place.Store(&place{addr: b.addr, ep: b.from})
	x.heard.Store(time.Now().UnixNano())
	return x, s.enter(x)
}

// enter registers a session: of a node's, only the last one stays.
func (s *Server) enter(x *session) relaymsg.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.nodes[x.node]
	switch {
	case s.closed || s.draining:
		return relaymsg.ReasonDraining
	case !s.cfg.Permit.Trusted(x.node):
		return relaymsg.ReasonCertificate
	case s.sessions[x.id] != nil:
		return relaymsg.ReasonTaken
	case a == nil && len(s.sessions)+len(s.streams) >= s.cfg.Sessions:
		return relaymsg.ReasonFull
	case a == nil:
		a = &attached{}
		s.nodes[x.node] = a
	case a.session != nil:
		delete(s.sessions, a.session.id)
	}
	a.session = x
	s.sessions[x.id] = x
	return 0
}
