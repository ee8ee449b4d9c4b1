package api

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/policy"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// ApplyPolicy puts a policy in force, if nothing is wrong with it.
func (a *Admin) ApplyPolicy(ctx context.Context, r *redoubtv1.ApplyPolicyRequest) (*redoubtv1.ApplyPolicyResponse, error) {
	snap := a.Directory.Snapshot()
	staged, err := policy.Stage(r.GetSource(), time.Now(), snap.Mesh(), snap)
	out := &redoubtv1.ApplyPolicyResponse{Diagnostics: diagnostics(staged.Diagnostics)}
	if err != nil {
		return nil, refuse(err, out)
	}
	var before uint64
	if p := snap.Policy(); p != nil {
		before = p.Number
	}
	p, err := a.Directory.SetPolicy(ctx, r.GetSource(), r.GetIfNumber(), Caller(ctx))
	if err != nil {
		return nil, a.fail(err)
	}
	out.Number, out.Applied = p.Number, p.Number != before
	out.Version = wire.FromVersion(a.Directory.Snapshot().Version())
	a.Log.Info("policy applied", "number", p.Number, "by", Caller(ctx), "changed", out.GetApplied(), "version", a.Directory.Snapshot().Version())
	return out, nil
}

// refuse is an error that carries what is wrong with the policy.
func refuse(err error, found *redoubtv1.ApplyPolicyResponse) error {
	e := connect.NewError(connect.CodeInvalidArgument, err)
	if detail, err := connect.NewErrorDetail(found); err == nil {
		e.AddDetail(detail)
	}
	return e
}

// Diagnostics takes out of an error of ApplyPolicy what is wrong with the policy.
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

// GetPolicy answers the policy in force.
func (a *Admin) GetPolicy(context.Context, *redoubtv1.GetPolicyRequest) (*redoubtv1.GetPolicyResponse, error) {
	p := a.Directory.Snapshot().Policy()
	if p == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no policy was applied yet, so no packet passes; `policy apply FILE` applies one"))
	}
	return &redoubtv1.GetPolicyResponse{Source: p.Source, Number: p.Number, Applied: p.Applied.Unix(), AppliedBy: p.By}, nil
}

// PolicyStatus says who does not enforce yet what they ought to.
func (a *Admin) PolicyStatus(ctx context.Context, r *redoubtv1.PolicyStatusRequest) (*redoubtv1.PolicyStatusResponse, error) {
	// Without waiting for nodes, what was decided before this question is still waited for.
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
		out.Number = p.Number
	}
	for _, l := range st.Laggards {
		x := &redoubtv1.Laggard{
			Id: l.ID.String(), Name: l.Name, Connected: l.Connected, Wanted: l.Wanted.String(), AgeMs: uint64(max(l.Lag.Milliseconds(), 0)),
		}
		if !l.Applied.IsZero() {
			x.Applied = l.Applied.String()
		}
		out.Laggards = append(out.Laggards, x)
	}
	return out, nil
}
