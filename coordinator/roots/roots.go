// Package roots maintains the mesh's roots and intermediates over the years: it replaces them while the mesh runs, reports
// who still depends on an old one, and makes sure that the audit log records everything.
//
//	rotate ──► two roots are trusted; certificates are issued under the new one
//	             │   nodes renew, join codes that name the old root are used or expire
//	             ▼
//	         nothing depends on the old one any longer ──► it is retired, automatically or by command
//
// Package issuer manages the keys and certificates; the directory knows which node has which.
package roots

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// Keeper manages the roots. Its methods may be called concurrently.
type Keeper struct {
	issuer    *issuer.Issuer
	directory *directory.Directory
	clock     func() time.Time
	log       *slog.Logger

	mu sync.Mutex // held from an action until the audit log records it
	// bound lists the nodes that depend on the old root. It only shrinks while that root stays the same.
	bound []proto.NodeID
	of    string // that old root; empty if none was examined
}

// New returns a Keeper.
func New(i *issuer.Issuer, d *directory.Directory, clock func() time.Time, log *slog.Logger) *Keeper {
	return &Keeper{issuer: i, directory: d, clock: clock, log: log}
}

// Dependents are the nodes and tokens that need the root before the newest.
type Dependents struct {
	Nodes  []*directory.Node  // whose last certificate predates the new root
	Tokens []*directory.Token // valid tokens whose join codes name the old root
}

// Len returns the number of dependents.
func (d Dependents) Len() int { return len(d.Nodes) + len(d.Tokens) }

// BoundError lists what still depends on a root that is to be retired.
type BoundError struct{ Dependents }

// maxNamed is how many dependents an error names.
const maxNamed = 10

func (e *BoundError) Error() string {
	var names []string
	for _, n := range e.Nodes {
		names = append(names, "node "+n.Name)
	}
	for _, t := range e.Tokens {
		names = append(names, "join code "+t.ID)
	}
	more := ""
	if n := len(names) - maxNamed; n > 0 {
		names, more = names[:maxNamed], fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("the old root is still needed by %s%s (`root list` shows all): nodes stop needing it when they renew, join codes when they "+
		"are used, revoked or expired. With --force it is retired anyway: these nodes may have to join again, and these codes become invalid",
		strings.Join(names, ", "), more)
}

// Keep does what is due: it replaces the intermediate, retires a root that nothing depends on, and records in the audit log
// what others did to the files.
func (k *Keeper) Keep(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed, err := k.issuer.Maintain()
	if changed && err == nil {
		k.log.Info("intermediate certificate renewed")
	}
	if noted := k.note(ctx, "coordinator"); noted != nil {
		return errors.Join(err, noted)
	}
	if s := k.issuer.Status(); len(s.Roots) < 2 || s.IntermediateRoot != s.Roots[0] || k.dependents().Len() > 0 {
		return err
	}
	return errors.Join(err, k.retire(ctx, "coordinator"))
}

// Rotate creates a new root.
func (k *Keeper) Rotate(ctx context.Context, by string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.issuer.Rotate(); err != nil {
		return err
	}
	return k.note(ctx, by)
}

// Retire ends the trust in the root before the newest. If anything depends on it, force is required.
func (k *Keeper) Retire(ctx context.Context, force bool, by string) (Dependents, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.issuer.Roots()) < 2 {
		return Dependents{}, issuer.ErrOneRoot
	}
	left := k.dependents()
	if left.Len() > 0 && !force {
		return left, &BoundError{left}
	}
	return left, k.retire(ctx, by)
}

func (k *Keeper) retire(ctx context.Context, by string) error {
	if err := k.issuer.Retire(); err != nil {
		return err
	}
	k.log.Info("root retired", "by", by)
	return k.note(ctx, by)
}

// Forget removes the root's key from this machine. The digest of the key's file shows that the caller has read it.
func (k *Keeper) Forget(ctx context.Context, digest [32]byte, by string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.issuer.Forget(digest); err != nil {
		return err
	}
	return k.note(ctx, by)
}

// Request creates a request for the next intermediate, for the machine that holds the root's key.
func (k *Keeper) Request(ctx context.Context, by string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	b, err := k.issuer.Request()
	if err != nil {
		return nil, err
	}
	asked, err := issuer.ParseRequest(b)
	if err != nil {
		return nil, err
	}
	return b, k.directory.RootAsked(ctx, hex.EncodeToString(asked.Key[:]), by)
}

// Install installs the answer to such a request. It reports whether this changed the root.
func (k *Keeper) Install(ctx context.Context, answer []byte, by string) (rotated bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if rotated, err = k.issuer.Install(answer); err != nil {
		return false, err
	}
	return rotated, k.note(ctx, by)
}

// Root describes a trusted root to people.
type Root struct {
	Certificate *x509.Certificate
	Fingerprint string
	Since       time.Time
}

// List returns the roots, newest first, the state of the keys, and what still depends on the older root.
func (k *Keeper) List() ([]Root, issuer.Status, Dependents) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.issuer.Status()
	var list []Root
	for _, c := range s.Roots {
		r := Root{Certificate: c, Fingerprint: name(c)}
		r.Since = k.since(r.Fingerprint)
		list = append(list, r)
	}
	if len(list) < 2 {
		return list, s, Dependents{}
	}
	return list, s, k.dependents()
}

func name(root *x509.Certificate) string {
	f := cert.Fingerprint(root)
	return hex.EncodeToString(f[:])
}

// note records in the audit log what has changed. It runs after every action, so that the next one makes up for a crash in
// between.
func (k *Keeper) note(ctx context.Context, by string) error {
	s := k.issuer.Status()
	keys := directory.Keys{Here: s.RootHere, Intermediate: s.Intermediate.SerialNumber.Text(16)}
	for _, c := range s.Roots {
		keys.Roots = append(keys.Roots, directory.Root{Fingerprint: name(c)})
	}
	return k.directory.NoteKeys(ctx, keys, by)
}

// since returns when a root replaced the previous one; zero if it is the mesh's first.
func (k *Keeper) since(fingerprint string) time.Time {
	if keys := k.directory.Snapshot().Keys(); keys != nil {
		for _, r := range keys.Roots {
			if r.Fingerprint == fingerprint {
				return r.Since
			}
		}
	}
	return time.Time{}
}

// dependents returns what depends on the root before the newest. There must be one.
func (k *Keeper) dependents() Dependents {
	s := k.issuer.Status()
	snap, now := k.directory.Snapshot(), k.clock()
	var d Dependents
	if old := name(s.Roots[1]); old != k.of {
		k.of, k.bound = old, nil
		for n := range snap.Nodes() {
			k.bound = append(k.bound, n.ID)
		}
	}
	var still []proto.NodeID
	for _, id := range k.bound {
		if n, ok := snap.Lookup(id); ok && n.Revoked == nil && !k.issuer.Newest(n.Certificate.DER) {
			d.Nodes, still = append(d.Nodes, n), append(still, id)
		}
	}
	k.bound = still
	from, to := k.since(name(s.Roots[1])), k.since(name(s.Roots[0]))
	for t := range snap.Tokens() {
		if t.State(now) == directory.TokenValid && !t.Created.Before(from) && t.Created.Before(to) {
			d.Tokens = append(d.Tokens, t)
		}
	}
	return d
}
