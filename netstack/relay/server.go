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

// Permit says who may use a relay, and with whom. Its methods are called from several goroutines, and answer from memory.
type Permit interface {
	// Admit judges a node's certificate (DER): whose it is, and until when it holds.
	Admit(certificate []byte) (proto.NodeID, time.Time, error)
	// Trusted says whether a node that was admitted still would be.
	Trusted(proto.NodeID) bool
	// Meet says whether the mesh's policy ties two nodes to each other.
	Meet(a, b proto.NodeID) bool
}

// What a relay takes where nothing else is said.
const (
	DefaultSessions = 16384
	DefaultRate     = 1 << 29 // bytes a second of one node: 4 Gbit/s
)

const (
	// quiet is how long a session by UDP lives without a sign of its node, which gives one every keepWarm.
	quiet = 3 * keepWarm
	// sweep is how often sessions are looked over.
	sweep = 15 * time.Second
	// calm is after how long a silence of all nodes a relay that is to stop does so.
	calm = time.Second
	// maxPeers is how many peers a session numbers, each way.
	maxPeers = 4096
	// waiting is how many bytes wait for the stream of one node.
	waiting = 1 << 20
	// maxBinding is how many binds wait to be judged.
	maxBinding = 256
	// bindRate and bindBurst bound how often one address has a bind judged.
	bindRate, bindBurst = 2, 32
)

// ServerConfig is what a relay needs.
type ServerConfig struct {
	ID     proto.NodeID
	Secret *relaymsg.Secret // its public half is in netmaps
	Permit Permit
	// Sessions is how many sessions there are at most, 0: DefaultSessions; Rate is how many bytes one node may send in a
	// second, 0: DefaultRate.
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

	// permits counts the changes of what is permitted: a pair that was judged before is judged again.
	permits atomic.Uint64

	mu       sync.RWMutex
	udp      bind.Runs
	next     bind.Runs // of STUN alone
	sessions map[uint32]*session
	nodes    map[proto.NodeID]*attached
	streams  map[*stream]struct{}
	draining bool
	closed   bool

	ctx    context.Context
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// attached is how a node is reached here: by what it opened last.
type attached struct {
	session *session // one of both, or both while it changes over
	stream  *stream
}

// NewServer makes a relay that serves nobody yet. Close it.
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

// Key is the public half of the relay's key.
func (s *Server) Key() [relaymsg.KeySize]byte { return s.cfg.Secret.Public() }

// ServeUDP opens the port and serves sessions by UDP until Close. A nil bind takes the system's sockets. On the next port it
// answers to STUN only, if that one is free.
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

// NextPort is where a relay answers to STUN as well: whoever is seen alike from both ports has a NAT that gives all
// destinations the same. It is for IPv4, and may be silent.
func NextPort(port uint16) uint16 { return port + 1 }

// serveNext answers to STUN on another port. Called with the lock held.
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

// Recheck is called when what is permitted changed: of the nodes named, the sessions of those that are not trusted any more
// end at once, and each pair is asked about again at its next packet.
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

// expel ends what a node has here. Called with the lock held.
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

// Drain tells all nodes to use another relay, and takes no new ones. It goes on carrying until nothing comes any more, or the
// time is over, and returns then: peers learn only by and by where a node waits now.
func (s *Server) Drain(within time.Duration) {
	s.sayDrain(within)
	end := time.NewTimer(within)
	defer end.Stop()
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

// lastHeard is when some node sent something.
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

func (s *Server) sayDrain(within time.Duration) {
	s.mu.Lock()
	s.draining = true
	sessions := make([]*session, 0, len(s.sessions))
	for _, x := range s.sessions {
		sessions = append(sessions, x)
	}
	for x := range s.streams {
		x.control(&relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Drain}, Seconds: uint32(within / time.Second)})
	}
	s.mu.Unlock()
	for _, x := range sessions {
		s.say(x, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Drain}, Seconds: uint32(within / time.Second)})
	}
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

// keepHouse forgets sessions that are over.
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

// end forgets a session by UDP. Called with the lock held.
func (s *Server) end(x *session) {
	delete(s.sessions, x.id)
	if a := s.nodes[x.node]; a != nil && a.session == x {
		a.session = nil
		if a.stream == nil {
			delete(s.nodes, x.node)
		}
	}
}

// way finds how a node is reached.
func (s *Server) way(id proto.NodeID) (*session, *stream) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a := s.nodes[id]
	if a == nil {
		return nil, nil
	}
	if a.session != nil {
		return a.session, nil
	}
	return nil, a.stream
}

// pair is what is remembered of the packets from one node to another.
type pair struct {
	peer    proto.NodeID
	permits uint64 // when it was asked about
	ok      bool
	told    time.Time // when the sender was told last that nothing arrives
}

// permitted asks whether two nodes may meet, once for each change.
func (s *Server) permitted(from proto.NodeID, p *pair) bool {
	if now := s.permits.Load(); p.permits != now+1 {
		p.ok = s.cfg.Permit.Meet(from, p.peer)
		p.permits = now + 1
	}
	return p.ok
}

// tell says whether it is time to tell a sender again that nothing arrives.
func (p *pair) tell(now time.Time) bool {
	if now.Sub(p.told) < time.Second {
		return false
	}
	p.told = now
	return true
}

// addrOf reads the address of an endpoint of a system's bind.
func addrOf(e conn.Endpoint) netip.AddrPort {
	if x, ok := e.(interface{ Port() uint16 }); ok {
		return netip.AddrPortFrom(e.DstIP(), x.Port())
	}
	a, _ := netip.ParseAddrPort(e.DstToString()) // zero, which no session has, where it is none
	return a
}
