package api

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/coordinator/roots"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// GetRoots lists the roots that nodes trust and the state of the keys.
func (a *Admin) GetRoots(context.Context, *redoubtv1.GetRootsRequest) (*redoubtv1.GetRootsResponse, error) {
	return a.rootList(), nil
}

func (a *Admin) rootList() *redoubtv1.GetRootsResponse {
	list, s, left := a.Roots.List()
	c := s.Intermediate
	out := &redoubtv1.GetRootsResponse{
		Intermediate: c.SerialNumber.Text(16), IntermediateExpires: c.NotAfter.Unix(),
		IntermediateDue: c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2).Unix(),
		Requested:       s.Requested, Warnings: s.Warnings,
	}
	out.Nodes, out.Tokens = names(left)
	for i, r := range list {
		out.Roots = append(out.Roots, &redoubtv1.Root{
			Fingerprint: r.Fingerprint, Since: seconds(r.Since), Expires: r.Certificate.NotAfter.Unix(),
			KeyHere: i == 0 && s.RootHere, Issues: r.Certificate.Equal(s.IntermediateRoot),
		})
	}
	return out
}

func names(d roots.Dependents) (nodes, tokens []string) {
	for _, n := range d.Nodes {
		nodes = append(nodes, n.Name)
	}
	for _, t := range d.Tokens {
		tokens = append(tokens, t.ID)
	}
	return nodes, tokens
}

// RotateRoot creates a new root.
func (a *Admin) RotateRoot(ctx context.Context, _ *redoubtv1.RotateRootRequest) (*redoubtv1.RotateRootResponse, error) {
	if err := a.Roots.Rotate(ctx, Caller(ctx)); err != nil {
		return nil, a.failRoots(err)
	}
	out := a.rootList()
	a.Log.Info("root rotated", "root", out.GetRoots()[0].GetFingerprint(), "by", Caller(ctx))
	return &redoubtv1.RotateRootResponse{Roots: out}, nil
}

// RetireRoot ends the trust in the root before the newest.
func (a *Admin) RetireRoot(ctx context.Context, r *redoubtv1.RetireRootRequest) (*redoubtv1.RetireRootResponse, error) {
	left, err := a.Roots.Retire(ctx, r.GetForce(), Caller(ctx))
	if err != nil {
		return nil, a.failRoots(err)
	}
	out := &redoubtv1.RetireRootResponse{}
	out.Nodes, out.Tokens = names(left)
	return out, nil
}

// ForgetRootKey removes the root's key from this machine.
func (a *Admin) ForgetRootKey(ctx context.Context, r *redoubtv1.ForgetRootKeyRequest) (*redoubtv1.ForgetRootKeyResponse, error) {
	if len(r.GetDigest()) != 32 {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a digest of %d bytes: want 32", len(r.GetDigest())))
	}
	if err := a.Roots.Forget(ctx, [32]byte(r.GetDigest()), Caller(ctx)); err != nil {
		return nil, a.failRoots(err)
	}
	a.Log.Info("the root's key was taken away", "by", Caller(ctx))
	return &redoubtv1.ForgetRootKeyResponse{}, nil
}

// RequestIntermediate creates a request for the next intermediate, for a root whose key is kept elsewhere.
func (a *Admin) RequestIntermediate(ctx context.Context, _ *redoubtv1.RequestIntermediateRequest) (*redoubtv1.RequestIntermediateResponse, error) {
	b, err := a.Roots.Request(ctx, Caller(ctx))
	if err != nil {
		return nil, a.failRoots(err)
	}
	return &redoubtv1.RequestIntermediateResponse{Request: b}, nil
}

// InstallIntermediate installs the intermediate issued for such a request.
func (a *Admin) InstallIntermediate(ctx context.Context, r *redoubtv1.InstallIntermediateRequest) (*redoubtv1.InstallIntermediateResponse, error) {
	rotated, err := a.Roots.Install(ctx, r.GetAnswer(), Caller(ctx))
	if err != nil {
		return nil, a.failRoots(err)
	}
	out := a.rootList()
	a.Log.Info("intermediate installed", "serial", out.GetIntermediate(), "rotated", rotated, "by", Caller(ctx))
	return &redoubtv1.InstallIntermediateResponse{Roots: out, Rotated: rotated}, nil
}

// failRoots maps an error to the one that the caller gets, which says what to do next.
func (a *Admin) failRoots(err error) error {
	var bound *roots.BoundError
	switch {
	case errors.Is(err, issuer.ErrRootAway):
		err = fmt.Errorf("%w: run `root request FILE`, have `root sign FILE` with --new-root for a rotation answer it where the key is, "+
			"and run `root install` with the answer", err)
	case errors.Is(err, issuer.ErrTwoRoots):
		err = fmt.Errorf("%w: `root list` shows what depends on it; it is retired automatically when nothing does, or by `root retire`", err)
	case errors.Is(err, issuer.ErrAnswer):
		return connect.NewError(connect.CodeInvalidArgument, err)
	case errors.As(err, &bound), errors.Is(err, issuer.ErrOneRoot):
	default:
		return a.fail(err)
	}
	return connect.NewError(connect.CodeFailedPrecondition, err)
}
