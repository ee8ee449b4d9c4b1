package directory

import (
	"context"
	"fmt"
	"unicode/utf8"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
)

// MaxPolicy is how long a policy's source may be.
const MaxPolicy = 1 << 20

// SetPolicy puts a policy in force. With ifNumber it is refused unless that one is in force now; 0 does not ask. What is
// in force already stays as it is. Whether the source is a good policy is for the caller to find out before.
func (d *Directory) SetPolicy(ctx context.Context, source string, ifNumber uint64, by string) (*Policy, error) {
	if len(source) > MaxPolicy || !utf8.ValidString(source) {
		return nil, fmt.Errorf("policy of %d bytes: want UTF-8 of at most %d bytes: %w", len(source), MaxPolicy, ErrInvalid)
	}
	var p *Policy
	err := d.do(ctx, func(t *tx) error {
		number := uint64(0)
		if p = t.state.policy; p != nil {
			number = p.Number
		}
		if ifNumber != 0 && ifNumber != number {
			return fmt.Errorf("policy %d is in force, not %d; look at what changed and apply again: %w", number, ifNumber, ErrPolicyChanged)
		}
		if p != nil && p.Source == source {
			return nil
		}
		p = &Policy{Number: number + 1, Source: source, Applied: t.now, By: by}
		op, err := putRecord(policyPath(p.Number), policyRecord{version: v1, Number: p.Number, Source: source, Applied: p.Applied, By: by})
		if err != nil {
			return err
		}
		t.writes = append(t.writes, op)
		t.state.policy, t.policy = p, true
		t.record(by, audit.PolicyApply, fmt.Sprint(p.Number), "", "")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}
