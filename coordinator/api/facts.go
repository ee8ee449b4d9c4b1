package api

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// SetFact sets a fact of a node, for a limited time or forever.
func (a *Admin) SetFact(ctx context.Context, r *redoubtv1.SetFactRequest) (*redoubtv1.SetFactResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	// Clamp to one second above the maximum, which is refused like any longer time.
	ttl := time.Duration(min(r.GetTtlSeconds(), uint64(directory.MaxFactTTL/time.Second)+1)) * time.Second
	if n, err = a.Directory.SetFact(ctx, n.ID, r.GetName(), r.GetValue(), ttl, Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("fact set", "node", n.ID, "name", n.Name, "fact", r.GetName(), "value", r.GetValue(), "ttl", ttl, "by", Caller(ctx))
	return &redoubtv1.SetFactResponse{Node: a.node(a.Directory.Snapshot(), n)}, nil
}

// UnsetFact removes a fact.
func (a *Admin) UnsetFact(ctx context.Context, r *redoubtv1.UnsetFactRequest) (*redoubtv1.UnsetFactResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	if n, err = a.Directory.UnsetFact(ctx, n.ID, r.GetName(), Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("fact unset", "node", n.ID, "name", n.Name, "fact", r.GetName(), "by", Caller(ctx))
	return &redoubtv1.UnsetFactResponse{Node: a.node(a.Directory.Snapshot(), n)}, nil
}

// ApproveRoutes sets the routes of a node that are approved by hand.
func (a *Admin) ApproveRoutes(ctx context.Context, r *redoubtv1.ApproveRoutesRequest) (*redoubtv1.ApproveRoutesResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	var prefixes []netip.Prefix
	for _, s := range r.GetPrefixes() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("route %.64q: want a network such as 10.33.0.0/16", s))
		}
		prefixes = append(prefixes, p)
	}
	if n, err = a.Directory.ApproveRoutes(ctx, n.ID, prefixes, Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("routes approved", "node", n.ID, "name", n.Name, "routes", prefixes, "by", Caller(ctx))
	return &redoubtv1.ApproveRoutesResponse{Node: a.node(a.Directory.Snapshot(), n)}, nil
}

// SetRoles sets the roles of a user.
func (a *Admin) SetRoles(ctx context.Context, r *redoubtv1.SetRolesRequest) (*redoubtv1.SetRolesResponse, error) {
	user, roles := r.GetUser().GetUser(), r.GetUser().GetRoles()
	if err := a.Directory.SetRoles(ctx, user, roles, Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("roles set", "user", user, "roles", roles, "by", Caller(ctx))
	return &redoubtv1.SetRolesResponse{}, nil
}

// ListRoles lists the users who have roles.
func (a *Admin) ListRoles(context.Context, *redoubtv1.ListRolesRequest) (*redoubtv1.ListRolesResponse, error) {
	out := &redoubtv1.ListRolesResponse{}
	for u := range a.Directory.Snapshot().Users() {
		out.Users = append(out.Users, &redoubtv1.UserRoles{User: u.User, Roles: u.Roles})
	}
	return out, nil
}
