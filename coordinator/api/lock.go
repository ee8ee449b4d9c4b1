package api

import (
	"context"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/distribute"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// enforcement is how long the response to a revocation or lock waits for nodes to enforce it.
const enforcement = 5 * time.Second

// watching follows how the withdrawal of trust in some nodes reaches the others.
type watching struct {
	*Admin
	before   distribute.Source
	nodes    []proto.NodeID // that lose trust
	holders  []proto.NodeID // that must enforce it
	start    time.Time
	enforced int
	took     time.Duration
	behind   []distribute.Laggard // that do not enforce it yet
}

// watch must be called before the trust is withdrawn: afterwards no netmap mentions the nodes.
func (a *Admin) watch(nodes []proto.NodeID) *watching {
	return &watching{Admin: a, before: a.Hub.Source(), nodes: nodes, start: time.Now()}
}

// wait waits, up to enforcement, until the connected holders have acknowledged version v.
func (w *watching) wait(ctx context.Context, v proto.Version) {
	ctx, cancel := context.WithTimeout(ctx, enforcement)
	defer cancel()
	w.holders = distribute.Holders(w.before, w.nodes) // after the change is written and on its way
	connected := slices.DeleteFunc(slices.Clone(w.holders), func(id proto.NodeID) bool { return !w.Hub.Connected(id) })
	w.Hub.Await(ctx, connected, v)
	w.took = time.Since(w.start)
	w.behind = w.Hub.Behind(w.holders)
	w.enforced = len(w.holders) - len(w.behind)
}

// bound returns when nobody can trust any of nodes any longer, whether reached or not, in Unix seconds; 0 if there are none.
func (a *Admin) bound(snap *directory.Snapshot, nodes ...proto.NodeID) int64 {
	var last time.Time
	for _, id := range nodes {
		if n, ok := snap.Lookup(id); ok && n.Certificate.NotAfter.After(last) {
			last = n.Certificate.NotAfter
		}
	}
	if last.IsZero() {
		return 0
	}
	return last.Add(cert.Skew + a.Hub.Source().Program.Outage(a.Outage).Grace).Unix()
}

// CreateLock withdraws the trust in nodes and returns once the connected nodes that know them enforce that, or after a while.
func (a *Admin) CreateLock(ctx context.Context, r *redoubtv1.CreateLockRequest) (*redoubtv1.CreateLockResponse, error) {
	before := a.Directory.Snapshot()
	spec := directory.LockSpec{Kind: r.GetKind(), Subject: r.GetSubject(), Reason: r.GetReason(), By: Caller(ctx)}
	if s := r.GetTtlSeconds(); s != 0 {
		spec.TTL = time.Duration(min(s, uint64(directory.MaxLockTTL/time.Second)+1)) * time.Second
	}
	if spec.Kind == directory.LockNode {
		n, err := find(before, spec.Subject)
		if err != nil {
			return nil, err
		}
		spec.Subject = n.ID.String()
	}
	w := a.watch(slices.Collect(before.Under(&directory.Lock{Kind: spec.Kind, Subject: spec.Subject})))
	l, nodes, err := a.Directory.CreateLock(ctx, spec)
	if err != nil {
		return nil, a.fail(err)
	}
	snap := a.Directory.Snapshot()
	w.wait(ctx, snap.Version())
	a.Log.Info("lock created", "lock", l.ID, "kind", l.Kind, "subject", l.Subject, "nodes", len(nodes), "by", Caller(ctx),
		"holders", len(w.holders), "enforced", w.enforced, "took", w.took)
	return &redoubtv1.CreateLockResponse{
		Lock: a.lock(snap, l), Holders: uint32(len(w.holders)), Enforced: uint32(w.enforced), EnforcedUs: uint64(w.took.Microseconds()),
		Bound: a.bound(snap, nodes...), Laggards: laggards(w.behind),
	}, nil
}

// ListLocks lists all locks, newest first.
func (a *Admin) ListLocks(context.Context, *redoubtv1.ListLocksRequest) (*redoubtv1.ListLocksResponse, error) {
	snap := a.Directory.Snapshot()
	out := &redoubtv1.ListLocksResponse{}
	for _, l := range slices.SortedFunc(snap.Locks(), func(x, y *directory.Lock) int { return y.Created.Compare(x.Created) }) {
		out.Locks = append(out.Locks, a.lock(snap, l))
	}
	return out, nil
}

// DeleteLock restores the trust that a lock withdrew.
func (a *Admin) DeleteLock(ctx context.Context, r *redoubtv1.DeleteLockRequest) (*redoubtv1.DeleteLockResponse, error) {
	l, free, err := a.Directory.DeleteLock(ctx, r.GetId(), Caller(ctx))
	if err != nil {
		return nil, a.fail(err)
	}
	a.Log.Info("lock deleted", "lock", l.ID, "kind", l.Kind, "subject", l.Subject, "unlocked", len(free), "by", Caller(ctx))
	return &redoubtv1.DeleteLockResponse{Lock: a.lock(a.Directory.Snapshot(), l), Unlocked: uint32(len(free))}, nil
}

func (a *Admin) lock(snap *directory.Snapshot, l *directory.Lock) *redoubtv1.Lock {
	out := &redoubtv1.Lock{
		Id: l.ID, Kind: l.Kind, Subject: l.Subject, Reason: l.Reason, By: l.By, Created: seconds(l.Created), Expires: seconds(l.Expires),
	}
	for id := range snap.Under(l) {
		n, ok := snap.Lookup(id)
		if !ok || n.Revoked != nil {
			continue
		}
		if out.Nodes++; l.Kind == directory.LockNode || l.Kind == directory.LockDevice {
			out.Name = n.Name
		}
	}
	return out
}
