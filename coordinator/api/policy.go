package api

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/coordinator/policy"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// ApplyPolicy puts a policy in force if it is valid and no other was applied since the one it was compared with. The response
// lists what it changes, also on a dry run.
func (a *Admin) ApplyPolicy(ctx context.Context, r *redoubtv1.ApplyPolicyRequest) (*redoubtv1.ApplyPolicyResponse, error) {
	snap := a.Directory.Snapshot()
	base := number(snap.Policy())
	if r.Expect != nil {
		base = r.GetExpect() // checked by the directory
	}
	source, err := a.source(ctx, r)
	if err != nil {
		return nil, err
	}
	staged, err := policy.Stage(source, a.Clock(), snap.Mesh(), snap)
	out := &redoubtv1.ApplyPolicyResponse{Diagnostics: diagnostics(staged.Diagnostics)}
	if err != nil {
		a.Log.Warn("policy refused", "by", Caller(ctx), "in_force", number(snap.Policy()))
		return nil, refuse(err, out)
	}
	if r.GetDryRun() {
		out.Impact = impact(snap, source, staged.Program)
		if err := directory.ExpectPolicy(snap.Policy(), r.Expect); err != nil {
			return nil, a.fail(err)
		}
		out.Number, out.Version = out.GetImpact().GetBase(), wire.FromVersion(snap.Version())
		return out, nil
	}
	p, err := a.Directory.ChangePolicy(ctx, directory.PolicyChange{
		Source: source, Comment: r.GetComment(), By: Caller(ctx), Expect: &base, Of: r.GetRollbackTo(),
	})
	if err != nil {
		return nil, a.fail(err)
	}
	// Computed only after the change: nodes need not wait for a report made for people.
	out.Impact = impact(snap, source, staged.Program)
	out.Number, out.Applied = p.Number, p.Number != base
	out.Version = wire.FromVersion(a.Directory.Snapshot().Version())
	a.Log.Info("policy applied", "number", p.Number, "by", Caller(ctx), "changed", out.GetApplied(), "comment", p.Comment,
		"touched", out.GetImpact().GetTouched(), "version", a.Directory.Snapshot().Version())
	return out, nil
}

// source returns the policy text that the request asks for.
func (a *Admin) source(ctx context.Context, r *redoubtv1.ApplyPolicyRequest) (string, error) {
	if r.GetRollbackTo() == 0 {
		return r.GetSource(), nil
	}
	if r.GetSource() != "" {
		return "", connect.NewError(connect.CodeInvalidArgument, errors.New("a text and a version to go back to: want one of the two"))
	}
	p, err := a.Directory.PolicyVersion(ctx, r.GetRollbackTo())
	if err != nil {
		return "", a.fail(err)
	}
	return p.Source, nil
}

func number(p *directory.Policy) uint64 {
	if p == nil {
		return 0
	}
	return p.Number
}

// refuse returns an error that carries the diagnostics.
func refuse(err error, found *redoubtv1.ApplyPolicyResponse) error {
	e := connect.NewError(connect.CodeInvalidArgument, err)
	if detail, err := connect.NewErrorDetail(found); err == nil {
		e.AddDetail(detail)
	}
	return e
}

// Diagnostics extracts the diagnostics from an error of ApplyPolicy.
func Diagnostics(err error) []*redoubtv1.Diagnostic {
	var e *connect.Error
	if !errors.As(err, &e) {
		return nil
	}
	for _, d := range e.Details() {
		if m, err := d.Value(); err == nil {
			if found, ok := m.(*redoubtv1.ApplyPolicyResponse); ok {
				return found.GetDiagnostics()
			}
		}
	}
	return nil
}

// GetPolicy returns a version of the policy, or the one in force if the request names none.
func (a *Admin) GetPolicy(ctx context.Context, r *redoubtv1.GetPolicyRequest) (*redoubtv1.GetPolicyResponse, error) {
	p := a.Directory.Snapshot().Policy()
	inForce := number(p)
	switch {
	case r.GetNumber() != 0 && r.GetNumber() != inForce:
		var err error
		if p, err = a.Directory.PolicyVersion(ctx, r.GetNumber()); err != nil {
			return nil, a.fail(err)
		}
	case p == nil:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no policy has been applied yet, so no packet passes; use `policy apply FILE`"))
	}
	return &redoubtv1.GetPolicyResponse{
		Source: p.Source, Number: p.Number, Applied: p.Applied.Unix(), AppliedBy: p.By, Comment: p.Comment, RollbackOf: p.Of,
		InForce: p.Number == inForce,
	}, nil
}

// defaultHistory is how many versions are listed if the request gives no limit.
const defaultHistory = 50

// PolicyHistory lists the versions that are or were in force, newest first.
func (a *Admin) PolicyHistory(ctx context.Context, r *redoubtv1.PolicyHistoryRequest) (*redoubtv1.PolicyHistoryResponse, error) {
	limit := int(min(cmp.Or(r.GetLimit(), defaultHistory), directory.MaxHistory))
	list, err := a.Directory.History(ctx, r.GetBefore(), limit)
	if err != nil {
		return nil, a.fail(err)
	}
	inForce := number(a.Directory.Snapshot().Policy())
	out := &redoubtv1.PolicyHistoryResponse{}
	for _, p := range list {
		out.Versions = append(out.Versions, &redoubtv1.PolicyVersion{
			Number: p.Number, Applied: p.Applied.Unix(), AppliedBy: p.By, Comment: p.Comment, RollbackOf: p.Of,
			Size: uint64(p.Size), InForce: p.Number == inForce,
		})
	}
	return out, nil
}

// PolicyStatus reports which nodes do not yet enforce what they should.
func (a *Admin) PolicyStatus(ctx context.Context, r *redoubtv1.PolicyStatusRequest) (*redoubtv1.PolicyStatusResponse, error) {
	// Even if the caller does not wait for nodes, wait until earlier changes have been processed.
	wait := min(time.Duration(min(r.GetWaitMs(), uint64(maxWait/time.Millisecond)))*time.Millisecond, maxWait)
	snap := a.Directory.Snapshot()
	st := a.Hub.Settled(ctx, snap.Version())
	if wait > 0 {
		limited, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		st = a.Hub.AwaitAll(limited, snap.Version())
	}
	out := &redoubtv1.PolicyStatusResponse{Version: st.Version.String(), Nodes: uint32(st.Nodes), Current: uint32(st.Nodes - len(st.Laggards))}
	if p := snap.Policy(); p != nil {
		out.Number, out.PolicyAgeMs = p.Number, uint64(max(a.Clock().Sub(p.Applied).Milliseconds(), 0))
	}
	out.Unable = a.unable()
	out.Laggards = laggards(st.Laggards)
	out.KeyWarnings = a.Issuer.Status().Warnings
	return out, nil
}

func laggards(list []distribute.Laggard) (out []*redoubtv1.Laggard) {
	for _, l := range list {
		x := &redoubtv1.Laggard{
			Id: l.ID.String(), Name: l.Name, Connected: l.Connected, Wanted: l.Wanted.String(), AgeMs: uint64(max(l.Lag.Milliseconds(), 0)),
		}
		if !l.Applied.IsZero() {
			x.Applied = l.Applied.String()
		}
		out = append(out, x)
	}
	return out
}

// unable returns the connected nodes that cannot enforce what the policy gives them, by name.
func (a *Admin) unable() []*redoubtv1.Unable {
	source := a.Hub.Source()
	var out []*redoubtv1.Unable
	for n := range source.Snapshot.Nodes() {
		live, _ := a.Directory.Live(n.ID)
		if !live.Connected {
			continue
		}
		if lacks := distribute.Missing(source, n.ID, live.Features); len(lacks) > 0 {
			out = append(out, &redoubtv1.Unable{Id: n.ID.String(), Name: n.Name, Program: live.Program, Lacks: lacks})
		}
	}
	slices.SortFunc(out, func(x, y *redoubtv1.Unable) int { return strings.Compare(x.GetName(), y.GetName()) })
	return out
}
