package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

const (
	// MaxPolicy is the maximum length of a policy's source.
	MaxPolicy = 1 << 20
	// MaxComment is the maximum length of the comment on a policy.
	MaxComment = 500
	// MaxHistory is the maximum number of versions that one History returns.
	MaxHistory = 1000
)

// PolicyChange describes a policy to put in force.
type PolicyChange struct {
	Source  string
	Comment string
	By      string
	// Expect is the version that must be in force, 0 for none; nil skips the check.
	Expect *uint64
	// Of is the version whose text this is, for a rollback.
	Of uint64
}

// ChangePolicy puts a policy in force as a new version. It does nothing if the text is already in force. The caller must have
// checked that the source is a valid policy.
func (d *Directory) ChangePolicy(ctx context.Context, c PolicyChange) (*Policy, error) {
	if len(c.Source) > MaxPolicy || !utf8.ValidString(c.Source) {
		return nil, fmt.Errorf("policy of %d bytes: want UTF-8 of at most %d bytes: %w", len(c.Source), MaxPolicy, ErrInvalid)
	}
	if c.Comment != "" && !proto.ValidText(c.Comment, MaxComment) {
		return nil, fmt.Errorf("comment of %d bytes: want one line of printable text of at most %d bytes: %w", len(c.Comment), MaxComment, ErrInvalid)
	}
	var p *Policy
	err := d.do(ctx, func(t *tx) error {
		p = t.state.policy
		if err := ExpectPolicy(p, c.Expect); err != nil {
			return err
		}
		number := numberOf(p)
		if p != nil && p.Source == c.Source {
			return nil
		}
		p = &Policy{Number: number + 1, Source: c.Source, Applied: t.now, By: c.By, Comment: c.Comment, Of: c.Of}
		op, err := putRecord(policyPath(p.Number), policyRecord{
			version: v1, Number: p.Number, Source: p.Source, Applied: p.Applied, By: p.By, Comment: p.Comment, Of: p.Of,
		})
		if err != nil {
			return err
		}
		t.writes = append(t.writes, op)
		t.state.policy, t.policy = p, true
		action, reason := audit.PolicyApply, c.Comment
		if c.Of != 0 {
			action, reason = audit.PolicyRollback, strings.TrimSpace(fmt.Sprintf("to version %d %s", c.Of, c.Comment))
		}
		t.record(c.By, action, fmt.Sprint(p.Number), "", reason)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

func numberOf(p *Policy) uint64 {
	if p == nil {
		return 0
	}
	return p.Number
}

// ExpectPolicy returns an error unless the policy in force has the expected number, 0 for none; a nil number accepts any.
func ExpectPolicy(p *Policy, number *uint64) error {
	if number == nil || *number == numberOf(p) {
		return nil
	}
	return fmt.Errorf("%s, not %d; look at what changed (`policy history`, `policy show`) and apply again: %w", inForce(numberOf(p)), *number, ErrPolicyChanged)
}

func inForce(number uint64) string {
	if number == 0 {
		return "no policy is in force"
	}
	return fmt.Sprintf("policy %d is in force", number)
}

// SetPolicy is ChangePolicy for a policy without a comment. If ifNumber is not 0, that version must be in force.
func (d *Directory) SetPolicy(ctx context.Context, source string, ifNumber uint64, by string) (*Policy, error) {
	c := PolicyChange{Source: source, By: by}
	if ifNumber != 0 {
		c.Expect = &ifNumber
	}
	return d.ChangePolicy(ctx, c)
}

// PolicyVersion reads a policy version, in force or not.
func (d *Directory) PolicyVersion(ctx context.Context, number uint64) (*Policy, error) {
	e, err := d.store.Get(ctx, policyPath(number))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("policy %d: %w; `policy history` lists them", number, ErrPolicyUnknown)
	}
	if err != nil {
		return nil, fmt.Errorf("policy %d: %w", number, err)
	}
	return parsePolicy(e)
}

// PolicyInfo is a policy version without its text.
type PolicyInfo struct {
	Policy     // without Source
	Size   int // of the text, in bytes
}

// History returns up to limit policy versions with numbers below before, newest first; before 0 starts with the one in force.
// Texts are read one at a time, so that at most one is in memory.
func (d *Directory) History(ctx context.Context, before uint64, limit int) ([]PolicyInfo, error) {
	if limit <= 0 || limit > MaxHistory {
		return nil, fmt.Errorf("history of %d versions: want 1 to %d: %w", limit, MaxHistory, ErrInvalid)
	}
	newest := numberOf(d.Snapshot().Policy())
	if before == 0 || before > newest {
		before = newest + 1
	}
	var out []PolicyInfo
	for n := before - 1; n > 0 && len(out) < limit; n-- {
		p, err := d.PolicyVersion(ctx, n)
		if err != nil {
			return nil, err
		}
		info := PolicyInfo{Policy: *p, Size: len(p.Source)}
		info.Source = ""
		out = append(out, info)
	}
	return out, nil
}
