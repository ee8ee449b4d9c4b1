package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const (
	// lobbyPlaces is the maximum number of unauthenticated connections.
	lobbyPlaces = 16384
	// handshakeSlots is how many handshakes compute at once.
	handshakeSlots = 32
	// arrival is the time limit for TLS and the request together, and then for the first message.
	arrival = 10 * time.Second
	// step is the time limit for each later message of an enrolment.
	step = 20 * time.Second
	// keepAlive is how often the coordinator checks whether to send a keepalive; a side that is silent for deaf is considered
	// gone.
	keepAlive = 25 * time.Second
	deaf      = 2*keepAlive + 5*time.Second
	// stuck is how long a node may take to read a message.
	stuck = 10 * time.Second
	// parting is the time limit for the final message.
	parting = 2 * time.Second
	// maxHeader bounds the request header.
	maxHeader = 8 << 10
)

// Config holds a server's dependencies.
type Config struct {
	Directory *directory.Directory
	Hub       *distribute.Hub
	Attestors *attest.Registry
	Issuer    *issuer.Issuer
	Clock     func() time.Time // for judging certificates
	Rand      io.Reader
	Log       *slog.Logger
	Registry  prometheus.Registerer
	Program   string // of this program, for people
	// Relay serves nodes' streams to relaymsg.Path, each until it ends; nil means that there is no relay.
	Relay func(stream net.Conn, certificate []byte) error
}

// Server serves control streams.
type Server struct {
	Config
	lobby   *lobby
	room    *room
	writers *pool
	http    *http.Server
	arrived *funnel
	metrics metrics

	ctx    context.Context
	cancel context.CancelFunc

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	streams   pulse
	carried   map[*guest]struct{} // streams served by the relay
	all       sync.WaitGroup
}

// New returns a server. It serves nothing until Serve is called, and must be closed.
func New(c Config) *Server {
	s := &Server{
		Config: c, lobby: newLobby(lobbyPlaces, handshakeSlots), room: newRoom(roomPlaces), writers: newPool(4 * runtime.GOMAXPROCS(0)),
		arrived: newFunnel(), listeners: make(map[net.Listener]struct{}),
		carried: make(map[*guest]struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.metrics = newMetrics(c.Registry, s)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.Path, s.upgrade)
	mux.HandleFunc("GET "+wire.TunnelPath, s.tunnel)
	mux.HandleFunc("GET "+relaymsg.Path, s.upgradeRelay)
	mux.HandleFunc("GET /healthz", s.health)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler: withoutBody(mux), Protocols: protocols, MaxHeaderBytes: maxHeader, ConnContext: withGuest,
		ReadHeaderTimeout: arrival, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
	}
	s.http.SetKeepAlivesEnabled(false)
	s.all.Go(func() { _ = s.http.Serve(s.arrived) })
	s.all.Go(s.beat)
	return s
}

// Serve accepts connections until the listener or the server is closed.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return net.ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	var pause time.Duration
	for {
		c, err := l.Accept()
		if err == nil {
			pause = 0
			s.welcome(c)
			continue
		}
		if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return net.ErrClosed
		}
		// Most likely out of file descriptors: departing guests will free some.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.Log.Warn("cannot accept a connection", "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return net.ErrClosed
		}
	}
}

// start runs f in a goroutine that Close waits for.
func (s *Server) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.all.Go(f)
	}
	return !s.closed
}

func (s *Server) welcome(c net.Conn) {
	g, ok := s.lobby.enter(c, time.Now().Add(arrival))
	if !ok {
		return
	}
	if !s.start(func() { s.handshake(g) }) {
		g.drop()
	}
}

func (s *Server) handshake(g *guest) {
	t := tls.Server(g, &tls.Config{GetConfigForClient: s.configure, MinVersion: tls.VersionTLS13})
	if err := g.shake(t.Handshake); err != nil {
		s.metrics.handshakes.WithLabelValues("failed").Inc()
		s.Log.Debug("no handshake", "remote", g.RemoteAddr(), "err", err)
		g.drop()
		return
	}
	s.metrics.handshakes.WithLabelValues("done").Inc()
	if !s.arrived.put(t) {
		g.drop()
	}
}

// configure returns the TLS configuration of one connection, which records the peer's identity in its guest.
func (s *Server) configure(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	leaf, err := s.Issuer.GetCertificate(hello)
	if err != nil {
		return nil, err
	}
	g, ok := hello.Conn.(*guest)
	if !ok {
		return nil, errors.New("control: a connection that did not come through the lobby")
	}
	return cert.ServerConfig(*leaf, s.Issuer.Known(), func(chain [][]byte) error { return s.identify(g, chain) }), nil
}

// identify authenticates a client's certificate. A client may have none, but then can only enrol.
func (s *Server) identify(g *guest, chain [][]byte) error {
	if len(chain) == 0 {
		return nil
	}
	node, err := s.Issuer.Verifier().PeerNode(chain, s.Clock())
	if errors.Is(err, cert.ErrExpired) || errors.Is(err, cert.ErrNotYetValid) {
		g.outOfTime = true
		node, err = s.Issuer.Verifier().PeerNodeOutOfTime(chain, s.Clock())
	}
	if err != nil {
		return err
	}
	g.node = node
	return nil
}

// withoutBody rejects requests with a body, without reading it.
func withoutBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 || len(r.TransferEncoding) != 0 {
			w.Header().Set("Connection", "close")
			http.Error(w, "no request here has a body", http.StatusRequestEntityTooLarge)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if s.Directory.Err() != nil {
		http.Error(w, "the coordinator's store failed; see its log", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	t, g, early, ok := hijack(w, r, wire.Protocol)
	if !ok {
		return
	}
	// In a new goroutine, so that this one's stack, which has grown large, is freed.
	if !s.start(func() { s.serve(t, g, early) }) {
		g.drop()
	}
}

// hijack takes over the connection of a request for an Upgrade to protocol, with the bytes already read from it. If it fails,
// it has sent an error response.
func hijack(w http.ResponseWriter, r *http.Request, protocol string) (t *tls.Conn, g *guest, early []byte, ok bool) {
	if !upgrades(r, protocol) {
		w.Header().Set("Upgrade", protocol)
		w.Header().Set("Connection", "Upgrade")
		http.Error(w, "this is for agents, which ask for an Upgrade to "+protocol, http.StatusUpgradeRequired)
		return nil, nil, nil, false
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot be upgraded", http.StatusInternalServerError)
		return nil, nil, nil, false
	}
	if t, ok = conn.(*tls.Conn); !ok {
		conn.Close()
		return nil, nil, nil, false
	}
	early, _ = buffered.Peek(buffered.Reader.Buffered())
	return t, t.NetConn().(*guest), bytes.Clone(early), true
}

func mentions(values []string, word string) bool {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(part), word) {
				return true
			}
		}
	}
	return false
}

// Close closes the listeners and all streams, and waits for them to end. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	for l := range s.listeners {
		l.Close()
	}
	for st := range s.streams.all() {
		st.guest.drop()
	}
	for g := range s.carried {
		g.drop()
	}
	s.mu.Unlock()
	s.cancel()
	s.lobby.close()
	s.room.close()
	_ = s.arrived.Close()
	_ = s.http.Close()
	s.writers.close()
	s.all.Wait()
	return nil
}

// Connected returns the number of nodes with a stream.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams.len
}
