package agenttest

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// stranger is a machine without an agent: it speaks the protocol itself, and keeps to it as far as a test wants.
type stranger struct {
	m      *mesh
	name   string
	host   *sim.Host
	device key.DevicePrivate
	node   key.NodePrivate

	// Set once it is enrolled.
	result *redoubtv1.Result
	cert   *cert.Node
}

// Stranger adds a machine without an agent.
func (m *mesh) Stranger(name string, number int) *stranger {
	m.Helper()
	return &stranger{
		m: m, name: name, host: m.net.Host(name+".example", underlay(number)...),
		device: must(key.NewDevice(rand.Reader))(m.T), node: must(key.NewNode(rand.Reader))(m.T),
	}
}

// must returns the value, or ends the test: must(f())(t).
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// refused is a coordinator's refusal.
type refused struct{ *redoubtv1.Refusal }

func (e refused) Error() string { return e.GetCode().String() + ": " + e.GetMessage() }

// codeOf returns the code of a refusal; unspecified for all other errors.
func codeOf(err error) redoubtv1.Refusal_Code {
	var r refused
	if errors.As(err, &r) {
		return r.GetCode()
	}
	return redoubtv1.Refusal_CODE_UNSPECIFIED
}

// talk is a stream with its TLS connection.
type talk struct {
	conn *tls.Conn
	r    *bufio.Reader
}

// call opens a stream, with a certificate or without.
func (s *stranger) call(leaf *tls.Certificate) (*talk, error) {
	ctx, cancel := s.m.within(20 * time.Second)
	defer cancel()
	raw, err := s.host.DialContext(ctx, "tcp", "coordinator.example:443")
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, cert.ClientConfig(leaf, func([][]byte) error { return nil }))
	conn.SetDeadline(time.Now().Add(time.Minute))
	t := &talk{conn, bufio.NewReader(conn)}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: coordinator.example\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", wire.Path, wire.Protocol)
	answer, err := http.ReadResponse(t.r, nil)
	if err == nil && answer.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("no stream: %s", answer.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

// say sends a message, and returns the hash of it as it was sent.
func (t *talk) say(up *redoubtv1.Up) ([32]byte, error) {
	frame, err := wire.AppendFrame(nil, up)
	if err != nil {
		return [32]byte{}, err
	}
	_, err = t.conn.Write(frame)
	return sha256.Sum256(frame[4:]), err
}

// hear returns the next message that is not a keepalive. A refusal is an error.
func (t *talk) hear() (*redoubtv1.Down, error) {
	for {
		frame, err := wire.ReadFrame(t.r, nil, wire.MaxFrame)
		if err != nil {
			return nil, err
		}
		down, err := wire.DecodeDown(frame)
		if err != nil {
			return nil, err
		}
		if r := down.GetRefusal(); r != nil {
			return nil, refused{r}
		}
		if down.GetKeepAlive() == nil {
			return down, nil
		}
	}
}

func (s *stranger) hello() *redoubtv1.Hello {
	return &redoubtv1.Hello{
		ProtocolMin: proto.ProtocolMin, ProtocolMax: proto.ProtocolMax, Features: proto.Features(), Program: "test", Hostname: s.name,
	}
}

// claim is what a hello claims, and the keys to prove it.
type claim struct {
	device key.DevicePublic
	node   key.NodePublic
	token  key.TokenPublic

	signs  key.DevicePrivate
	holds  key.NodePrivate
	secret key.TokenSecret
}

// own returns an honest claim.
func (s *stranger) own(code join.Code) claim {
	return claim{s.device.Device(), s.node.Public(), code.Secret.Public(), s.device, s.node, code.Secret}
}

// ask sends a hello, and returns what a proof must cover.
func (c claim) ask(t *talk, s *stranger) (challenge *redoubtv1.Challenge, binding [32]byte, err error) {
	hello := s.hello()
	hello.Purpose = &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
		Evidence: []string{"token"}, DevicePublic: c.device.Bytes(), NodePublic: c.node.Bytes(), TokenPublic: c.token.Bytes(),
	}}
	sum, err := t.say(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}})
	if err != nil {
		return nil, binding, err
	}
	down, err := t.hear()
	if err != nil {
		return nil, binding, err
	}
	challenge = down.GetChallenge()
	exporter, err := cert.Exporter(t.conn.ConnectionState())
	if err != nil {
		return nil, binding, err
	}
	return challenge, wire.Binding(wire.DomainEnrol, challenge.GetNonce(), exporter, c.node, c.device, sha256.Sum256(nil), sum), nil
}

// prove makes a proof with the claim's keys.
func (c claim) prove(t *testing.T, challenge *redoubtv1.Challenge, binding [32]byte) *redoubtv1.Up {
	t.Helper()
	ephemeral := must(key.ParseNodePublic(challenge.GetEphemeralPublic()))(t)
	mac := wire.NodeKeyMAC(must(c.holds.Shared(ephemeral))(t), binding)
	return &redoubtv1.Up{Message: &redoubtv1.Up_Proof{Proof: &redoubtv1.Proof{
		NodeKeyMac: mac[:], DeviceSignature: must(c.signs.Sign(rand.Reader, binding[:], crypto.SHA256))(t),
		TokenSignature: c.secret.Sign(binding[:]),
	}}}
}

// enrol goes through an enrolment, and returns the result.
func (s *stranger) enrol(c claim) (*redoubtv1.Result, error) {
	t, err := s.call(nil)
	if err != nil {
		return nil, err
	}
	defer t.conn.Close()
	challenge, binding, err := c.ask(t, s)
	if err != nil {
		return nil, err
	}
	if _, err := t.say(c.prove(s.m.T, challenge, binding)); err != nil {
		return nil, err
	}
	down, err := t.hear()
	if err != nil {
		return nil, err
	}
	return down.GetResult(), nil
}

// Join makes the stranger a node that nobody suspects.
func (s *stranger) Join(options ...who) *stranger {
	s.m.Helper()
	s.result = must(s.enrol(s.own(s.m.parse(s.m.Code(options...)))))(s.m.T)
	s.cert = must(cert.ParseNode(s.result.GetCertificate()))(s.m.T)
	return s
}

func (m *mesh) parse(code string) join.Code {
	m.Helper()
	return must(join.Parse(code))(m.T)
}

// leaf returns its TLS certificate, with any key.
func (s *stranger) leaf(signer crypto.Signer) *tls.Certificate {
	chain := append([][]byte{s.result.GetCertificate()}, s.result.GetChain()...)
	return &tls.Certificate{Certificate: chain, PrivateKey: signer}
}

// attach opens a stream as a node does, and returns the first netmap.
func (s *stranger) attach(applied proto.Version) (*talk, *proto.Netmap, error) {
	t, err := s.call(s.leaf(s.device))
	if err != nil {
		return nil, nil, err
	}
	hello, attach := s.hello(), &redoubtv1.Attach{}
	if !applied.IsZero() {
		attach.Applied = wire.FromVersion(applied)
	}
	hello.Purpose = &redoubtv1.Hello_Attach{Attach: attach}
	nm, err := s.netmap(t, hello)
	if err != nil {
		t.conn.Close()
		return nil, nil, err
	}
	return t, nm, nil
}

func (s *stranger) netmap(t *talk, hello *redoubtv1.Hello) (*proto.Netmap, error) {
	if _, err := t.say(&redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}}); err != nil {
		return nil, err
	}
	if _, err := t.hear(); err != nil { // welcome
		return nil, err
	}
	var whole wire.NetmapAssembler
	for {
		down, err := t.hear()
		if err != nil {
			return nil, err
		}
		if done, nm, err := whole.Add(down.GetNetmap()); err != nil || done {
			return nm, err
		}
	}
}

// raw sends bytes in place of frames, and returns how the coordinator ends the stream.
func (t *talk) raw(b []byte) error {
	if _, err := t.conn.Write(b); err != nil {
		return err
	}
	for {
		if _, err := t.hear(); err != nil {
			return err
		}
	}
}

// frame returns a message with its frame header.
func frame(t *testing.T, up *redoubtv1.Up) []byte {
	t.Helper()
	return bytes.Clone(must(wire.AppendFrame(nil, up))(t))
}
