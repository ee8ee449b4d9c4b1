package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// States of a candidate.
const (
	CandidateWaiting  = "waiting"
	CandidateApproved = "approved"
	CandidateDenied   = "denied"
)

// ApproveNode lets a machine become a node, or a node renew its certificate, where the policy requires an administrator's
// approval.
func (a *Admin) ApproveNode(ctx context.Context, r *redoubtv1.ApproveNodeRequest) (*redoubtv1.ApproveNodeResponse, error) {
	c, n, err := a.judge(ctx, r.GetNode(), directory.Verdict{By: Caller(ctx), Reason: r.GetReason()})
	return &redoubtv1.ApproveNodeResponse{Candidate: c, Node: n}, err
}

// DenyNode refuses a machine, or a node's next certificates, permanently. A later approval overrides it.
func (a *Admin) DenyNode(ctx context.Context, r *redoubtv1.DenyNodeRequest) (*redoubtv1.DenyNodeResponse, error) {
	c, n, err := a.judge(ctx, r.GetNode(), directory.Verdict{By: Caller(ctx), Reason: r.GetReason(), Denied: true})
	return &redoubtv1.DenyNodeResponse{Candidate: c, Node: n}, err
}

func (a *Admin) judge(ctx context.Context, who string, v directory.Verdict) (*redoubtv1.Candidate, *redoubtv1.Node, error) {
	snap := a.Directory.Snapshot()
	c, err := snap.FindCandidate(who)
	n, isNode := snap.Find(who)
	switch {
	case err == nil && isNode && directory.CandidateCode(who) == "":
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf(
			"%.64q is both a node and a machine that wants to join: use %s for the machine, or %s for the node", who, c.Code, n.ID))
	case err == nil:
		if c, err = a.Directory.JudgeCandidate(ctx, c.Code, v); err != nil {
			return nil, nil, a.fail(err)
		}
		a.Log.Info("machine judged", "code", c.Code, "name", c.Name(), "approved", !v.Denied, "by", v.By, "token", c.Token)
		return candidate(a.Directory.Snapshot(), c), nil, nil
	case !errors.Is(err, directory.ErrCandidateUnknown):
		return nil, nil, a.fail(err)
	case !isNode:
		return nil, nil, connect.NewError(connect.CodeNotFound, fmt.Errorf(
			"no machine waits under the name or code %.64q, and there is no such node: see `node list`", who))
	}
	waited := a.Directory.Renewable(snap, n) != nil
	if n, err = a.Directory.JudgeNode(ctx, n.ID, v); err != nil {
		return nil, nil, a.fail(err)
	}
	a.Log.Info("node judged", "node", n.ID, "name", n.Name, "approved", !v.Denied, "by", v.By)
	snap = a.Directory.Snapshot()
	if waited && a.Directory.Renewable(snap, n) == nil {
		a.Hub.Drop(n.ID, refusal.LookAgain())
	}
	return nil, a.node(snap, n), nil
}

func candidate(snap *directory.Snapshot, c *directory.Candidate) *redoubtv1.Candidate {
	out := &redoubtv1.Candidate{
		Code: c.Code, Name: c.Name(), State: CandidateWaiting, Attestation: c.Level.String(), TokenId: c.Token, DevicePublic: c.Device.String(),
		Hardware: c.Hardware, From: c.From, Asked: seconds(c.Asked), Ends: seconds(c.Ends), Verdict: verdict(c.Verdict),
	}
	if t, ok := snap.TokenByID(c.Token); ok {
		out.User, out.Tags = t.User, t.Tags
	}
	switch v := c.Verdict; {
	case v != nil && v.Denied:
		out.State = CandidateDenied
	case v != nil:
		out.State = CandidateApproved
	}
	return out
}

func verdict(v *directory.Verdict) *redoubtv1.Verdict {
	if v == nil {
		return nil
	}
	return &redoubtv1.Verdict{At: seconds(v.At), By: v.By, Denied: v.Denied, Reason: v.Reason}
}

// withheld says why a node's certificate is not renewed.
func withheld(err error) string {
	var lacking *directory.AdmissionError
	switch {
	case errors.As(err, &lacking):
		return fmt.Sprintf("attested by %s, not %s (%s, line %d of the policy)", lacking.Has, lacking.Needs, lacking.By.Path, lacking.By.Line)
	case errors.Is(err, directory.ErrDenied):
		return CandidateDenied
	}
	return "not approved"
}
