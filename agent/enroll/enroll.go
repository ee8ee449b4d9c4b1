// Package enroll is a node's side of obtaining a certificate, the first one and each later one. It does no I/O of its own: it
// takes received messages and returns those to send; package control transports them, and a Prover speaks with the TPM.
//
//	Enrol(request) ─► hello ─►                      Renew(request) ─► renew ─►
//	                         coordinator                                     coordinator
//	Answer(challenge, exporter) ◄─ challenge ◄─     (the same from here on)
//	       └─► proof ─►
//	Finish(result) ◄─ result ◄─
//
// The keys are on the disk before the first message is sent. So whoever is killed, and whichever message is lost, the node
// asks again with the same keys, and the coordinator gives it the same identity.
package enroll

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// EvidenceToken is the kind of evidence that is a join token.
const EvidenceToken = "token"

// Prover creates evidence of this machine's identity, in addition to a join token.
type Prover interface {
	// Offers returns the kinds of evidence that are available, and the data that their challenges are made from.
	Offers() (kinds []string, openings map[string][]byte, err error)
	// Evidence creates evidence of a kind from the parameters in the coordinator's challenge, bound to this exchange.
	Evidence(kind string, parameters []byte, binding [32]byte) ([]byte, error)
}

// Request is what a node requests a certificate with.
type Request struct {
	Prover Prover // nil: there is only the token
	Device device.Key
	Node   key.NodePrivate // for a renewal, the one to come next
	Token  key.TokenSecret // for the first certificate only
	Root   [32]byte        // fingerprint named by the join code; for the first certificate only

	Hostname, Program string
	Facts             Facts

	// For a renewal: the trusted roots, the ticket that came with the certificate, and the peers with which the node has
	// sessions.
	Roots   [][]byte
	Ticket  []byte
	Talking []proto.NodeID
	// Posture returns what is known of the machine's health when the proof is made, which covers it; nil, or returning nil,
	// means that nothing is.
	Posture func() *redoubtv1.Posture
}

// Facts are what a node says about itself for policies, besides its name and program.
type Facts struct {
	OSVersion string
	Routes    []netip.Prefix // networks that it offers to route to, masked
}

func (f Facts) message() *redoubtv1.Facts {
	return &redoubtv1.Facts{OsVersion: f.OSVersion, Routes: wire.FromRoutes(f.Routes)}
}

// Hello returns the part that all first messages share.
func Hello(program, hostname string, facts Facts) *redoubtv1.Hello {
	return &redoubtv1.Hello{
		ProtocolMin: proto.ProtocolMin, ProtocolMax: proto.ProtocolMax, Features: proto.Features(),
		Program: program, Hostname: hostname, Os: runtime.GOOS, Arch: runtime.GOARCH,
		Facts: facts.message(),
	}
}

// Exchange is one attempt to obtain a certificate.
type Exchange struct {
	r      Request
	domain string
	first  []byte // the first message, as sent
	state  int
}

const (
	awaitChallenge = iota
	awaitResult
	over
)

// Enrol starts a request for the first certificate.
func Enrol(r Request) (*Exchange, error) {
	hello := Hello(r.Program, r.Hostname, r.Facts)
	enrol := &redoubtv1.Enrol{
		Stays: true, DevicePublic: r.Device.Device().Bytes(), NodePublic: r.Node.Public().Bytes(), TokenPublic: r.Token.Public().Bytes(),
	}
	if r.Prover != nil {
		var err error
		if enrol.Evidence, enrol.Openings, err = r.Prover.Offers(); err != nil {
			return nil, err
		}
	}
	enrol.Evidence = append(enrol.Evidence, EvidenceToken)
	hello.Purpose = &redoubtv1.Hello_Enrol{Enrol: enrol}
	return begin(r, wire.DomainEnrol, &redoubtv1.Up{Message: &redoubtv1.Up_Hello{Hello: hello}})
}

// Renew starts a request for the next certificate.
func Renew(r Request) (*Exchange, error) {
	renew := &redoubtv1.Renew{
		NodePublic: r.Node.Public().Bytes(), Facts: r.Facts.message(), Ticket: r.Ticket,
		Talking: wire.FromNodes(r.Talking[:min(len(r.Talking), wire.MaxTalking)]),
	}
	return begin(r, wire.DomainRenew, &redoubtv1.Up{Message: &redoubtv1.Up_Renew{Renew: renew}})
}

func begin(r Request, domain string, up *redoubtv1.Up) (*Exchange, error) {
	first, err := pb.Marshal(up)
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	return &Exchange{r: r, domain: domain, first: first}, nil
}

// First returns the encoded first message to send: the proof covers exactly these bytes.
func (x *Exchange) First() []byte { return x.first }

// ErrOrder reports a message that was not expected at this point.
var ErrOrder = errors.New("the coordinator's answer was out of order")

// Answer returns the proof for a challenge. The exporter is that of the connection on which the challenge came.
func (x *Exchange) Answer(c *redoubtv1.Challenge, exporter []byte) (*redoubtv1.Up, error) {
	if x.state != awaitChallenge {
		return nil, ErrOrder
	}
	x.state = over
	renewal := x.domain == wire.DomainRenew
	nothing := c.GetAttestor() == EvidenceToken || renewal && c.GetAttestor() == ""
	switch {
	case !nothing && (x.r.Prover == nil || c.GetAttestor() == ""):
		return nil, fmt.Errorf("the coordinator asks for evidence of kind %.32q, which this agent cannot give", c.GetAttestor())
	case len(c.GetNonce()) != 32:
		return nil, fmt.Errorf("challenge with a nonce of %d bytes", len(c.GetNonce()))
	}
	ephemeral, err := key.ParseNodePublic(c.GetEphemeralPublic())
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	shared, err := x.r.Node.Shared(ephemeral)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	posture, err := x.posture()
	if err != nil {
		return nil, err
	}
	binding := wire.Binding(x.domain, c.GetNonce(), exporter, x.r.Node.Public(), x.r.Device.Device(),
		sha256.Sum256(posture), sha256.Sum256(x.first))
	signature, err := x.r.Device.Sign(rand.Reader, binding[:], crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign with the device key: %w", err)
	}
	mac := wire.NodeKeyMAC(shared, binding)
	proof := &redoubtv1.Proof{Posture: posture, NodeKeyMac: mac[:], DeviceSignature: signature}
	if !renewal {
		proof.TokenSignature = x.r.Token.Sign(binding[:])
	}
	if !nothing {
		if proof.Evidence, err = x.r.Prover.Evidence(c.GetAttestor(), c.GetParameters(), binding); err != nil {
			return nil, fmt.Errorf("evidence of what this machine is: %w", err)
		}
	}
	x.state = awaitResult
	return &redoubtv1.Up{Message: &redoubtv1.Up_Proof{Proof: proof}}, nil
}

// posture returns the encoded health facts for the proof.
func (x *Exchange) posture() ([]byte, error) {
	if x.r.Posture == nil {
		return nil, nil
	}
	p := x.r.Posture()
	if p == nil {
		return nil, nil
	}
	b, err := pb.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("what is known of this machine's health: %w", err)
	}
	return b, nil
}

// Finish checks a result, and returns the identity in it. It keeps those of the roots in the result that are trusted (for
// the first certificate the pinned one, for a renewal those of the request) or that a trusted root vouches for. Whether the
// certificate may follow the present one is for the machine to decide.
func (x *Exchange) Finish(r *redoubtv1.Result) (*identity.Self, error) {
	if x.state != awaitResult {
		return nil, ErrOrder
	}
	x.state = over
	mesh, err := wire.ToMesh(r.GetMesh())
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	record := identity.Record{
		Chain: append([][]byte{r.GetCertificate()}, r.GetChain()...), Roots: r.GetRoots(), Mesh: mesh, Ticket: r.GetTicket(),
	}
	trusted := x.r.Roots
	if x.domain == wire.DomainEnrol {
		root, err := cert.PinnedRoot(record.Roots, x.r.Root)
		if err != nil {
			return nil, err
		}
		trusted = [][]byte{root.Raw}
	}
	if record, err = record.Under(trusted); err != nil {
		return nil, err
	}
	return identity.Check(record, x.r.Device.Device(), x.r.Node.Public())
}
