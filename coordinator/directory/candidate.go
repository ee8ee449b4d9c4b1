package directory

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Limits of candidates. Together with the limits of tokens they bound how much strangers with join codes can cause to be
// stored.
const (
	MaxCandidates = 1_000
	// MaxOfToken is the maximum number of candidates per token, including denied ones.
	MaxOfToken = 64
	// CandidateTime is how long a machine may wait for approval, and how long an approval is kept for it.
	CandidateTime = 7 * 24 * time.Hour
)

// Verdict is what an administrator decided about a machine.
type Verdict struct {
	At     time.Time
	By     string
	Denied bool // otherwise approved
	Reason string
}

// Candidate is a machine with a valid join token that an administrator must approve before it becomes a node. It reserves a
// single-use token. Values are shared and never change.
type Candidate struct {
	Code     string // such as BCDF-GHJK, for people to refer to it
	Token    string // id
	Device   key.DevicePublic
	Hostname string     // as the machine names itself
	Level    cert.Level // as last proved
	Hardware string     // name of the hardware device, if known
	From     string     // address of the first request
	Asked    time.Time
	Ends     time.Time // when it is forgotten
	Verdict  *Verdict  // nil: waiting
}

// Name returns the label that the node's name would be made from.
func (c *Candidate) Name() string { return label(c.Hostname) }

// denied reports whether an administrator denied the machine.
func (v *Verdict) denied() bool { return v != nil && v.Denied }

// approved reports whether an administrator approved the machine.
func (v *Verdict) approved() bool { return v != nil && !v.Denied }

type verdictRecord struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Denied bool      `json:"denied,omitempty"`
	Reason string    `json:"reason,omitempty"`
}

func verdictOf(v *Verdict) *verdictRecord {
	if v == nil {
		return nil
	}
	r := verdictRecord(*v)
	return &r
}

func (r *verdictRecord) value() *Verdict {
	if r == nil {
		return nil
	}
	v := Verdict(*r)
	return &v
}

type candidateRecord struct {
	version
	Code     string         `json:"code"`
	Token    string         `json:"token"`
	Device   []byte         `json:"device"`
	Hostname string         `json:"hostname"`
	Level    string         `json:"level"`
	Hardware string         `json:"hardware,omitempty"`
	From     string         `json:"from,omitempty"`
	Asked    time.Time      `json:"asked"`
	Ends     time.Time      `json:"ends"`
	Verdict  *verdictRecord `json:"verdict,omitempty"`
}

const candidatePrefix = "candidate/"

func candidatePath(k key.DevicePublic) string { return candidatePrefix + hex.EncodeToString(k.Bytes()) }

func candidateOp(c *Candidate) (store.Op, error) {
	return putRecord(candidatePath(c.Device), candidateRecord{
		version: v1, Code: c.Code, Token: c.Token, Device: c.Device.Bytes(), Hostname: c.Hostname, Level: c.Level.String(),
		Hardware: c.Hardware, From: c.From, Asked: c.Asked, Ends: c.Ends, Verdict: verdictOf(c.Verdict),
	})
}

func parseCandidate(e store.Entry) (*Candidate, error) {
	r, err := parse[candidateRecord](e)
	if err != nil {
		return nil, err
	}
	c := &Candidate{
		Code: r.Code, Token: r.Token, Hostname: r.Hostname, Hardware: r.Hardware, From: r.From, Asked: r.Asked, Ends: r.Ends,
		Verdict: r.Verdict.value(),
	}
	if c.Device, err = key.ParseDevicePublic(r.Device); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if c.Level, err = cert.ParseLevel(r.Level); err != nil {
		return nil, fmt.Errorf("record %s: %w", e.Key, err)
	}
	if candidatePath(c.Device) != e.Key || CandidateCode(c.Code) != c.Code {
		return nil, fmt.Errorf("record %s: holds candidate %.20q", e.Key, c.Code)
	}
	return c, nil
}

func addCandidate(s *state, e store.Entry) error {
	c, err := parseCandidate(e)
	if err != nil {
		return err
	}
	if _, twice := s.candidateCodes.Get(c.Code); twice {
		return fmt.Errorf("record %s: the code %s is another's", e.Key, c.Code)
	}
	s.putCandidate(c)
	return nil
}

func (s *state) putCandidate(c *Candidate) {
	id := deviceKey(c.Device)
	put(&s.candidates, id, c)
	put(&s.candidateCodes, c.Code, c)
	put(&s.candidateTokens, memberPrefix(c.Token)+id, c)
	put(&s.candidateEnds, timeKey(c.Ends, id), c)
}

func (s *state) dropCandidate(c *Candidate) {
	id := deviceKey(c.Device)
	drop(&s.candidates, id)
	drop(&s.candidateCodes, c.Code)
	drop(&s.candidateTokens, memberPrefix(c.Token)+id)
	drop(&s.candidateEnds, timeKey(c.Ends, id))
}

// ofToken yields the candidates of a token.
func (s *state) ofToken(token string) iter.Seq[*Candidate] {
	return func(yield func(*Candidate) bool) {
		prefix := memberPrefix(token)
		for k, c := range s.candidateTokens.from(prefix) {
			if !strings.HasPrefix(k, prefix) || !yield(c) {
				return
			}
		}
	}
}

// awaited reports whether any candidate depends on a token, even if only for its denial to be reversed.
func (s *state) awaited(token string) bool {
	for range s.ofToken(token) {
		return true
	}
	return false
}

// setCandidate writes a candidate, replacing its previous version.
func (t *tx) setCandidate(c *Candidate) error {
	op, err := candidateOp(c)
	if err != nil {
		return err
	}
	if old, ok := t.candidates.Get(deviceKey(c.Device)); ok {
		t.dropCandidate(old)
	}
	t.writes = append(t.writes, op)
	t.putCandidate(c)
	return nil
}

// forgetCandidate removes a candidate and wakes its watchers.
func (t *tx) forgetCandidate(c *Candidate) {
	t.writes = append(t.writes, store.Delete(candidatePath(c.Device)))
	t.dropCandidate(c)
	t.judged = append(t.judged, c.Device)
}

// expireCandidates forgets candidates whose time has run out.
func (t *tx) expireCandidates() {
	for c := range over(t.candidateEnds, t.now) {
		if t.full() {
			return
		}
		if c.Verdict == nil {
			t.record("coordinator", audit.NodeExpire, c.Code, c.Name(), "nobody approved it since "+c.Asked.Format(time.RFC3339))
		}
		t.forgetCandidate(c)
	}
}

// codeLetters has no vowels, so that codes are not words, and no easily confused characters.
const codeLetters = "BCDFGHJKLMNPQRSTVWXZ"

const codeLength = 8

// newCode draws a code that no candidate has.
func (d *Directory) newCode(t *tx) (string, error) {
	for {
		var b []byte
		for len(b) < codeLength {
			var one [1]byte
			if _, err := io.ReadFull(d.config.Rand, one[:]); err != nil {
				return "", fmt.Errorf("draw a code: %w", err)
			}
			if n := int(one[0]); n < 256-256%len(codeLetters) { // keeps the distribution uniform
				b = append(b, codeLetters[n%len(codeLetters)])
			}
		}
		code := string(b[:codeLength/2]) + "-" + string(b[codeLength/2:])
		if _, taken := t.candidateCodes.Get(code); !taken {
			return code, nil
		}
	}
}

// CandidateCode returns the canonical form of a code typed by a person, or "" if text is no code.
func CandidateCode(text string) string {
	letters := strings.ToUpper(strings.ReplaceAll(text, "-", ""))
	if len(letters) != codeLength || strings.Trim(letters, codeLetters) != "" {
		return ""
	}
	return letters[:codeLength/2] + "-" + letters[codeLength/2:]
}

// Candidates yields all candidates, including those already judged.
func (s *Snapshot) Candidates() iter.Seq[*Candidate] { return values(s.state.candidates) }

// ErrCandidateUnknown means that no machine is waiting under a name or code.
var ErrCandidateUnknown = errors.New("no such machine waits for an approval")

// FindCandidate returns the candidate with a code or, if only one has it, with the name that the machine reports. Denied
// candidates are found only by their code.
func (s *Snapshot) FindCandidate(what string) (*Candidate, error) {
	if c, ok := s.state.candidateCodes.Get(CandidateCode(what)); ok {
		return c, nil
	}
	var found []*Candidate
	for c := range s.Candidates() {
		if c.Name() == what && !c.Verdict.denied() {
			found = append(found, c)
		}
	}
	switch len(found) {
	case 0:
		return nil, ErrCandidateUnknown
	case 1:
		return found[0], nil
	}
	codes := make([]string, 0, len(found))
	for _, c := range found {
		codes = append(codes, c.Code)
	}
	return nil, fmt.Errorf("%d machines that wait are called %.64q; name the one that you mean by its code (%s): %w",
		len(found), what, strings.Join(codes, ", "), ErrInvalid)
}

// JudgeCandidate approves or denies a waiting machine. It may be judged again until it has joined.
func (d *Directory) JudgeCandidate(ctx context.Context, code string, v Verdict) (*Candidate, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	var c *Candidate
	err := d.do(ctx, func(t *tx) error {
		old, ok := t.candidateCodes.Get(code)
		if !ok {
			return fmt.Errorf("%.20q: %w (`node list` shows those that do)", code, ErrCandidateUnknown)
		}
		token, ok := t.tokens.Get(old.Token)
		if !ok { // an older program forgot it
			return fmt.Errorf("token %s, which %s waits with; make it a new join code: %w", old.Token, old.Name(), ErrTokenUnknown)
		}
		next := *old
		verdict := v
		verdict.At = t.now
		next.Verdict, next.Ends = &verdict, t.now.Add(CandidateTime)
		c = &next
		t.judged = append(t.judged, c.Device)
		if old.Verdict.denied() && !v.Denied {
			// Since the denial, another machine may have used the token.
			if token.SpentBy != 0 {
				return fmt.Errorf("token %s; make %s a new join code: %w", token.ID, c.Name(), ErrTokenSpent)
			}
			if err := t.reserved(token, c.Device); err != nil {
				return err
			}
		}
		t.recordVerdict(verdict, token.User, c.Code, c.Name(), "joins with token "+c.Token+" for "+token.who()+", attested by "+c.Level.String())
		return t.setCandidate(c)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// JudgeNode approves or denies a node's machine, for its next certificates.
func (d *Directory) JudgeNode(ctx context.Context, id proto.NodeID, v Verdict) (*Node, error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	var n *Node
	err := d.do(ctx, func(t *tx) error {
		old, err := t.trustedNode(id)
		if err != nil {
			return err
		}
		judged := *old
		verdict := v
		verdict.At = t.now
		judged.Verdict = &verdict
		n = &judged
		t.recordVerdict(verdict, n.User.Name, id.String(), n.Name, "attested by "+n.Level.String())
		return t.setNode(n)
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (v *Verdict) check() error {
	if v.Reason != "" && !proto.ValidText(v.Reason, maxReason) {
		return fmt.Errorf("reason of %d bytes: want one line of printable text of at most %d: %w", len(v.Reason), maxReason, ErrInvalid)
	}
	return nil
}

func (t *tx) recordVerdict(v Verdict, user, subject, name, about string) {
	action := audit.NodeApprove
	if v.Denied {
		action = audit.NodeDeny
	}
	t.recordOf(user, v.By, action, subject, name, strings.TrimSuffix(about+because(v.Reason), ": "))
}
