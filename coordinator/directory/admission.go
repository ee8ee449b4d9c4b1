package directory

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Admission. The policy's requirements for a machine are checked when it enrols and at each renewal:
//
//	insufficient attestation ─► AdmissionError: nothing changes, the token is not used
//	denied                   ─► DeniedError
//	not approved             ─► PendingError: the machine is a Candidate, or a node that keeps what it has
//	otherwise                ─► a certificate

// Demands returns what the policy of a snapshot requires of the machine of n, which may be a node that does not exist yet. It
// fails if the policy is not understood. The writer calls it: it must neither block nor call the directory.
type Demands func(s *Snapshot, n proto.Identity) (compile.Demand, error)

// Errors of admission. Each is wrapped by a type with details.
var (
	ErrAdmission = errors.New("the machine's attestation is below what the policy requires")
	ErrPending   = errors.New("the machine waits for an administrator's approval")
	ErrDenied    = errors.New("an administrator denied the machine")
	ErrCrowded   = errors.New("too many machines wait for an approval")
	ErrReserved  = errors.New("join token is kept for another machine")
)

// AdmissionError wraps ErrAdmission.
type AdmissionError struct {
	Who        string // whose machines the rule applies to, such as tag:prod
	Has, Needs string // kinds of attestation
	By         proto.Origin
}

func (e *AdmissionError) Error() string {
	return fmt.Sprintf("%s requires attestation by %s or better (%s, line %d of the policy), and this machine is attested by %s",
		e.Who, e.Needs, e.By.Path, e.By.Line, e.Has)
}

// Is reports whether target is ErrAdmission.
func (e *AdmissionError) Is(target error) bool { return target == ErrAdmission }

// PendingError wraps ErrPending.
type PendingError struct {
	Code string // of a candidate; empty for a node
	Name string // name under which administrators know the machine
	By   proto.Origin
}

func (e *PendingError) Error() string {
	return fmt.Sprintf("%s waits for an administrator's approval (%s, line %d of the policy)", e.Name, e.By.Path, e.By.Line)
}

// Is reports whether target is ErrPending.
func (e *PendingError) Is(target error) bool { return target == ErrPending }

// DeniedError wraps ErrDenied.
type DeniedError struct {
	Name string
	Verdict
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s was denied at %s by %s%s", e.Name, e.At.Format(time.RFC3339), e.By, because(e.Reason))
}

// Is reports whether target is ErrDenied.
func (e *DeniedError) Is(target error) bool { return target == ErrDenied }

func (d *Directory) demands(s *Snapshot, n proto.Identity) (compile.Demand, error) {
	if d.config.Demands == nil {
		return compile.Demand{}, nil
	}
	return d.config.Demands(s, n)
}

// snapshot returns the state of the transaction so far, for evaluating the policy.
func (t *tx) snapshot() *Snapshot { return &Snapshot{mesh: t.mesh, now: t.moment, state: t.state} }

// whose names the owner of a machine.
func whose(n proto.Identity) string {
	switch {
	case len(n.Tags) > 0:
		return strings.Join(n.Tags, ",")
	case !n.User.IsZero():
		return n.User.Name
	}
	return "any node"
}

// proves returns an AdmissionError if the machine's attestation is insufficient.
func proves(d compile.Demand, n proto.Identity, has string) error {
	if d.Proves(has) {
		return nil
	}
	return &AdmissionError{Who: whose(n), Has: has, Needs: d.Attestation, By: d.AttestationBy}
}

// admissible checks whether an enrolling machine may become a node. verdict is the administrator's decision, if one was
// required. With pending set, the transaction still succeeds: the candidate must be written.
func (t *tx) admissible(d *Directory, token *Token, r EnrollRequest) (verdict *Verdict, pending, err error) {
	would := proto.Identity{Tags: token.Tags}
	if token.User != "" {
		would.User = token.user()
	}
	c, known := t.candidates.Get(deviceKey(r.Device))
	if known && c.Token == token.ID && c.Verdict.denied() {
		return nil, nil, &DeniedError{Name: c.Name(), Verdict: *c.Verdict}
	}
	demand, err := d.demands(t.snapshot(), would)
	if err != nil {
		return nil, nil, err
	}
	if err := proves(demand, would, r.Level.String()); err != nil {
		return nil, nil, err
	}
	switch {
	case !demand.Approval:
		if known {
			t.forgetCandidate(c)
		}
		return nil, nil, nil
	case known && c.Token == token.ID && c.Verdict.approved() && c.shows(r):
		t.forgetCandidate(c)
		return c.Verdict, nil, nil
	}
	c, err = t.wait(d, c, token, r)
	if err != nil {
		return nil, nil, err
	}
	return nil, &PendingError{Code: c.Code, Name: c.Name(), By: demand.ApprovalBy}, nil
}

// shows reports whether a machine matches what an administrator sees of the candidate.
func (c *Candidate) shows(r EnrollRequest) bool {
	return c.Hostname == strings.ToValidUTF8(r.Hostname, "?") && c.Level == r.Level && c.Hardware == r.Attested.Device
}

// wait makes a machine wait for approval, keeping the candidate if it already waits with this token. An approval covers what
// the machine showed at the time: a machine that shows something else waits again.
func (t *tx) wait(d *Directory, c *Candidate, token *Token, r EnrollRequest) (*Candidate, error) {
	hostname := strings.ToValidUTF8(r.Hostname, "?")
	if c != nil && c.Token == token.ID {
		if c.shows(r) {
			return c, nil
		}
		now := *c
		now.Hostname, now.Level, now.Hardware, now.Verdict = hostname, r.Level, r.Attested.Device, nil
		return &now, t.setCandidate(&now)
	}
	if c != nil {
		t.forgetCandidate(c)
	}
	count := 0
	for range t.ofToken(token.ID) {
		count++
	}
	if count >= MaxOfToken || t.candidates.Len() >= MaxCandidates {
		return nil, fmt.Errorf("%d of token %s, %d in all; approve or deny some (`node list`): %w", count, token.ID, t.candidates.Len(), ErrCrowded)
	}
	code, err := d.newCode(t)
	if err != nil {
		return nil, err
	}
	c = &Candidate{
		Code: code, Token: token.ID, Device: r.Device, Hostname: hostname, Level: r.Level, Hardware: r.Attested.Device, From: t.from,
		Asked: t.now, Ends: t.now.Add(CandidateTime),
	}
	t.recordOf(token.User, "token "+token.ID, audit.NodePending, c.Code, c.Name(), "for "+token.who()+", attested by "+r.Level.String())
	return c, t.setCandidate(c)
}

// reserved refuses a single-use token with which another machine is already waiting.
func (t *tx) reserved(token *Token, device key.DevicePublic) error {
	if token.Reusable {
		return nil
	}
	for c := range t.ofToken(token.ID) {
		if c.Device != device && !c.Verdict.denied() {
			return fmt.Errorf("token %s, for %s, which waits for an approval under the code %s: %w", token.ID, c.Name(), c.Code, ErrReserved)
		}
	}
	return nil
}

// waits reports whether a machine is a candidate with this token whose time has not run out.
func (t *tx) waits(token *Token, r EnrollRequest) bool {
	c, ok := t.candidates.Get(deviceKey(r.Device))
	return ok && c.Token == token.ID && t.now.Before(c.Ends)
}

// Renewable returns why a node currently cannot get another certificate, or nil.
func (d *Directory) Renewable(s *Snapshot, n *Node) error {
	if n.Verdict.denied() {
		return &DeniedError{Name: n.Name, Verdict: *n.Verdict}
	}
	// A policy that is not understood demands nothing here: it permits nothing anyway, and admission was checked at enrolment.
	demand, _ := d.demands(s, n.Identity)
	if err := proves(demand, n.Identity, n.Level.String()); err != nil {
		return err
	}
	if demand.Approval && !n.Verdict.approved() {
		return &PendingError{Name: n.Name, By: demand.ApprovalBy}
	}
	return nil
}
