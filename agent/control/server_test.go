package control

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	randv2 "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const coordinatorURL = "https://192.0.2.1"

// lab is a test coordinator and a node that talks to it, on an Internet in memory.
type lab struct {
	t      *testing.T
	net    *sim.Internet
	server *sim.Host
	node   *sim.Host
	mesh   *identitytest.Mesh
	self   *identitytest.Machine
	token  key.TokenSecret

	mu     sync.Mutex
	events []machine.Event
	dials  []time.Time
	heard  []time.Time
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, net: sim.New(1), mesh: identitytest.New(time.Now().Add(-time.Hour))}
	l.server = l.net.Host("coordinator", netip.MustParseAddr("192.0.2.1"))
	l.node = l.net.Host("node", netip.MustParseAddr("192.0.2.2"))
	l.self = l.mesh.Machine(1, "self")
	var err error
	if l.token, err = key.NewToken(rand.Reader); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lab) config() Config {
	return Config{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			l.mu.Lock()
			l.dials = append(l.dials, time.Now())
			l.mu.Unlock()
			return l.node.DialContext(ctx, network, address)
		},
		Now: time.Now,
		Heard: func(at time.Time) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.heard = append(l.heard, at)
		},
		Rand: randv2.New(randv2.NewPCG(1, 1)), URLs: []string{coordinatorURL},
		Device: l.self.Device, Program: "test", Hostname: "self",
		Emit: func(_ context.Context, e machine.Event) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.events = append(l.events, e)
		},
	}
}

// took returns what was emitted since the last call.
func (l *lab) took() []machine.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.events
	l.events = nil
	return out
}

func (l *lab) request() enroll.Request {
	return enroll.Request{
		Device: l.self.Device, Node: l.self.Node, Token: l.token, Root: cert.Fingerprint(l.mesh.Root.Certificate()),
		Hostname: "self", Program: "test",
	}
}

// talk is one stream, as the coordinator sees it.
type talk struct {
	net.Conn
	r        *bufio.Reader
	exporter []byte
	peer     [][]byte // the node's chain
}

// serve runs f on each stream in turn until the test ends. The stream ends when f returns.
func (l *lab) serve(address string, f func(n int, s *talk)) (stop func()) {
	listener, err := l.server.Listen("tcp", address)
	if err != nil {
		l.t.Fatal(err)
	}
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	leaf, err := l.mesh.Intermediate.IssueCoordinator(rand.Reader, l.mesh.Mesh.ID, "c1", device.Public(), time.Now(), time.Hour*24*30)
	if err != nil {
		l.t.Fatal(err)
	}
	certificate, err := cert.TLSCertificate(device, leaf, l.mesh.Intermediate.Certificate().Raw, l.mesh.Root.Certificate().Raw)
	if err != nil {
		l.t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for n := 0; ; n++ {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[raw] = true
			mu.Unlock()
			wg.Go(func() {
				defer raw.Close()
				s, err := accept(raw, certificate)
				if err != nil {
					return
				}
				f(n, s)
			})
		}
	})
	return func() {
		listener.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	}
}

func accept(raw net.Conn, certificate tls.Certificate) (*talk, error) {
	s := &talk{}
	conn := tls.Server(raw, cert.ServerConfig(certificate, nil, func(chain [][]byte) error {
		s.peer = chain
		return nil
	}))
	if err := conn.Handshake(); err != nil {
		return nil, err
	}
	s.Conn, s.r = conn, bufio.NewReader(conn)
	request, err := http.ReadRequest(s.r)
	if err != nil {
		return nil, err
	}
	if request.URL.Path != wire.Path || request.Header.Get("Upgrade") != wire.Protocol {
		return nil, errors.New("not the request that was expected")
	}
	if s.exporter, err = cert.Exporter(conn.ConnectionState()); err != nil {
		return nil, err
	}
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+wire.Protocol+"\r\n\r\n")
	return s, err
}

// up reads the node's next message; nil at the end.
func (s *talk) up() (*redoubtv1.Up, []byte) {
	frame, err := wire.ReadFrame(s.r, nil, wire.MaxUp)
	if err != nil {
		return nil, nil
	}
	up, err := wire.DecodeUp(frame)
	if err != nil {
		return nil, nil
	}
	return up, frame
}

func (s *talk) down(messages ...*redoubtv1.Down) {
	for _, m := range messages {
		frame, err := wire.AppendFrame(nil, m)
		if err == nil {
			_, err = s.Write(frame)
		}
		if err != nil {
			return
		}
	}
}

func welcome() *redoubtv1.Down {
	return &redoubtv1.Down{Message: &redoubtv1.Down_Welcome{Welcome: &redoubtv1.Welcome{
		Protocol: 1, KeepAliveSeconds: 25, ServerTime: time.Now().UnixMilli(),
	}}}
}

func refusal(code redoubtv1.Refusal_Code, after uint32) *redoubtv1.Down {
	return &redoubtv1.Down{Message: &redoubtv1.Down_Refusal{Refusal: &redoubtv1.Refusal{
		Code: code, Message: "refused by the test", RetryAfterSeconds: after,
	}}}
}

// asked is a challenge, and what it takes to verify the answer.
type asked struct {
	message   *redoubtv1.Down
	nonce     []byte
	ephemeral key.NodePrivate
	first     []byte
}

func ask(t *testing.T, first []byte, attestor string) asked {
	e, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Error(err)
	}
	a := asked{nonce: make([]byte, wire.NonceSize), ephemeral: e, first: first}
	_, _ = rand.Read(a.nonce)
	a.message = &redoubtv1.Down{Message: &redoubtv1.Down_Challenge{Challenge: &redoubtv1.Challenge{
		Nonce: a.nonce, EphemeralPublic: e.Public().Bytes(), ServerTime: time.Now().UnixMilli(), Attestor: attestor, Protocol: 1,
	}}}
	return a
}

func (l *lab) result(sequence uint64) *redoubtv1.Down {
	r := l.mesh.Record(l.self, sequence, time.Now(), time.Hour)
	return &redoubtv1.Down{Message: &redoubtv1.Down_Result{Result: &redoubtv1.Result{
		Certificate: r.Chain[0], Chain: r.Chain[1:], Roots: r.Roots, Mesh: wire.FromMesh(r.Mesh),
	}}}
}

// until reads the node's messages until f accepts one.
func (s *talk) until(f func(*redoubtv1.Up) bool) (*redoubtv1.Up, []byte) {
	for {
		up, raw := s.up()
		if up == nil || f(up) {
			return up, raw
		}
	}
}
