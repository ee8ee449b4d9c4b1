// Package attest verifies the evidence of what a machine is. Each kind of evidence has one attestor, in its own file;
// enrolment chooses the strongest that the machine offers and the coordinator supports.
//
//	Hello: kinds offered, openings ──► Registry.Choose ──► Begin ──► parameters for the machine
//	Proof: evidence ─────────────────────────────────────► Finish ──► Attributes, or refusal
//
//	Renew ──► Registry.Of(kind of the node) ──► Again ──► parameters
//	Proof: evidence ──────────────────────────► Finish ──► Attributes, UnableError, or refusal
//
// Attestors do no I/O: time, randomness and keys are arguments. Whatever the attestor, the machine's keys and the join token
// prove themselves over the Binding; see package enroll.
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

// Claim is what a machine says about itself before it has proved anything.
type Claim struct {
	Device key.DevicePublic
	Node   key.NodePublic
	Token  key.TokenPublic // zero if there is no token
}

// State is what an attestor remembers between Begin and Finish. It is opaque to everyone else.
type State any

// Attributes is what the evidence proved.
type Attributes struct {
	// DeviceID names the piece of hardware, for as long as it exists, or the device key if there is no better name.
	DeviceID string
	Level    cert.Level
	// Selectors describe the machine, such as "tpm:vendor=IFX".
	Selectors []string
	// Checks tells people what was checked, and with what result.
	Checks []string
	// CanReattest means that the machine can prove the same at each renewal; Again needs Known for that.
	CanReattest bool
	Known       []byte
}

// Attestor verifies one kind of evidence. All methods are pure.
type Attestor interface {
	// Kind returns the name of the evidence, as machines offer it.
	Kind() string
	// Begin returns what the machine needs to make its evidence and what Finish needs. The opening came with the machine's
	// offer.
	Begin(now time.Time, random io.Reader, c Claim, opening []byte) (parameters []byte, s State, err error)
	// Again is Begin for a machine that has proved itself before, with the Known of that time.
	Again(now time.Time, c Claim, known []byte) (parameters []byte, s State, err error)
	// Finish verifies the evidence, which binding must tie to this exchange.
	Finish(now time.Time, s State, evidence []byte, binding [32]byte) (Attributes, error)
}

// UnableError means that the machine says it cannot prove itself at the moment. It is no sign of an attack, and no proof.
type UnableError struct{ Reason string }

func (e *UnableError) Error() string { return "the machine cannot prove itself now: " + e.Reason }

// ErrNone means that a machine offers no kind of evidence that the coordinator accepts.
var ErrNone = errors.New("none of the kinds of evidence that this machine offers is accepted here")

var errState = errors.New("not a state of this attestor")

// Registry holds attestors, strongest first.
type Registry struct {
	attestors []Attestor
}

// NewRegistry returns a registry. Two attestors for one kind are a programming error.
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

// Choose returns the strongest attestor that the machine offers evidence for.
func (r *Registry) Choose(offered []string) (Attestor, error) {
	for _, a := range r.attestors {
		if slices.Contains(offered, a.Kind()) {
			return a, nil
		}
	}
	return nil, ErrNone
}

// Of returns the attestor of a kind, or nil if there is none (any longer).
func (r *Registry) Of(kind string) Attestor {
	for _, a := range r.attestors {
		if a.Kind() == kind {
			return a
		}
	}
	return nil
}

// Limits on what is stored about a machine.
const (
	maxSelectors = 16
	maxSelector  = 200
)

// selectors appends name=value if the value can be shown and stored.
func selectors(list []string, name, value string) []string {
	if s := name + "=" + value; len(list) < maxSelectors && value != "" && proto.ValidText(s, maxSelector) {
		return append(list, s)
	}
	return list
}
