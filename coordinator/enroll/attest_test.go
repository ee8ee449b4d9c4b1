package enroll

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"testing"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// chip is an attestor for machines that say "good", or "busy" if they cannot prove themselves. Again asks for the opening of
// the enrolment.
type chip struct{}

func (chip) Kind() string { return "chip" }

func (chip) Begin(_ time.Time, _ io.Reader, _ attest.Claim, opening []byte) ([]byte, attest.State, error) {
	if len(opening) == 0 {
		return nil, nil, errors.New("no opening")
	}
	return []byte("show " + string(opening)), string(opening), nil
}

func (chip) Again(_ time.Time, _ attest.Claim, known []byte) ([]byte, attest.State, error) {
	if string(known) == "forgotten" {
		return nil, nil, errors.New("its maker is not trusted any more")
	}
	return nil, string(known), nil
}

func (chip) Finish(_ time.Time, s attest.State, evidence []byte, binding [32]byte) (attest.Attributes, error) {
	switch string(evidence[:len(evidence)-len(binding)]) {
	case "good":
	case "busy":
		return attest.Attributes{}, &attest.UnableError{Reason: "it is busy"}
	default:
		return attest.Attributes{}, errors.New("that is no chip")
	}
	if [32]byte(evidence[len(evidence)-len(binding):]) != binding {
		return attest.Attributes{}, errors.New("of another exchange")
	}
	return attest.Attributes{DeviceID: "chip:" + s.(string), Level: cert.LevelTPM, CanReattest: true, Known: []byte(s.(string))}, nil
}

func chipMachine(t testing.TB) *Machine {
	t.Helper()
	r, err := attest.NewRegistry(chip{}, attest.Token{})
	if err != nil {
		t.Fatal(err)
	}
	return New(r, rand.Reader)
}

// sha256None is the digest of an absent posture.
var sha256None = sha256.Sum256(nil)

// shows returns a proof with evidence.
func (p peer) shows(t testing.TB, domain, what string, c *redoubtv1.Challenge, sum [32]byte) Proof {
	t.Helper()
	out := p.proof(t, domain, c, exporter, sum)
	binding := wire.Binding(domain, c.GetNonce(), exporter, p.node.Public(), p.device.Device(), sha256None, sum)
	out.Message.Evidence = append([]byte(what), binding[:]...)
	return out
}

func TestStrongestEvidence(t *testing.T) {
	p := newPeer(t)
	hello := p.hello()
	hello.Message.GetEnrol().Evidence = []string{"token", "chip"}
	m := chipMachine(t)
	effect, err := m.Step(now, hello)
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_PROOF) // without its opening
	hello.Message.GetEnrol().Openings = map[string][]byte{"chip": []byte("seven"), "other": {1}}

	m = chipMachine(t)
	c := challenged(t, m, hello)
	if c.GetAttestor() != "chip" || string(c.GetParameters()) != "show seven" {
		t.Fatalf("%v", c)
	}
	effect, err = m.Step(now, p.shows(t, wire.DomainEnrol, "good", c, [32]byte{1}))
	a, ok := effect.(Admit)
	if err != nil || !ok || a.Kind != "chip" || a.Attributes.DeviceID != "chip:seven" || a.Attributes.Level != cert.LevelTPM {
		t.Fatalf("%+v, %v", effect, err)
	}
	for _, what := range []string{"busy", "bad"} {
		m = chipMachine(t)
		effect, err = m.Step(now, p.shows(t, wire.DomainEnrol, what, challenged(t, m, hello), [32]byte{1}))
		refusedAs(t, effect, err, redoubtv1.Refusal_CODE_PROOF)
	}
}

func TestRenewalsProveAgain(t *testing.T) {
	p := newPeer(t)
	renew := func(kind, known string) Renew {
		return Renew{
			Sum: [32]byte{2}, Exporter: exporter, Message: &redoubtv1.Renew{NodePublic: p.node.Public().Bytes()}, ID: 7,
			Device: p.device.Device(), Kind: kind, Known: []byte(known),
		}
	}
	m := chipMachine(t)
	c := challenged(t, m, renew("chip", "seven"))
	if c.GetAttestor() != "chip" {
		t.Fatalf("%v", c)
	}
	effect, err := m.Step(now, p.shows(t, wire.DomainRenew, "good", c, [32]byte{2}))
	x, ok := effect.(Extend)
	if err != nil || !ok || x.ID != 7 || x.Again == nil || x.Again.DeviceID != "chip:seven" || x.Lapse != "" {
		t.Fatalf("%+v, %v", effect, err)
	}
	effect, err = m.Step(now, p.shows(t, wire.DomainRenew, "busy", challenged(t, m, renew("chip", "seven")), [32]byte{2}))
	if x, ok = effect.(Extend); err != nil || !ok || x.Again != nil || x.Lapse != "it is busy" {
		t.Errorf("%+v, %v", effect, err)
	}
	effect, err = m.Step(now, p.shows(t, wire.DomainRenew, "bad", challenged(t, m, renew("chip", "seven")), [32]byte{2}))
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_PROOF)

	// Evidence that cannot be judged is not requested; the node keeps its certificate, at a lower level.
	for kind, known := range map[string]string{"chip": "forgotten", "gone": "seven"} {
		c := challenged(t, m, renew(kind, known))
		if c.GetAttestor() != "" || len(c.GetParameters()) != 0 {
			t.Errorf("%s: %v", kind, c)
		}
		effect, err = m.Step(now, p.proof(t, wire.DomainRenew, c, exporter, [32]byte{2}))
		if x, ok = effect.(Extend); err != nil || !ok || x.Again != nil || x.Lapse == "" {
			t.Errorf("%s: %+v, %v", kind, effect, err)
		}
	}
}

// The device key signs what a renewal says about the machine's health.
func TestRenewalsSayHowTheMachineIs(t *testing.T) {
	p := newPeer(t)
	renew := Renew{
		Sum: [32]byte{2}, Exporter: exporter, Message: &redoubtv1.Renew{NodePublic: p.node.Public().Bytes()}, ID: 7, Device: p.device.Device(),
	}
	said := &redoubtv1.Posture{Whole: true, Facts: []*redoubtv1.PostureFact{{Name: "posture:firewall", Value: "true", TtlSeconds: 180}}}
	b, err := pb.Marshal(said)
	if err != nil {
		t.Fatal(err)
	}
	m := chipMachine(t)
	effect, err := m.Step(now, p.proofWith(t, wire.DomainRenew, challenged(t, m, renew), exporter, [32]byte{2}, b))
	if x, ok := effect.(Extend); err != nil || !ok || !pb.Equal(x.Posture, said) {
		t.Fatalf("%+v, %v", effect, err)
	}
	effect, err = m.Step(now, p.proof(t, wire.DomainRenew, challenged(t, m, renew), exporter, [32]byte{2}))
	if x, ok := effect.(Extend); err != nil || !ok || x.Posture != nil {
		t.Errorf("says nothing: %+v, %v", effect, err)
	}
	other := p.proofWith(t, wire.DomainRenew, challenged(t, m, renew), exporter, [32]byte{2}, b)
	other.Message.Posture = other.Message.Posture[:len(b)-1]
	effect, err = m.Step(now, other)
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_PROOF)
	effect, err = m.Step(now, p.proofWith(t, wire.DomainRenew, challenged(t, m, renew), exporter, [32]byte{2}, []byte("no posture")))
	refusedAs(t, effect, err, redoubtv1.Refusal_CODE_MALFORMED)
}
