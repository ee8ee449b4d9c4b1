package enroll

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

var (
	now      = time.Unix(1_800_000_000, 0)
	exporter = []byte("the exporter of a TLS connection")
)

type peer struct {
	device key.DevicePrivate
	node   key.NodePrivate
	token  key.TokenSecret
}

func newPeer(t testing.TB) peer {
	t.Helper()
	device, err1 := key.NewDevice(rand.Reader)
	node, err2 := key.NewNode(rand.Reader)
	token, err3 := key.NewToken(rand.Reader)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return peer{device, node, token}
}

func newMachine(t testing.TB) *Machine {
	t.Helper()
	r, err := attest.NewRegistry(attest.Token{})
	if err != nil {
		t.Fatal(err)
	}
	return New(r, rand.Reader)
}

func (p peer) hello() Hello {
	return Hello{Sum: [32]byte{1}, Exporter: exporter, Protocol: 1, Message: &redoubtv1.Hello{Hostname: "host", Purpose: &redoubtv1.Hello_Enrol{Enrol: &redoubtv1.Enrol{
		Evidence: []string{"token"}, DevicePublic: p.device.Device().Bytes(), NodePublic: p.node.Public().Bytes(), TokenPublic: p.token.Public().Bytes(),
	}}}}
}

func (p peer) proof(t testing.TB, domain string, c *redoubtv1.Challenge, exporter []byte, sum [32]byte) Proof {
	t.Helper()
	return p.proofWith(t, domain, c, exporter, sum, nil)
}

// proofWith returns a proof that says something about the machine's health.
func (p peer) proofWith(t testing.TB, domain string, c *redoubtv1.Challenge, exporter []byte, sum [32]byte, posture []byte) Proof {
	t.Helper()
	binding := wire.Binding(domain, c.GetNonce(), exporter, p.node.Public(), p.device.Device(), sha256.Sum256(posture), sum)
	ephemeral, err := key.ParseNodePublic(c.GetEphemeralPublic())
	if err != nil {
		t.Fatal(err)
	}
	shared, err := p.node.Shared(ephemeral)
	if err != nil {
		t.Fatal(err)
	}
	mac := wire.NodeKeyMAC(shared, binding)
	signature, err := p.device.Sign(rand.Reader, binding[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return Proof{&redoubtv1.Proof{Posture: posture, NodeKeyMac: mac[:], DeviceSignature: signature, TokenSignature: p.token.Sign(binding[:])}}
}

func challenged(t testing.TB, m *Machine, e Event) *redoubtv1.Challenge {
	t.Helper()
	effect, err := m.Step(now, e)
	c, ok := effect.(Challenge)
	if err != nil || !ok || c.Message.GetServerTime() != now.UnixMilli() {
		t.Fatalf("%T, %v", effect, err)
	}
	return c.Message
}

func refusedAs(t *testing.T, effect Effect, err error, code redoubtv1.Refusal_Code) {
	t.Helper()
	var r *refusal.Refusal
	if effect != nil || !errors.As(err, &r) || r.Code != code {
		t.Errorf("%T, %v; want %v", effect, err, code)
	}
}

func TestEnrolment(t *testing.T) {
	p, m := newPeer(t), newMachine(t)
	c := challenged(t, m, p.hello())
	effect, err := m.Step(now.Add(Patience), p.proof(t, wire.DomainEnrol, c, exporter, [32]byte{1}))
	a, ok := effect.(Admit)
	if err != nil || !ok || a.Claim != (attest.Claim{Device: p.device.Device(), Node: p.node.Public(), Token: p.token.Public()}) ||
		a.Hostname != "host" || a.Attributes.Level != cert.LevelToken {
		t.Fatalf("%+v, %v", effect, err)
	}
}

func TestRenewal(t *testing.T) {
	p, m := newPeer(t), newMachine(t)
	renew := Renew{Sum: [32]byte{2}, Exporter: exporter, Message: &redoubtv1.Renew{NodePublic: p.node.Public().Bytes()}, ID: 7, Device: p.device.Device()}
	for range 3 {
		c := challenged(t, m, renew)
		if c.GetAttestor() != "" {
			t.Errorf("a renewal asks for evidence: %q", c.GetAttestor())
		}
		effect, err := m.Step(now, p.proof(t, wire.DomainRenew, c, exporter, [32]byte{2}))
		if err != nil || effect != (Extend{ID: 7, Key: p.node.Public()}) {
			t.Fatalf("%+v, %v", effect, err)
		}
	}
	// The key must be held, not only known.
	renew.Message = &redoubtv1.Renew{NodePublic: newPeer(t).node.Public().Bytes()}
	c := challenged(t, m, renew)
	effect, err := m.Step(now, p.proof(t, wire.DomainRenew, c, exporter, [32]byte{2}))
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_PROOF)
	// A point of low order would make the proof worthless.
	for _, low := range [][]byte{make([]byte, 32), append([]byte{1}, make([]byte, 31)...)} {
		renew.Message = &redoubtv1.Renew{NodePublic: low}
		effect, err = m.Step(now, renew)
		refusedAs(t, effect, err, redoubtv1.Refusal_CODE_MALFORMED)
	}
}

func TestProofsAreForOneChallenge(t *testing.T) {
	p := newPeer(t)
	good := func(c *redoubtv1.Challenge) Proof { return p.proof(t, wire.DomainEnrol, c, exporter, [32]byte{1}) }
	for name, c := range map[string]struct {
		proof func(c *redoubtv1.Challenge) Proof
		code  redoubtv1.Refusal_Code
		at    time.Time
	}{
		"another connection": {func(c *redoubtv1.Challenge) Proof {
			return p.proof(t, wire.DomainEnrol, c, []byte("another"), [32]byte{1})
		}, redoubtv1.Refusal_CODE_PROOF, now},
		"another hello":   {func(c *redoubtv1.Challenge) Proof { return p.proof(t, wire.DomainEnrol, c, exporter, [32]byte{9}) }, redoubtv1.Refusal_CODE_PROOF, now},
		"another purpose": {func(c *redoubtv1.Challenge) Proof { return p.proof(t, wire.DomainRenew, c, exporter, [32]byte{1}) }, redoubtv1.Refusal_CODE_PROOF, now},
		"another nonce": {func(c *redoubtv1.Challenge) Proof {
			x := pb.Clone(c).(*redoubtv1.Challenge)
			x.Nonce[0] ^= 1
			return good(x)
		}, redoubtv1.Refusal_CODE_PROOF, now},
		"another machine": {func(c *redoubtv1.Challenge) Proof {
			return newPeer(t).proof(t, wire.DomainEnrol, c, exporter, [32]byte{1})
		}, redoubtv1.Refusal_CODE_PROOF, now},
		"another token": {func(c *redoubtv1.Challenge) Proof {
			x := good(c)
			x.Message.TokenSignature = newPeer(t).token.Sign([]byte("x"))
			return x
		}, redoubtv1.Refusal_CODE_TOKEN, now},
		"late": {good, redoubtv1.Refusal_CODE_EXPIRED, now.Add(Patience + 1)},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			challenge := challenged(t, m, p.hello())
			effect, err := m.Step(c.at, c.proof(challenge))
			refusedAs(t, effect, err, c.code)
			// The challenge is used up, even for a valid proof.
			effect, err = m.Step(now, good(challenge))
			refusedAs(t, effect, err, redoubtv1.Refusal_CODE_MALFORMED)
		})
	}
}

func TestOutOfOrder(t *testing.T) {
	p, m := newPeer(t), newMachine(t)
	effect, err := m.Step(now, Proof{&redoubtv1.Proof{}})
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_MALFORMED)
	challenged(t, m, p.hello())
	effect, err = m.Step(now, p.hello())
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_MALFORMED)
	effect, err = m.Step(now, Renew{Message: &redoubtv1.Renew{NodePublic: p.node.Public().Bytes()}})
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_MALFORMED)
}

// FuzzMachine gives a machine arbitrary messages. It checks that nobody is admitted without a signature.
func FuzzMachine(f *testing.F) {
	p := newPeer(f)
	hello, err := pb.Marshal(p.hello().Message)
	if err != nil {
		f.Fatal(err)
	}
	proof, err := pb.Marshal(&redoubtv1.Proof{NodeKeyMac: make([]byte, 32), DeviceSignature: make([]byte, 70), TokenSignature: make([]byte, 64)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello, proof)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		h, pr := new(redoubtv1.Hello), new(redoubtv1.Proof)
		if pb.Unmarshal(first, h) != nil || pb.Unmarshal(second, pr) != nil {
			return
		}
		m := newMachine(t)
		if _, err := m.Step(now, Hello{Message: h, Exporter: exporter}); err != nil {
			var r *refusal.Refusal
			if !errors.As(err, &r) {
				t.Fatalf("not a refusal: %v", err)
			}
		}
		effect, err := m.Step(now, Proof{pr})
		var r *refusal.Refusal
		if effect != nil || !errors.As(err, &r) {
			t.Fatalf("%T, %v", effect, err)
		}
	})
}
