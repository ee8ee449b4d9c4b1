package coordinator

import (
	"bufio"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const openPolicy = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`

// rig is a running coordinator behind an in-memory network.
type rig struct {
	t    testing.TB
	dir  string
	co   *Coordinator
	net  *listener
	stop func()
}

// inBubble runs f with a coordinator in virtual time. f must leave nothing running.
func inBubble(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, dir: t.TempDir()}
		r.start(Config{})
		defer func() { r.stop() }()
		f(t, r)
	})
}

func (r *rig) start(c Config) {
	r.t.Helper()
	c.Data, c.Program = r.dir, "test"
	c.URLs = []string{"https://coordinator.example"}
	if testing.Verbose() && c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	co, err := New(context.Background(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.co, r.net = co, newListener()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- co.Run(ctx, r.net) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
}

func (r *rig) code(q *redoubtv1.CreateTokenRequest) join.Code {
	r.t.Helper()
	if q.User == "" && len(q.Tags) == 0 {
		q.Tags = []string{"tag:a"}
	}
	a, err := r.co.Admin().CreateToken(context.Background(), q)
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := join.Parse(a.GetCode())
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) apply(source string) {
	r.t.Helper()
	if _, err := r.co.Admin().ApplyPolicy(context.Background(), &redoubtv1.ApplyPolicyRequest{Source: source}); err != nil {
		r.t.Fatal(err)
	}
}

// machine plays the agent towards the coordinator.
type machine struct {
	r      *rig
	host   string
	device key.DevicePrivate
	node   key.NodePrivate
	next   key.NodePrivate // requested; zero: none
	result *redoubtv1.Result
	cert   *cert.Node
	facts  *redoubtv1.Facts
	lacks  string // a feature
	stays  bool   // whether to stay after enrolment
	// posture is the health report in its proofs; nil: none.
	posture *redoubtv1.Posture
}

func (r *rig) machine(host string) *machine {
	r.t.Helper()
	device, err := key.NewDevice(random)
	if err != nil {
		r.t.Fatal(err)
	}
	node, err := key.NewNode(random)
	if err != nil {
		r.t.Fatal(err)
	}
	return &machine{r: r, host: host, device: device, node: node}
}

// join enrols a new machine as a node.
func (r *rig) join(host string, q *redoubtv1.CreateTokenRequest) *machine {
	r.t.Helper()
	m := r.machine(host)
	if err := m.enrol(r.code(q)); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// refused is a refusal as an error.
type refused struct{ *redoubtv1.Refusal }

func (e refused) Error() string { return e.GetCode().String() + ": " + e.GetMessage() }

func codeOf(err error) redoubtv1.Refusal_Code {
	var r refused
	if errors.As(err, &r) {
		return r.GetCode()
	}
	return redoubtv1.Refusal_CODE_UNSPECIFIED
}

// wireConn is the client's end of a control stream.
type wireConn struct {
	t *tls.Conn
	r *bufio.Reader
}

func (r *rig) dial(leaf *tls.Certificate) (*tls.Conn, error) {
	raw, err := r.net.dial()
	if err != nil {
		return nil, err
	}
	t := tls.Client(raw, cert.ClientConfig(leaf, cert.ForJoining(r.co.issuer.Fingerprint(), time.Now)))
	if err := t.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	return t, nil
}

func (r *rig) upgrade(leaf *tls.Certificate) (*wireConn, error) {
	t, err := r.dial(leaf)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(t, "GET %s HTTP/1.1\r\nHost: c\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.Path, wire.Protocol); err != nil {
		t.Close()
		return nil, err
	}
	c := &wireConn{t: t, r: bufio.NewReader(t)}
	resp, err := http.ReadResponse(c.r, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("no upgrade: %s", resp.Status)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	return c, nil
}

// send sends a message and returns its hash as sent.
func (c *wireConn) send(m *redoubtv1.Up) (sum [32]byte, err error) {
	b, err := wire.AppendFrame(nil, m)
	if err != nil {
		return sum, err
	}
	_, err = c.t.Write(b)
	return sha256.Sum256(b[4:]), err
}

// read returns the next message other than a keepalive; a refusal is an error.
func (c *wireConn) read() (*redoubtv1.Down, error) {
	for {
		b, err := wire.ReadFrame(c.r, nil, wire.MaxFrame)
		if err != nil {
			return nil, err
		}
		m, err := wire.DecodeDown(b)
		if err != nil {
			return nil, err
		}
		if x := m.GetRefusal(); x != nil {
			return nil, refused{x}
		}
		if m.GetKeepAlive() == nil {
			return m, nil
		}
	}
}

func (m *machine) hello() *redoubtv1.Hello {
	return &redoubtv1.Hello{
		ProtocolMin: proto.ProtocolMin, ProtocolMax: proto.ProtocolMax, Program: "test", Hostname: m.host, Os: "linux", Arch: "amd64",
		Features: slices.DeleteFunc(proto.Features(), func(f string) bool { return f == m.lacks }), Facts: m.facts,
	}
}

// enrols returns the hello of an enrolment.
func (m *machine) enrols(code join.Code) *redoubtv1.Hello {
	hello, public := m.hello(), code.Secret.Public()
	hello.Purpose = &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
		Stays: m.stays, Evidence: []string{"token"}, DevicePublic: m.device.Device().Bytes(), NodePublic: m.node.Public().Bytes(), TokenPublic: public.Bytes(),
	}}
	return hello
}

// ask sends the hello of an enrolment and reads the challenge.
func (m *machine) ask(code join.Code) (*wireConn, [32]byte, *redoubtv1.Challenge, error) {
	c, err := m.r.upgrade(nil)
	if err != nil {
		return nil, [32]byte{}, nil, err
	}
	sum, err := c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: m.enrols(code)}})
	if err != nil {
		c.t.Close()
		return nil, sum, nil, err
	}
	down, err := c.read()
	if err != nil {
		c.t.Close()
		return nil, sum, nil, err
	}
	return c, sum, down.GetChallenge(), nil
}

// proof answers a challenge with one of the machine's node keys.
func (m *machine) proof(c *wireConn, node key.NodePrivate, domain string, sum [32]byte, challenge *redoubtv1.Challenge, token *key.TokenSecret) *redoubtv1.Proof {
	m.r.t.Helper()
	secret, err := cert.Exporter(c.t.ConnectionState())
	if err != nil {
		m.r.t.Fatal(err)
	}
	var posture []byte
	if m.posture != nil {
		if posture, err = pb.Marshal(m.posture); err != nil {
			m.r.t.Fatal(err)
		}
	}
	binding := wire.Binding(domain, challenge.GetNonce(), secret, node.Public(), m.device.Device(), sha256.Sum256(posture), sum)
	ephemeral, err := key.ParseNodePublic(challenge.GetEphemeralPublic())
	if err != nil {
		m.r.t.Fatal(err)
	}
	shared, err := node.Shared(ephemeral)
	if err != nil {
		m.r.t.Fatal(err)
	}
	mac := wire.NodeKeyMAC(shared, binding)
	signature, err := m.device.Sign(random, binding[:], crypto.SHA256)
	if err != nil {
		m.r.t.Fatal(err)
	}
	p := &redoubtv1.Proof{Posture: posture, NodeKeyMac: mac[:], DeviceSignature: signature}
	if token != nil {
		p.TokenSignature = token.Sign(binding[:])
	}
	return p
}

func up(p *redoubtv1.Proof) *redoubtv1.Up {
	return &redoubtv1.Up{Message: &redoubtv1.Up_Proof{Proof: p}}
}

func (m *machine) enrol(code join.Code) error {
	c, err := m.enrolOn(code)
	if err == nil {
		c.t.Close()
	}
	return err
}

// enrolOn is enrol, but leaves the stream open.
func (m *machine) enrolOn(code join.Code) (*wireConn, error) {
	c, sum, challenge, err := m.ask(code)
	if err != nil {
		return nil, err
	}
	if _, err = c.send(up(m.proof(c, m.node, wire.DomainEnrol, sum, challenge, &code.Secret))); err == nil {
		err = m.take(c)
	}
	if err != nil {
		c.t.Close()
		return nil, err
	}
	return c, nil
}

// take reads a result.
func (m *machine) take(c *wireConn) error {
	for {
		down, err := c.read()
		if err != nil {
			return err
		}
		if r := down.GetResult(); r != nil {
			m.result = r
			m.cert, err = cert.ParseNode(r.GetCertificate())
			return err
		}
	}
}

func (m *machine) leaf() *tls.Certificate {
	m.r.t.Helper()
	leaf, err := cert.TLSCertificate(m.device, m.result.GetCertificate(), m.result.GetChain()...)
	if err != nil {
		m.r.t.Fatal(err)
	}
	return &leaf
}

// stream is an attached node. A goroutine applies and acknowledges what it is sent, and keeps the stream alive.
type stream struct {
	m *machine
	c *wireConn

	mu      sync.Mutex
	welcome *redoubtv1.Welcome
	nm      *proto.Netmap
	full    int
	deltas  int
	err     error
	done    chan struct{}
	answers chan *redoubtv1.Down
	quiet   bool // no acknowledgements
	talking []uint64
}

func (m *machine) open(applied proto.Version) (*wireConn, *redoubtv1.Welcome, error) {
	c, err := m.r.upgrade(m.leaf())
	if err != nil {
		return nil, nil, err
	}
	welcome, err := m.greet(c, applied)
	if err != nil {
		c.t.Close()
		return nil, nil, err
	}
	return c, welcome, nil
}

// greet attaches on an open connection.
func (m *machine) greet(c *wireConn, applied proto.Version) (*redoubtv1.Welcome, error) {
	hello := m.hello()
	attach := &redoubtv1.Attach{}
	if !applied.IsZero() {
		attach.Applied = wire.FromVersion(applied)
	}
	hello.Purpose = &redoubtv1.Hello_Attach{Attach: attach}
	if _, err := c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}}); err != nil {
		return nil, err
	}
	down, err := c.read()
	if err != nil {
		return nil, err
	}
	return down.GetWelcome(), nil
}

// attach opens a stream; have is the node's previous netmap.
func (m *machine) attach(have *proto.Netmap) *stream {
	m.r.t.Helper()
	var applied proto.Version
	if have != nil {
		applied = have.Version
	}
	c, welcome, err := m.open(applied)
	if err != nil {
		m.r.t.Fatal(err)
	}
	return m.serve(c, welcome, have)
}

// serve runs a node on an open stream.
func (m *machine) serve(c *wireConn, welcome *redoubtv1.Welcome, have *proto.Netmap) *stream {
	s := &stream{m: m, c: c, welcome: welcome, nm: have, done: make(chan struct{}), answers: make(chan *redoubtv1.Down, 4)}
	go s.read()
	go s.live()
	return s
}

func (s *stream) live() {
	t := time.NewTicker(25 * time.Second)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			_, _ = s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}})
		case <-s.done:
			return
		}
	}
}

func (s *stream) read() {
	defer close(s.done)
	var whole wire.NetmapAssembler
	var part wire.DeltaAssembler
	for {
		down, err := s.c.read()
		if err == nil {
			err = s.handle(down, &whole, &part)
		}
		if err != nil {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			return
		}
	}
}

func (s *stream) handle(down *redoubtv1.Down, whole *wire.NetmapAssembler, part *wire.DeltaAssembler) error {
	switch {
	case down.GetNetmap() != nil:
		done, nm, err := whole.Add(down.GetNetmap())
		if err != nil || !done {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.nm, s.full = nm, s.full+1
	case down.GetDelta() != nil:
		done, d, err := part.Add(down.GetDelta())
		if err != nil || !done {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.nm, err = s.nm.Apply(d); err != nil {
			return err
		}
		s.deltas++
	default:
		s.answers <- down
		return nil
	}
	if s.quiet {
		return nil
	}
	_, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Applied{Applied: &redoubtv1.Applied{Version: wire.FromVersion(s.nm.Version)}}})
	return err
}

func (s *stream) close() {
	s.c.t.Close()
	<-s.done
}

func (s *stream) netmap() *proto.Netmap {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nm
}

func (s *stream) counts() (full, deltas int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.full, s.deltas
}

func (s *stream) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// renew gets the next certificate on the stream.
func (s *stream) renew() error {
	if err := s.askNext(); err != nil {
		return err
	}
	select {
	case down := <-s.answers:
		s.m.result, s.m.next = down.GetResult(), key.NodePrivate{}
		var err error
		s.m.cert, err = cert.ParseNode(s.m.result.GetCertificate())
		return err
	case <-s.done:
		return s.failed()
	}
}

// askNext performs a renewal except for reading its result.
func (s *stream) askNext() error {
	var err error
	if s.m.next.IsZero() {
		if s.m.next, err = key.NewNode(random); err != nil {
			return err
		}
	}
	sum, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Renew{Renew: &redoubtv1.Renew{
		NodePublic: s.m.next.Public().Bytes(), Facts: s.m.facts, Ticket: s.m.result.GetTicket(), Talking: s.talking,
	}}})
	if err != nil {
		return err
	}
	select {
	case down := <-s.answers:
		_, err = s.c.send(up(s.m.proof(s.c, s.m.next, wire.DomainRenew, sum, down.GetChallenge(), nil)))
		return err
	case <-s.done:
		return s.failed()
	}
}

// settle waits until pending work is done.
func settle() {
	time.Sleep(50 * time.Millisecond)
	synctest.Wait()
}
