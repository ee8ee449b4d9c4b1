package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/coordinator/roots"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/redoubt/v1/redoubtv1connect"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const (
	defaultTTL = time.Hour
	// maxWait bounds how long a status request may wait.
	maxWait = 10 * time.Minute
	// chunk is how much of a backup goes into one message.
	chunk = 256 << 10
)

// Config holds what the administrators' service acts on.
type Config struct {
	Directory *directory.Directory
	Hub       *distribute.Hub
	Issuer    *issuer.Issuer
	Roots     *roots.Keeper
	Store     store.Store
	URLs      []string     // of this coordinator, for join codes
	Outage    proto.Outage // unless the policy says otherwise
	Clock     func() time.Time
	Rand      io.Reader
	Log       *slog.Logger
}

// Admin serves administrators. It implements redoubtv1connect.AdminServiceHandler.
type Admin struct {
	Config
}

var _ redoubtv1connect.AdminServiceHandler = (*Admin)(nil)

// New returns the service.
func New(c Config) *Admin { return &Admin{c} }

// CreateToken creates a join code. Its secret is in the response and nowhere else.
func (a *Admin) CreateToken(ctx context.Context, r *redoubtv1.CreateTokenRequest) (*redoubtv1.CreateTokenResponse, error) {
	if len(a.URLs) == 0 {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("the coordinator does not know its own URL; start it with --url https://HOST:PORT"))
	}
	ttl := defaultTTL
	if s := r.GetTtlSeconds(); s != 0 {
		ttl = time.Duration(min(s, uint64(directory.MaxTokenTime/time.Second)+1)) * time.Second
	}
	var replace proto.NodeID
	if r.GetReplace() != "" {
		n, err := find(a.Directory.Snapshot(), r.GetReplace())
		if err != nil {
			return nil, err
		}
		replace = n.ID
	}
	secret, err := key.NewToken(a.Rand)
	if err != nil {
		return nil, a.fail(err)
	}
	token, err := a.Directory.CreateToken(ctx, directory.TokenSpec{
		Public: secret.Public(), User: r.GetUser(), Tags: r.GetTags(), Reusable: r.GetReusable(), Ephemeral: r.GetEphemeral(), Relay: r.GetRelay(),
		TTL: ttl, By: Caller(ctx), Replace: replace,
	})
	if err != nil {
		return nil, a.fail(err)
	}
	code, err := join.Code{URLs: a.URLs, Root: a.Issuer.Fingerprint(), Secret: secret}.Encode()
	if err != nil {
		return nil, a.fail(err)
	}
	return &redoubtv1.CreateTokenResponse{Code: code, Token: a.token(token)}, nil
}

// ListTokens lists the stored tokens, newest first.
func (a *Admin) ListTokens(context.Context, *redoubtv1.ListTokensRequest) (*redoubtv1.ListTokensResponse, error) {
	all := slices.SortedFunc(a.Directory.Snapshot().Tokens(), func(x, y *directory.Token) int { return y.Created.Compare(x.Created) })
	out := &redoubtv1.ListTokensResponse{}
	for _, t := range all {
		out.Tokens = append(out.Tokens, a.token(t))
	}
	return out, nil
}

// RevokeToken revokes a token.
func (a *Admin) RevokeToken(ctx context.Context, r *redoubtv1.RevokeTokenRequest) (*redoubtv1.RevokeTokenResponse, error) {
	if _, err := a.Directory.RevokeToken(ctx, r.GetId(), Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	return &redoubtv1.RevokeTokenResponse{}, nil
}

// ListNodes lists all nodes by name, and the machines that wait for approval.
func (a *Admin) ListNodes(context.Context, *redoubtv1.ListNodesRequest) (*redoubtv1.ListNodesResponse, error) {
	snap := a.Directory.Snapshot()
	out := &redoubtv1.ListNodesResponse{}
	for n := range snap.Nodes() {
		out.Nodes = append(out.Nodes, a.node(snap, n))
	}
	slices.SortFunc(out.Nodes, func(x, y *redoubtv1.Node) int {
		if x.GetName() < y.GetName() {
			return -1
		}
		return 1
	})
	candidates := slices.SortedFunc(snap.Candidates(), func(x, y *directory.Candidate) int {
		return cmp.Or(x.Asked.Compare(y.Asked), strings.Compare(x.Code, y.Code))
	})
	for _, c := range candidates {
		out.Candidates = append(out.Candidates, candidate(snap, c))
	}
	return out, nil
}

// GetNode returns one node.
func (a *Admin) GetNode(_ context.Context, r *redoubtv1.GetNodeRequest) (*redoubtv1.GetNodeResponse, error) {
	snap := a.Directory.Snapshot()
	n, err := find(snap, r.GetNode())
	if err != nil {
		return nil, err
	}
	out := a.node(snap, n)
	bound := a.Hub.Source().Program.On(snap)
	attributes, app := bound.NodeAttrs(n.ID)
	out.Attributes, out.App = attributes, wire.FromCapabilities(app)
	out.Unmet = wire.FromUnmet(bound.For(n.ID).Withheld)
	return &redoubtv1.GetNodeResponse{Node: out}, nil
}

func find(snap *directory.Snapshot, what string) (*directory.Node, error) {
	n, ok := snap.Find(what)
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no node %.64q: want an id, a name or an address from `node list`", what))
	}
	return n, nil
}

// RevokeNode ends the trust in a node and returns once the connected nodes that know it enforce that, or after a while.
func (a *Admin) RevokeNode(ctx context.Context, r *redoubtv1.RevokeNodeRequest) (*redoubtv1.RevokeNodeResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	w := a.watch([]proto.NodeID{n.ID})
	if n, err = a.Directory.RevokeNode(ctx, n.ID, r.GetReason(), Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	snap := a.Directory.Snapshot()
	w.wait(ctx, snap.Version())
	a.Log.Info("node revoked", "node", n.ID, "name", n.Name, "by", Caller(ctx), "holders", len(w.holders), "enforced", w.enforced, "took", w.took)
	return &redoubtv1.RevokeNodeResponse{
		Node: a.node(snap, n), Holders: uint32(len(w.holders)), Enforced: uint32(w.enforced), EnforcedUs: uint64(w.took.Microseconds()),
		Bound: a.bound(snap, n.ID), Laggards: laggards(w.behind),
	}, nil
}

// DeleteNode removes a node; its machine may join again with new keys.
func (a *Admin) DeleteNode(ctx context.Context, r *redoubtv1.DeleteNodeRequest) (*redoubtv1.DeleteNodeResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	if err := a.Directory.DeleteNode(ctx, n.ID, Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("node deleted", "node", n.ID, "name", n.Name, "by", Caller(ctx))
	return &redoubtv1.DeleteNodeResponse{}, nil
}

// ResetNode lets a machine with weaker evidence take the node's place.
func (a *Admin) ResetNode(ctx context.Context, r *redoubtv1.ResetNodeRequest) (*redoubtv1.ResetNodeResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	if n, err = a.Directory.ResetNode(ctx, n.ID, Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("node reset", "node", n.ID, "name", n.Name, "by", Caller(ctx))
	return &redoubtv1.ResetNodeResponse{Node: a.node(a.Directory.Snapshot(), n)}, nil
}

// ReleaseNode ends the quarantine of a node.
func (a *Admin) ReleaseNode(ctx context.Context, r *redoubtv1.ReleaseNodeRequest) (*redoubtv1.ReleaseNodeResponse, error) {
	n, err := find(a.Directory.Snapshot(), r.GetNode())
	if err != nil {
		return nil, err
	}
	if n, err = a.Directory.ReleaseNode(ctx, n.ID, Caller(ctx)); err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("node released from quarantine", "node", n.ID, "name", n.Name, "by", Caller(ctx))
	return &redoubtv1.ReleaseNodeResponse{Node: a.node(a.Directory.Snapshot(), n)}, nil
}

// Backup streams a consistent copy of the store.
func (a *Admin) Backup(ctx context.Context, _ *redoubtv1.BackupRequest, out *connect.ServerStream[redoubtv1.BackupResponse]) error {
	if err := a.Store.Backup(ctx, &sender{out}); err != nil {
		return a.fail(err)
	}
	a.Log.Info("backup taken", "by", Caller(ctx))
	return nil
}

// sender is an io.Writer that sends to a stream of messages.
type sender struct {
	out *connect.ServerStream[redoubtv1.BackupResponse]
}

func (s *sender) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, chunk) {
		if err := s.out.Send(&redoubtv1.BackupResponse{Data: part}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// fail maps an error to the one that the caller gets.
func (a *Admin) fail(err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, directory.ErrInvalid):
		// Drop the suffix: what is wrong is said before it.
		return connect.NewError(connect.CodeInvalidArgument, errors.New(strings.TrimSuffix(err.Error(), ": "+directory.ErrInvalid.Error())))
	case errors.Is(err, directory.ErrUnknown), errors.Is(err, directory.ErrTokenUnknown), errors.Is(err, directory.ErrPolicyUnknown),
		errors.Is(err, directory.ErrLockUnknown), errors.Is(err, directory.ErrCandidateUnknown):
		code = connect.CodeNotFound
	case errors.Is(err, directory.ErrPolicyChanged), errors.Is(err, directory.ErrLocked), errors.Is(err, directory.ErrTokenSpent),
		errors.Is(err, directory.ErrReserved):
		code = connect.CodeFailedPrecondition
	case errors.Is(err, directory.ErrFenced), errors.Is(err, directory.ErrClosed), errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrFailed):
		code = connect.CodeUnavailable
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	}
	return connect.NewError(code, err)
}
