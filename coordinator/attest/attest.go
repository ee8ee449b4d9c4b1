// Package attest judges what a machine brings to show what it is. Each kind of evidence has one attestor, in a file of its
// own; enrolment chooses the strongest that the machine offers and the coordinator has.
//
//	Hello: kinds offered, openings ──► Registry.Choose ──► Begin ──► parameters for the machine
//	Proof: evidence ─────────────────────────────────────► Finish ──► Attributes, or no
//
//	Renew ──► Registry.Of(kind of the node) ──► Again ──► parameters
//	Proof: evidence ──────────────────────────► Finish ──► Attributes, UnableError, or no
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

	"github.com/redoubt-mesh/redoubt/proto"
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
	// Selectors are what is known of the machine, such as "tpm:vendor=IFX".
	Selectors []string
	// Checks say to people what was looked at, and what came of it.
	Checks []string
	// CanReattest says that the machine can prove the same again at each renewal, which Again needs Known for.
	CanReattest bool
	Known       []byte
}

// Attestor judges one kind of evidence. All methods are pure.
type Attestor interface {
	// Kind is the name of the evidence, as machines offer it.
	Kind() string
	// Begin answers what the machine needs to make its evidence, and what Finish will need. The opening is what the machine
	// said with its offer.
	Begin(now time.Time, random io.Reader, c Claim, opening []byte) (parameters []byte, s State, err error)
	// Again is Begin for a machine that has proved itself before, with the Known of that time.
	Again(now time.Time, c Claim, known []byte) (parameters []byte, s State, err error)
	// Finish judges the evidence, which must be bound to this one exchange by binding.
	Finish(now time.Time, s State, evidence []byte, binding [32]byte) (Attributes, error)
}

// UnableError says that a machine cannot prove itself now, which it says itself. It is no sign of an attack, and no proof.
type UnableError struct{ Reason string }

func (e *UnableError) Error() string { return "the machine cannot prove itself now: " + e.Reason }

// ErrNone says that a machine offers no evidence that the coordinator takes.
var ErrNone = errors.New("none of the kinds of evidence that this machine offers is accepted here")

var errState = errors.New("not a state of this attestor")

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

// Of answers the attestor of a kind, or nil where there is none (any more).
func (r *Registry) Of(kind string) Attestor {
	for _, a := range r.attestors {
		if a.Kind() == kind {
			return a
		}
	}
	return nil
}

// Limits of what is kept of a machine.
const (
	maxSelectors = 16
	maxSelector  = 200
)

// selectors adds name=value where the value can be shown and stored.
func selectors(list []string, name, value string) []string {
	if s := name + "=" + value; len(list) < maxSelectors && value != "" && proto.ValidText(s, maxSelector) {
		return append(list, s)
	}
	return list
}
