// Package attest judges what a machine brings to show what it is. Each kind of evidence has one attestor, in a file of its
// own; enrolment chooses the strongest that the machine offers and the coordinator has.
//
//	Hello: kinds offered ──► Registry.Choose ──► Begin ──► parameters for the machine
//	Proof: evidence ────────────────────────────► Finish ──► Attributes, or no
//
// Attestors decide without I/O: what they need of time, randomness and keys is given to them. The keys of the machine and
// the join token prove themselves over the Binding, whatever the attestor; see package enroll.
package attest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Claim is what a machine says of itself before it has proved anything.
type Claim struct {
	Device key.DevicePublic
	Node   key.NodePublic
	Token  key.TokenPublic // zero where there is no token
}

// State is what an attestor remembers between Begin and Finish. Nobody else looks into it.
type State any

// Attributes is what evidence proved.
type Attributes struct {
	// DeviceID names the piece of hardware, for as long as it exists, or the device key where there is no better name.
	DeviceID string
	Level    cert.Level
	// Selectors are facts that rules may ask for, such as "tpm:maker=IFX".
	Selectors []string
	// CanReattest says that the machine can prove the same again at each renewal.
	CanReattest bool
}

// Attestor judges one kind of evidence. Both methods are pure.
type Attestor interface {
	// Kind is the name of the evidence, as machines offer it.
	Kind() string
	// Begin answers what the machine needs to make its evidence, and what Finish will need.
	Begin(now time.Time, random io.Reader, c Claim) (parameters []byte, s State, err error)
	// Finish judges the evidence, which must be bound to this one exchange by binding.
	Finish(now time.Time, s State, evidence []byte, binding [32]byte) (Attributes, error)
}

// ErrNone says that a machine offers no evidence that the coordinator takes.
var ErrNone = errors.New("none of the kinds of evidence that this machine offers is accepted here")

// Registry holds attestors, the strongest first.
type Registry struct {
	attestors []Attestor
}

// NewRegistry makes a registry. Two attestors for one kind are an error of the program.
func NewRegistry(strongestFirst ...Attestor) (*Registry, error) {
	seen := make(map[string]bool)
	for _, a := range strongestFirst {
		if a.Kind() == "" || seen[a.Kind()] {
			return nil, fmt.Errorf("attestor %q is registered twice, or has no name", a.Kind())
		}
		seen[a.Kind()] = true
	}
	return &Registry{attestors: slices.Clone(strongestFirst)}, nil
}

// Choose takes the strongest attestor that the machine offers evidence for.
func (r *Registry) Choose(offered []string) (Attestor, error) {
	for _, a := range r.attestors {
		if slices.Contains(offered, a.Kind()) {
			return a, nil
		}
	}
	return nil, ErrNone
}
