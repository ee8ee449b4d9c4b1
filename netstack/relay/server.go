package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// Permit decides who may use a relay, and with whom. Its methods are called by several goroutines, and answer from memory.
type Permit interface {
	// Admit verifies a node's certificate (DER) and returns its node and expiry.
	Admit(certificate []byte) (proto.NodeID, time.Time, error)
	// Trusted reports whether an admitted node would still be admitted.
	Trusted(proto.NodeID) bool
	// Meet reports whether the mesh's policy connects two nodes.
	Meet(a, b proto.NodeID) bool
}

// The default limits of a relay.
const (
	DefaultSessions = 16384
	DefaultRate     = 1 << 29 // bytes per second of one node: 4 Gbit/s
)

const (
	// quiet is how long a UDP session lives without hearing from its node, which sends something every keepWarm.
	quiet = 3 * keepWarm
	// sweep is how often sessions are checked for expiry.
	sweep = 15 * time.Second
	// calm is how long all nodes must be silent for a draining relay to stop.
	calm = time.Second
	// maxPeers is how many peers a session has numbers for, in each direction; others take over those that are not in use.
	maxPeers = 4096
	// waiting is how many bytes may wait for the stream of one node.
	waiting = 1 << 20
	// maxBinding is how many binds may wait for verification.
	maxBinding = 256
	// bindRate and bindBurst limit how often one address has a bind verified.
	bindRate, bindBurst = 2, 32
)

// ServerConfig is what a relay needs.
type ServerConfig struct {
	ID     proto.NodeID
	Secret *relaymsg.Secret // its public half is in netmaps
	Permit Permit
	// Sessions is the maximum number of sessions; 0 means DefaultSessions. Rate is how many bytes one node may send per second;
	// 0 means DefaultRate.
	Sessions, Rate int
	Rand           io.Reader
	Log            *slog.Logger
	Registry       prometheus.Registerer
}

// Server is a relay.
type Server struct {
	cfg     ServerConfig
	jar     jar
	metrics metrics
	binds   chan binding

	paceMu sync.Mutex
	pace   pace

	// permits counts the changes of the policy: each pair is then checked again.
	permits atomic.Uint64

	mu       sync.RWMutex
	udp      bind.Runs
	next     bind.Runs // for STUN only
	sessions map[uint32]*session
	nodes    map[proto.NodeID]*attached
	streams  map[*stream]struct{}
	draining bool
	closed   bool

	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// attached is how a node is reached here: over whatever it opened last.
type attached struct {
	session *session // one of the two, or both during a changeover
	stream  *stream
}

// NewServer returns a relay that serves nobody yet. The caller must Close it.
func NewServer(c ServerConfig) (*Server, error) {
	if c.Sessions == 0 {
		c.Sessions = DefaultSessions
	}
	if c.Rate == 0 {
		c.Rate = DefaultRate
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	s := &Server{
		cfg: c, binds: make(chan binding, maxBinding), pace: pace{rate: bindRate, burst: bindBurst},
		sessions: map[uint32]*session{}, nodes: map[proto.NodeID]*attached{}, streams: map[*stream]struct{}{},
	}
	if _, err := io.ReadFull(c.Rand, s.jar.secret[:]); err != nil {
		return nil, fmt.Errorf("draw a secret for cookies: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.metrics = newMetrics(c.Registry, s)
	s.all.Go(s.judge)
	s.all.Go(s.keepHouse)
	return s, nil
}

// Key returns the public half of the relay's key.
func (s *Server) Key() [relaymsg.KeySize]byte { return s.cfg.Secret.Public() }

// ServeUDP opens the port and serves UDP sessions until Close. A nil bind means the system's sockets. On the next port it only
// answers STUN, if that port is free.
func (s *Server) ServeUDP(b conn.Bind, port uint16) (uint16, error) {
	if b == nil {
		b = bind.System(runtime.GOMAXPROCS(0))
	}
	runs := asRuns(b)
	fns, actual, err := runs.OpenRuns(port)
	if err != nil {
		return 0, fmt.Errorf("relay: listen on UDP port %d: %w", port, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.udp != nil {
		return 0, errors.Join(net.ErrClosed, runs.Close())
	}
	s.udp = runs
	for _, fn := range fns {
		s.all.Go(func() { s.receive(runs, fn) })
	}
	s.serveNext(b, NextPort(actual))
	return actual, nil
}

// NextPort returns the second port on which a relay answers STUN: a node seen with the same address from both ports is behind a
// NAT with the same mapping for all destinations. It is for IPv4 only, and may not answer.
func NextPort(port uint16) uint16 { return port + 1 }

// serveNext answers STUN on another port. The caller holds the lock.
func (s *Server) serveNext(b conn.Bind, port uint16) {
	family, ok := b.(bind.Siblings)
	if !ok || port == 0 {
		return
	}
	next := asRuns(family.Sibling())
	fns, _, err := next.OpenRuns(port)
	if err != nil {
		s.cfg.Log.Info("relay's nodes are not told what kind of NAT they are behind", "port", port, "err", err)
		return
	}
	s.next = next
	for _, fn := range fns {
		s.all.Go(func() { s.receiveNext(next, fn) })
	}
}

// Recheck must be called when the policy has changed: of the nodes in changed, it ends the sessions of those no longer trusted
// at once, and each pair is checked again at its next packet.
func (s *Server) Recheck(changed []proto.NodeID) {
	s.permits.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range changed {
		if s.nodes[id] != nil && !s.cfg.Permit.Trusted(id) {
			s.expel(id)
		}
	}
}

// expel ends all sessions of a node. The caller holds the lock.
func (s *Server) expel(id proto.NodeID) {
	a := s.nodes[id]
	if a == nil {
		return
	}
	if a.session != nil {
		delete(s.sessions, a.session.id)
	}
	if a.stream != nil {
		a.stream.close()
	}
	delete(s.nodes, id)
	s.cfg.Log.Info("relay cuts a node off", "node", id)
}

// Drain tells all nodes to use another relay, and accepts no new ones. It keeps forwarding, and returns once nothing arrives
// any longer or the time is up: peers learn only gradually where else to reach a node.
func (s *Server) Drain(within time.Duration) {
	end := time.NewTimer(within)
	defer end.Stop()
	for x, told := range s.sayDrain(within) {
		select {
		case <-told:
		case <-x.ended:
		case <-s.ctx.Done():
			return
		case <-end.C:
			return
		}
	}
	for {
		quiet := time.Since(s.lastHeard())
		if quiet >= calm {
			return
		}
		select {
		case <-s.ctx.Done():
			return
		case <-end.C:
			return
		case <-time.After(calm - quiet):
		}
	}
}

// lastHeard returns when any node last sent something.
func (s *Server) lastHeard() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var last int64
	for _, x := range s.sessions {
		last = max(last, x.heard.Load())
	}
	for x := range s.streams {
		last = max(last, x.heard.Load())
	}
	return time.Unix(0, last)
}

// sayDrain announces the end of the relay. For each stream it returns a channel that is closed once its node has been told.
func (s *Server) sayDrain(within time.Duration) map[*stream]<-chan struct{} {
	m := &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Drain}, Seconds: uint32((within + time.Second - 1) / time.Second)}
	s.mu.Lock()
	s.draining = true
	sessions := make([]*session, 0, len(s.sessions))
	for _, x := range s.sessions {
		sessions = append(sessions, x)
	}
	told := make(map[*stream]<-chan struct{}, len(s.streams))
	for x := range s.streams {
		told[x] = x.tell(m)
	}
	s.mu.Unlock()
	for _, x := range sessions {
		s.say(x, m)
	}
	return told
}

// Close ends all sessions and waits. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	open := []bind.Runs{s.udp, s.next}
	for x := range s.streams {
		x.close()
	}
	s.mu.Unlock()
	s.cancel()
	var errs []error
	for _, b := range open {
		if b != nil {
			errs = append(errs, b.Close())
		}
	}
	s.all.Wait()
	return errors.Join(errs...)
}

// keepHouse removes expired sessions.
func (s *Server) keepHouse() {
	t := time.NewTicker(sweep)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		s.mu.Lock()
		for _, x := range s.sessions {
			if now.Sub(time.Unix(0, x.heard.Load())) > quiet || now.After(x.until) {
				s.end(x)
			}
		}
		for x := range s.streams {
			if now.After(x.until) {
				x.close()
			}
		}
		s.mu.Unlock()
	}
}

// end removes a UDP session. The caller holds the lock.
func (s *Server) end(x *session) {
	delete(s.sessions, x.id)
	if a := s.nodes[x.node]; a != nil && a.session == x {
		a.session = nil
		if a.stream == nil {
			delete(s.nodes, x.node)
		}
	}
}

// way returns how a node is reached: by its stream only if that began after the node was last heard over UDP. Then UDP is blocked,
// or both were tried at the same time, and the node closes the stream soon.
func (s *Server) way(id proto.NodeID) (*session, *stream) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a := s.nodes[id]
	if a == nil {
		return nil, nil
	}
	if a.session != nil && (a.stream == nil || a.session.heard.Load() >= a.stream.began.UnixNano()) {
		return a.session, nil
	}
	return nil, a.stream
}

// pair is the state of the packets from one node to another.
type pair struct {
	peer    proto.NodeID
	permits uint64 // the value of Server.permits, plus one, at the last check
	ok      bool
	told    time.Time // when the sender was last told that nothing arrives
}

// permitted reports whether two nodes may meet. It asks once per policy change.
func (s *Server) permitted(from proto.NodeID, p *pair) bool {
	if now := s.permits.Load(); p.permits != now+1 {
		p.ok = s.cfg.Permit.Meet(from, p.peer)
		p.permits = now + 1
	}
	return p.ok
}

// tell reports whether it is time to tell a sender again that nothing arrives.
func (p *pair) tell(now time.Time) bool {
	if now.Sub(p.told) < time.Second {
		return false
	}
	p.told = now
	return true
}

// addrOf returns the address of an endpoint of a system's bind.
func addrOf(e conn.Endpoint) netip.AddrPort {
	if x, ok := e.(interface{ Port() uint16 }); ok {
		return netip.AddrPortFrom(e.DstIP(), x.Port())
	}
	a, _ := netip.ParseAddrPort(e.DstToString()) // zero, which no session has, if it does not parse
	return a
}
