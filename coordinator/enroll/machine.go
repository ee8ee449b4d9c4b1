package enroll

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// Patience is how long a challenge may wait for its answer.
const Patience = 60 * time.Second

// maxEvidence is how many kinds of evidence a machine may offer.
const maxEvidence = 16

// Event is something that happens on the stream.
type Event interface{ event() }

// Hello is the request of a machine without a certificate for its first one.
type Hello struct {
	Sum      [32]byte // hash of the message as received, for the Binding
	Message  *redoubtv1.Hello
	Exporter []byte // of the TLS connection, see proto/cert
	Protocol uint32 // the version agreed on
}

// Renew is the request of a node, on its own stream, for its next certificate.
type Renew struct {
	Sum      [32]byte
	Message  *redoubtv1.Renew
	Exporter []byte
	Protocol uint32
	// ID and Device are the node's identity according to the stream's certificate.
	ID     proto.NodeID
	Device key.DevicePublic
	// Kind is the kind of evidence that the machine gave when it enrolled and can give again, and Known what its attestor
	// recorded then; empty if it cannot.
	Kind  string
	Known []byte
}

// Proof is the answer to a challenge.
type Proof struct {
	Message *redoubtv1.Proof
}

func (Hello) event() {}
func (Renew) event() {}
func (Proof) event() {}

// Effect is what the stream must do next.
type Effect interface{ effect() }

// Challenge is sent to the machine.
type Challenge struct {
	Message *redoubtv1.Challenge
}

// Admit asks the directory to make this machine a node; the machine is then sent a certificate.
type Admit struct {
	Claim      attest.Claim
	Kind       string // of the evidence
	Attributes attest.Attributes
	Hostname   string
	// Posture is what the proof says about the machine's health; nil if nothing.
	Posture *redoubtv1.Posture
}

// Extend asks the directory for the next certificate of a node, with Key, which it proved to hold, as its next key.
type Extend struct {
	ID  proto.NodeID
	Key key.NodePublic
	// Again is what the machine proved again about itself; nil if it need not or could not. In the latter case Lapse says
	// why.
	Again *attest.Attributes
	Lapse string
	// Posture is what the proof says about the machine's health; nil if nothing.
	Posture *redoubtv1.Posture
}

func (Challenge) effect() {}
func (Admit) effect()     {}
func (Extend) effect()    {}

// Machine is the coordinator's side of one stream. The zero value is unusable; see New.
type Machine struct {
	attestors *attest.Registry
	random    io.Reader
	asked     *asked // nil while idle
}

// asked is a challenge that waits for its proof.
type asked struct {
	until     time.Time
	domain    string
	nonce     [32]byte
	exporter  []byte
	hash      [32]byte
	ephemeral key.NodePrivate
	claim     attest.Claim
	hostname  string
	node      proto.NodeID // renewal only
	attestor  attest.Attestor
	state     attest.State
	opening   []byte // enrolment: what came with the offer
	known     []byte // renewal: what the attestor recorded about the machine
	lapse     string // renewal: why no evidence is requested
}

// New returns the machine of one stream.
func New(attestors *attest.Registry, random io.Reader) *Machine {
	return &Machine{attestors: attestors, random: random}
}

// Step handles the next event. An error that is a *refusal.Refusal goes to the other side and ends the stream; any other
// error is a failure of this program.
func (m *Machine) Step(now time.Time, e Event) (Effect, error) {
	switch e := e.(type) {
	case Hello:
		return m.hello(now, e)
	case Renew:
		return m.renew(now, e)
	case Proof:
		return m.proof(now, e)
	}
	return nil, fmt.Errorf("enroll: unknown event %T", e)
}

func (m *Machine) hello(now time.Time, e Hello) (Effect, error) {
	enrol := e.Message.GetEnrol()
	switch {
	case m.asked != nil:
		return nil, refusal.Malformed("a second hello")
	case enrol == nil:
		return nil, refusal.Malformed("a hello that does not ask to be enrolled")
	case len(enrol.GetEvidence()) > maxEvidence:
		return nil, refusal.Malformed("too many kinds of evidence")
	}
	a := &asked{domain: wire.DomainEnrol, exporter: e.Exporter, hash: e.Sum, hostname: e.Message.GetHostname()}
	var err error
	if a.claim.Device, err = key.ParseDevicePublic(enrol.GetDevicePublic()); err != nil {
		return nil, refusal.Malformed("device key: " + err.Error())
	}
	if a.claim.Node, err = key.ParseNodePublic(enrol.GetNodePublic()); err != nil {
		return nil, refusal.Malformed("node key: " + err.Error())
	}
	if len(enrol.GetTokenPublic()) != 0 {
		if a.claim.Token, err = key.ParseTokenPublic(enrol.GetTokenPublic()); err != nil {
			return nil, refusal.Token()
		}
	}
	if a.attestor, err = m.attestors.Choose(enrol.GetEvidence()); err != nil {
		return nil, &refusal.Refusal{Code: redoubtv1.Refusal_CODE_PROOF, Message: err.Error()}
	}
	a.opening = enrol.GetOpenings()[a.attestor.Kind()]
	return m.challenge(now, a, e.Protocol)
}

func (m *Machine) renew(now time.Time, e Renew) (Effect, error) {
	if m.asked != nil {
		return nil, refusal.Malformed("a second request before the first one was answered")
	}
	node, err := key.ParseNodePublic(e.Message.GetNodePublic())
	if err != nil {
		return nil, refusal.Malformed("node key: " + err.Error())
	}
	a := &asked{
		domain: wire.DomainRenew, exporter: e.Exporter, hash: e.Sum, node: e.ID,
		claim: attest.Claim{Device: e.Device, Node: node}, known: e.Known,
	}
	if e.Kind != "" {
		if a.attestor = m.attestors.Of(e.Kind); a.attestor == nil {
			a.lapse = "evidence of kind " + e.Kind + " is not accepted here any more"
		}
	}
	return m.challenge(now, a, e.Protocol)
}

func (m *Machine) challenge(now time.Time, a *asked, protocol uint32) (Effect, error) {
	var err error
	if a.ephemeral, err = key.NewNode(m.random); err != nil {
		return nil, err
	}
	if _, err = io.ReadFull(m.random, a.nonce[:]); err != nil {
		return nil, fmt.Errorf("enroll: draw a nonce: %w", err)
	}
	c := &redoubtv1.Challenge{
		Nonce: a.nonce[:], EphemeralPublic: a.ephemeral.Public().Bytes(), ServerTime: now.UnixMilli(), Protocol: protocol,
	}
	if a.attestor != nil {
		if err := m.begin(now, a, c); err != nil {
			return nil, err
		}
	}
	a.until = now.Add(Patience)
	m.asked = a
	return Challenge{c}, nil
}

// begin requests evidence. If a node cannot be asked for evidence again, that is no reason to refuse it a certificate.
func (m *Machine) begin(now time.Time, a *asked, c *redoubtv1.Challenge) (err error) {
	c.Attestor = a.attestor.Kind()
	if a.node == 0 {
		if c.Parameters, a.state, err = a.attestor.Begin(now, m.random, a.claim, a.opening); err != nil {
			return evidence(a.attestor, err)
		}
		return nil
	}
	if c.Parameters, a.state, err = a.attestor.Again(now, a.claim, a.known); err != nil {
		a.attestor, a.lapse, c.Attestor = nil, err.Error(), ""
	}
	return nil
}

// evidence returns the refusal of a machine's evidence.
func evidence(a attest.Attestor, err error) *refusal.Refusal {
	return &refusal.Refusal{Code: redoubtv1.Refusal_CODE_PROOF, Message: "evidence of kind " + a.Kind() + ": " + err.Error()}
}

// proof judges an answer. Either way, the challenge is used up.
func (m *Machine) proof(now time.Time, e Proof) (Effect, error) {
	a := m.asked
	m.asked = nil
	switch {
	case a == nil:
		return nil, refusal.Malformed("a proof that nobody asked for")
	case now.After(a.until):
		return nil, refusal.Late()
	}
	binding := wire.Binding(a.domain, a.nonce[:], a.exporter, a.claim.Node, a.claim.Device, sha256.Sum256(e.Message.GetPosture()), a.hash)
	shared, err := a.ephemeral.Shared(a.claim.Node)
	if err != nil {
		return nil, refusal.Malformed("node key: " + err.Error())
	}
	if mac := wire.NodeKeyMAC(shared, binding); !hmac.Equal(mac[:], e.Message.GetNodeKeyMac()) {
		return nil, refusal.Proof("the node key")
	}
	if !a.claim.Device.Verify(binding[:], e.Message.GetDeviceSignature()) {
		return nil, refusal.Proof("the device key")
	}
	posture, err := postureOf(e.Message)
	if err != nil {
		return nil, err
	}
	if a.node != 0 {
		return a.extend(now, e.Message, posture, binding)
	}
	if !a.claim.Token.IsZero() && !a.claim.Token.Verify(binding[:], e.Message.GetTokenSignature()) {
		return nil, refusal.Token()
	}
	attributes, err := a.attestor.Finish(now, a.state, e.Message.GetEvidence(), binding)
	if err != nil {
		return nil, evidence(a.attestor, err)
	}
	return Admit{Claim: a.claim, Kind: a.attestor.Kind(), Attributes: attributes, Hostname: a.hostname, Posture: posture}, nil
}

// postureOf returns what a proof, which covers it, says about the machine's health.
func postureOf(given *redoubtv1.Proof) (*redoubtv1.Posture, error) {
	b := given.GetPosture()
	if len(b) == 0 {
		return nil, nil
	}
	p := new(redoubtv1.Posture)
	if err := pb.Unmarshal(b, p); err != nil {
		return nil, refusal.Malformed("posture: " + err.Error())
	}
	return p, nil
}

// extend judges the evidence of a renewal. A machine that says it cannot give any still gets a certificate, at a lower level;
// one whose evidence is invalid gets nothing.
func (a *asked) extend(now time.Time, given *redoubtv1.Proof, posture *redoubtv1.Posture, binding [32]byte) (Effect, error) {
	x := Extend{ID: a.node, Key: a.claim.Node, Lapse: a.lapse, Posture: posture}
	if a.attestor == nil {
		return x, nil
	}
	attributes, err := a.attestor.Finish(now, a.state, given.GetEvidence(), binding)
	var unable *attest.UnableError
	switch {
	case errors.As(err, &unable):
		x.Lapse = unable.Reason
	case err != nil:
		return nil, evidence(a.attestor, err)
	default:
		x.Again = &attributes
	}
	return x, nil
}
