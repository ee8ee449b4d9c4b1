package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/enroll"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// switching is the response to a request for an Upgrade.
const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + wire.Protocol + "\r\n\r\n"

// serve runs a stream from its Upgrade to its end. A lasting stream continues in its own goroutine: this one's stack has grown
// during the greeting, and would stay that large.
func (s *Server) serve(t *tls.Conn, g *guest, early []byte) {
	if lasting := s.begin(t, g, early); lasting != nil {
		if !s.start(lasting) {
			lasting()
		}
		return
	}
	g.drop()
}

// begin greets a peer and finishes with those that do not stay. For a node that stays it returns the function serving the rest.
func (s *Server) begin(t *tls.Conn, g *guest, early []byte) func() {
	g.patience(time.Now().Add(arrival))
	if _, err := io.WriteString(t, switching); err != nil {
		return nil
	}
	lasting, err := s.greet(t, g, newFrames(t, early))
	if lasting != nil {
		return lasting
	}
	if err == nil || s.ctx.Err() != nil {
		return nil
	}
	if r := s.refused(err, g, t); r != nil {
		lastWord(t, g, r.Down())
		drain(t)
	}
	return nil
}

// refused returns the refusal to send for an error, nil for none, and logs it; internal failures are logged as errors.
func (s *Server) refused(err error, g *guest, t *tls.Conn) *refusal.Refusal {
	if isTransport(err) {
		s.Log.Debug("stream broke", "remote", g.RemoteAddr(), "err", err)
		return nil
	}
	r, expected := refusal.From(err)
	level := slog.LevelInfo
	if !expected {
		level = slog.LevelError
	}
	attrs := []any{"remote", t.RemoteAddr(), "code", codeName(r.Code), "err", err}
	if g.node != nil {
		attrs = append(attrs, "node", g.node.ID, "name", g.node.Name)
	}
	s.Log.Log(s.ctx, level, "stream refused", attrs...)
	s.metrics.refusals.WithLabelValues(codeName(r.Code)).Inc()
	return r
}

func codeName(c redoubtv1.Refusal_Code) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CODE_"))
}

// greet reads the first message and acts on it. For a node that stays it returns the function serving the rest.
func (s *Server) greet(t *tls.Conn, g *guest, in *frames) (func(), error) {
	up, sum, err := in.next()
	if err != nil {
		return nil, err
	}
	hello := up.GetHello()
	if hello == nil {
		return nil, refusal.Malformed("a stream begins with a hello")
	}
	protocol, err := negotiate(hello)
	if err != nil {
		return nil, err
	}
	switch {
	case hello.GetEnrol() != nil && g.node != nil:
		return nil, refusal.Malformed("a machine that has a certificate does not enrol with it")
	case hello.GetEnrol() != nil:
		n, wait, err := s.enrol(t, g, in, enroll.Hello{Sum: sum, Message: hello, Protocol: protocol})
		if err != nil || n == nil {
			return wait, err
		}
		return s.enrolled(t, g, in, n, hello.GetEnrol().GetStays())
	case hello.GetAttach() != nil && g.node == nil:
		return nil, &refusal.Refusal{Code: redoubtv1.Refusal_CODE_PROOF, Message: "only a node with its certificate can attach; enrol first (redoubt up CODE)"}
	case hello.GetAttach() != nil:
		return s.attach(t, g, in, hello, protocol)
	}
	return nil, refusal.Malformed("a hello that does not say what it is for")
}

// negotiate returns the highest protocol version that both sides speak.
func negotiate(hello *redoubtv1.Hello) (uint32, error) {
	lowest, highest := hello.GetProtocolMin(), hello.GetProtocolMax()
	v := min(highest, proto.ProtocolMax)
	if v < max(lowest, proto.ProtocolMin) {
		return 0, &refusal.Refusal{Code: redoubtv1.Refusal_CODE_VERSION, Message: fmt.Sprintf(
			"this coordinator speaks versions %d to %d of the protocol, the agent %d to %d; update the older one of the two",
			proto.ProtocolMin, proto.ProtocolMax, lowest, highest)}
	}
	return v, nil
}

// enrol turns a machine into a node. If the machine has to wait, n is nil, and wait keeps its stream open.
func (s *Server) enrol(t *tls.Conn, g *guest, in *frames, hello enroll.Hello) (n *directory.Node, wait func(), err error) {
	result := "refused"
	defer func() {
		s.metrics.enrolments.WithLabelValues(result).Inc()
		s.noteRefusal(remote(t), hello.Message, err)
	}()
	admit, err := s.examine(t, g, in, hello)
	if err != nil {
		return nil, nil, err
	}
	watch := s.Directory.WatchCandidate(admit.Claim.Device)
	n, err = s.admit(admit, hello.Message, t)
	if pending := (*directory.PendingError)(nil); errors.As(err, &pending) && pending.Code != "" { // no code: already a node
		result = "pending"
		s.Log.Info("machine waits for approval", "code", pending.Code, "name", pending.Name, "attestation", admit.Attributes.Level, "remote", t.RemoteAddr())
		return nil, s.await(t, g, in, "candidate "+admit.Claim.Device.String(), watch, func(hold uint32) *redoubtv1.Down {
			return pendingDown(pending, hold)
		}), nil
	}
	watch.Close()
	if err != nil {
		return nil, nil, err
	}
	result = "admitted"
	if known, ok := s.Directory.Snapshot().TokenByID(n.Token); ok && known.Replace == n.ID {
		s.Hub.Drop(n.ID, refusal.OtherMachine())
	}
	s.Log.Info("node enrolled", "node", n.ID, "name", n.Name, "attestation", n.Level, "who", n.Who(), "v4", n.Addrs.V4, "v6", n.Addrs.V6, "token", n.Token, "remote", t.RemoteAddr())
	return n, nil, nil
}

// enrolled sends a machine its certificate. A machine that stays continues as the new node: its proof was bound to this very
// connection, so its peer holds the device key, just as a handshake with the certificate would show.
func (s *Server) enrolled(t *tls.Conn, g *guest, in *frames, n *directory.Node, stays bool) (func(), error) {
	result := s.result(n)
	if !stays {
		lastWord(t, g, result)
		drain(t)
		return nil, nil
	}
	result.GetResult().Stays = true
	g.patience(time.Now().Add(arrival))
	if err := write(t, result); err != nil {
		return nil, err
	}
	g.node = &cert.Node{Identity: n.Identity, Device: n.Device, Serial: n.Certificate.Serial, NotAfter: n.Certificate.NotAfter}
	up, _, err := in.next()
	if err != nil {
		return nil, err
	}
	hello := up.GetHello()
	if hello.GetAttach() == nil {
		return nil, refusal.Malformed("a machine that has enrolled can only attach")
	}
	protocol, err := negotiate(hello)
	if err != nil {
		return nil, err
	}
	return s.attach(t, g, in, hello, protocol)
}

// examine has a machine prove its identity and attestation.
func (s *Server) examine(t *tls.Conn, g *guest, in *frames, hello enroll.Hello) (admit enroll.Admit, err error) {
	if hello.Exporter, err = cert.Exporter(t.ConnectionState()); err != nil {
		return admit, err
	}
	m := enroll.New(s.Attestors, s.Rand)
	effect, err := m.Step(s.Clock(), hello)
	if err != nil {
		return admit, err
	}
	challenge, ok := effect.(enroll.Challenge)
	if !ok {
		return admit, fmt.Errorf("control: a hello led to %T", effect)
	}
	g.patience(time.Now().Add(step))
	if err := write(t, &redoubtv1.Down{Message: &redoubtv1.Down_Challenge{Challenge: challenge.Message}}); err != nil {
		return admit, err
	}
	up, _, err := in.next()
	if err != nil {
		return admit, err
	}
	if up.GetProof() == nil {
		return admit, refusal.Malformed("a challenge is answered with a proof")
	}
	if effect, err = m.Step(s.Clock(), enroll.Proof{Message: up.GetProof()}); err != nil {
		return admit, err
	}
	if admit, ok = effect.(enroll.Admit); !ok {
		return admit, fmt.Errorf("control: a proof led to %T", effect)
	}
	return admit, nil
}

func (s *Server) admit(a enroll.Admit, hello *redoubtv1.Hello, t *tls.Conn) (*directory.Node, error) {
	ctx, cancel := context.WithTimeout(directory.From(s.ctx, remote(t).String()), step)
	defer cancel()
	n, err := s.Directory.Enroll(ctx, directory.EnrollRequest{
		Token: a.Claim.Token, Device: a.Claim.Device, Key: a.Claim.Node, Hostname: a.Hostname, Level: a.Attributes.Level,
		Attested: attested(a.Kind, a.Attributes),
		Reported: s.reported(hello, hello.GetFacts()),
		Health:   healthOf(a.Posture),
	})
	var locked *directory.LockedError
	if errors.As(err, &locked) {
		r := refusal.Locked(locked.Lock)
		r.RetryAfter = 0 // it has a place to wait at
		return nil, r
	}
	if errors.Is(err, directory.ErrAdmission) {
		r, _ := refusal.From(err)
		return nil, r.Unspent()
	}
	return n, err
}

// attested converts a proof for the directory.
func attested(kind string, a attest.Attributes) directory.Attested {
	return directory.Attested{
		Kind: kind, Device: a.DeviceID, Selectors: a.Selectors, Checks: a.Checks, Again: a.CanReattest, Known: a.Known,
	}
}

// result returns the message with a node's certificate.
func (s *Server) result(n *directory.Node) *redoubtv1.Down {
	return &redoubtv1.Down{Message: &redoubtv1.Down_Result{Result: &redoubtv1.Result{
		Certificate: n.Certificate.DER, Chain: s.chain(), Roots: s.Issuer.Roots(), Mesh: wire.FromMesh(s.Directory.Snapshot().Mesh()),
		Ticket: n.NextTicket(),
	}}}
}

// maxIssuers is how many intermediates are sent with a certificate: its issuer is the newest one or, when a reply is repeated,
// a recent predecessor.
const maxIssuers = 4

func (s *Server) chain() [][]byte {
	all := s.Issuer.Authorities()
	return all[:min(len(all), maxIssuers)]
}

// isTransport reports whether a stream ended because its connection did.
func isTransport(err error) bool {
	var r *refusal.Refusal
	return !errors.As(err, &r) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isNet(err))
}
