package directory

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Kinds of locks.
const (
	LockUser   = "user"   // all nodes of a person, by login name
	LockNode   = "node"   // one node, by id
	LockTag    = "tag"    // all nodes with a tag
	LockDevice = "device" // the node with a device key, whatever becomes of its name and id
	LockToken  = "token"  // all nodes that joined with a token
)

// Limits of locks.
const (
	MaxLocks   = 10_000
	MinLockTTL = time.Second
	MaxLockTTL = 366 * 24 * time.Hour
)

// Lock suspends trust in nodes until it is deleted or expires. Values are shared and never change.
type Lock struct {
	ID      string // "l" and 13 characters
	Kind    string // one of the constants above
	Subject string
	Reason  string
	By      string
	Created time.Time
	Expires time.Time // zero: never
}

// LockSpec describes a lock to be created.
type LockSpec struct {
	Kind, Subject, Reason string
	TTL                   time.Duration // 0: until it is deleted
	By                    string
}

// ErrLocked means that a node is locked, or that a node to be created would be. A *LockedError has the details.
var ErrLocked = errors.New("locked")

// LockedError is returned for what a lock forbids.
type LockedError struct {
	What string // such as: node web (n123)
	Lock *Lock
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is locked since %s by lock %s%s", e.What, e.Lock.Created.Format(time.RFC3339), e.Lock.ID, because(e.Lock.Reason))
}

// number formats a count of things.
func number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// Is reports whether target is ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Barred reports whether nobody may trust the node, because it is revoked, quarantined or locked.
func (n *Node) Barred() bool { return n.Apart() || n.Lock != nil }

// Dismissed reports whether the coordinator does not serve the node at all. A quarantined node is served, but told of no peers.
func (n *Node) Dismissed() bool { return n.Revoked != nil || n.Lock != nil }

// locked returns the error for a locked node.
func (n *Node) locked() error {
	return &LockedError{What: fmt.Sprintf("node %s (%s)", n.Name, n.ID), Lock: n.Lock}
}

// unlocked refuses an enrolment that would create a locked node.
func (t *tx) unlocked(token *Token, r EnrollRequest) error {
	would := &Node{Identity: proto.Identity{Tags: token.Tags}, Device: r.Device, Token: token.ID}
	if token.User != "" {
		would.User = token.user()
	}
	if n, ok := t.state.nodes.Get(token.Replace); ok && n.Lock != nil {
		return n.locked()
	}
	if l := t.lockOf(would); l != nil {
		return &LockedError{What: l.Kind + " " + l.Subject, Lock: l}
	}
	return nil
}

type lockRecord struct {
	version
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
}

const lockPrefix = "lock/"

func lockPath(id string) string { return lockPrefix + id }

// addLock must run before the nodes are loaded.
func addLock(s *state, e store.Entry) error {
	r, err := parse[lockRecord](e)
	if err != nil {
		return err
	}
	if lockPath(r.ID) != e.Key || !slices.Contains([]string{LockUser, LockNode, LockTag, LockDevice, LockToken}, r.Kind) {
		return fmt.Errorf("record %s: holds lock %s of kind %q", e.Key, r.ID, r.Kind)
	}
	s.putLock(&Lock{ID: r.ID, Kind: r.Kind, Subject: r.Subject, Reason: r.Reason, By: r.By, Created: r.Created, Expires: r.Expires})
	return nil
}

func (s *state) putLock(l *Lock) {
	put(&s.locks, l.ID, l)
	put(&s.lockSubjects, l.key(), l)
	if !l.Expires.IsZero() {
		put(&s.lockEnds, timeKey(l.Expires, l.ID), l)
	}
}

func (s *state) dropLock(l *Lock) {
	drop(&s.locks, l.ID)
	drop(&s.lockSubjects, l.key())
	drop(&s.lockEnds, timeKey(l.Expires, l.ID))
}

// key sorts locks by subject.
func (l *Lock) key() string { return lockSubject(l.Kind, l.Subject) + l.ID }

func lockSubject(kind, subject string) string { return memberPrefix(kind) + memberPrefix(subject) }

// lockOf returns the oldest lock that applies to a node, or nil. Its cost is proportional to the number of subjects under which
// the node can be locked.
func (s *state) lockOf(n *Node) (oldest *Lock) {
	if s.locks.Len() == 0 {
		return nil
	}
	look := func(kind, subject string) {
		prefix := lockSubject(kind, subject)
		for k, l := range s.lockSubjects.from(prefix) {
			if !strings.HasPrefix(k, prefix) {
				return
			}
			if oldest == nil || cmp.Or(l.Created.Compare(oldest.Created), strings.Compare(l.ID, oldest.ID)) < 0 {
				oldest = l
			}
		}
	}
	look(LockNode, n.ID.String())
	look(LockDevice, n.Device.String())
	look(LockToken, n.Token)
	if !n.User.IsZero() {
		look(LockUser, n.User.Name)
	}
	for _, tag := range n.Tags {
		look(LockTag, tag)
	}
	return oldest
}

// under yields the nodes that a lock covers.
func (s *state) under(l *Lock) iter.Seq[proto.NodeID] {
	one := func(id proto.NodeID, ok bool) iter.Seq[proto.NodeID] {
		return func(yield func(proto.NodeID) bool) {
			if ok {
				yield(id)
			}
		}
	}
	switch l.Kind {
	case LockUser:
		return s.withOverlooked(members(s.users, l.Subject), func(n *Node) bool { return n.User.Name == l.Subject })
	case LockTag:
		return s.withOverlooked(members(s.tags, l.Subject), func(n *Node) bool { return slices.Contains(n.Tags, l.Subject) })
	case LockToken:
		return members(s.joined, l.Subject)
	case LockDevice:
		return one(s.prints.Get(l.Subject))
	}
	id, err := proto.ParseNodeID(l.Subject)
	_, ok := s.nodes.Get(id)
	return one(id, err == nil && ok)
}

// withOverlooked adds to ids the nodes that policies are not about. These are few: quarantined or revoked nodes.
func (s *state) withOverlooked(ids iter.Seq[proto.NodeID], is func(*Node) bool) iter.Seq[proto.NodeID] {
	return func(yield func(proto.NodeID) bool) {
		for id := range ids {
			if !yield(id) {
				return
			}
		}
		for id := range s.overlooked.all() {
			if n, ok := s.nodes.Get(id); ok && is(n) && !yield(id) {
				return
			}
		}
	}
}

// relock re-evaluates the nodes that a lock covers.
func (t *tx) relock(l *Lock) (changed []proto.NodeID) {
	for _, id := range slices.Collect(t.under(l)) {
		n, _ := t.state.nodes.Get(id)
		before := n.Lock
		t.state.setNode(n)
		if n, _ = t.state.nodes.Get(id); n.Lock != before {
			changed = append(changed, id)
		}
	}
	t.nodes = append(t.nodes, changed...)
	return changed
}

// CreateLock locks the subject of spec at once, including nodes that join later. It returns the nodes that lost their trust.
func (d *Directory) CreateLock(ctx context.Context, spec LockSpec) (*Lock, []proto.NodeID, error) {
	switch {
	case spec.Reason != "" && !proto.ValidText(spec.Reason, maxReason):
		return nil, nil, fmt.Errorf("reason of %d bytes: want one line of printable text of at most %d: %w", len(spec.Reason), maxReason, ErrInvalid)
	case spec.TTL != 0 && (spec.TTL < MinLockTTL || spec.TTL > MaxLockTTL):
		return nil, nil, fmt.Errorf("lock for %v: want %v to %v, or no time for a permanent lock: %w", spec.TTL, MinLockTTL, MaxLockTTL, ErrInvalid)
	}
	var l *Lock
	var nodes []proto.NodeID
	err := d.do(ctx, func(t *tx) error {
		about, err := t.lockable(&spec)
		if err != nil {
			return err
		}
		if t.locks.Len() >= MaxLocks {
			return fmt.Errorf("there are %d locks already; delete some (`lock list`): %w", MaxLocks, ErrInvalid)
		}
		id, err := proto.NewNodeID(d.config.Rand)
		if err != nil {
			return err
		}
		l = &Lock{ID: "l" + id.String()[1:], Kind: spec.Kind, Subject: spec.Subject, Reason: spec.Reason, By: spec.By, Created: t.now}
		if spec.TTL != 0 {
			l.Expires = t.now.Add(spec.TTL)
		}
		op, err := putRecord(lockPath(l.ID), lockRecord{
			version: v1, ID: l.ID, Kind: l.Kind, Subject: l.Subject, Reason: l.Reason, By: l.By, Created: l.Created, Expires: l.Expires,
		})
		if err != nil {
			return err
		}
		t.writes = append(t.writes, op)
		t.putLock(l)
		nodes = t.relock(l)
		t.recordLock(spec.By, audit.LockCreate, l, about, number(len(nodes), "node", "nodes")+until(l)+because(l.Reason))
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return l, nodes, nil
}

func until(l *Lock) string {
	if l.Expires.IsZero() {
		return ""
	}
	return ", until " + l.Expires.Format(time.RFC3339)
}

// recordLock records what happened to a lock under its subject, so that the record is found by that.
func (t *tx) recordLock(by, action string, l *Lock, about lockedOne, why string) {
	t.recordOf(about.user, by, action, cmp.Or(about.id, l.Subject), cmp.Or(about.name, l.Kind+" "+l.Subject), "lock "+l.ID+": "+why)
}

// lockedOne identifies the subject of a lock if it is a single node or person.
type lockedOne struct{ id, name, user string }

// about looks up the subject of a lock.
func (t *tx) about(l *Lock) (o lockedOne) {
	switch l.Kind {
	case LockUser:
		return lockedOne{user: l.Subject}
	case LockNode, LockDevice:
		for id := range t.under(l) {
			n, _ := t.state.nodes.Get(id)
			o = lockedOne{id: id.String(), name: n.Name, user: n.User.Name}
		}
	}
	return o
}

// lockable refuses subjects that cannot be locked, and normalizes spec.Subject.
func (t *tx) lockable(spec *LockSpec) (lockedOne, error) {
	switch spec.Kind {
	case LockUser:
		if acl.CheckUser(spec.Subject) != nil || strings.HasSuffix(spec.Subject, "@") {
			return lockedOne{}, fmt.Errorf("user %.64q: want a login name such as ann@example.com: %w", spec.Subject, ErrInvalid)
		}
	case LockTag:
		if !proto.ValidTag(spec.Subject) {
			return lockedOne{}, fmt.Errorf("tag %.64q: want tag:NAME: %w", spec.Subject, ErrInvalid)
		}
	case LockNode:
		id, err := proto.ParseNodeID(spec.Subject)
		if err != nil {
			return lockedOne{}, fmt.Errorf("node %.64q: want an id: %w", spec.Subject, ErrInvalid)
		}
		if _, err := t.knownNode(id); err != nil {
			return lockedOne{}, err
		}
	case LockDevice:
		if b, err := hex.DecodeString(spec.Subject); err != nil || len(b) != 16 {
			return lockedOne{}, fmt.Errorf("device %.64q: want the device key as `node show` prints it: %w", spec.Subject, ErrInvalid)
		}
		spec.Subject = strings.ToLower(spec.Subject)
	case LockToken:
		if _, ok := t.tokens.Get(spec.Subject); !ok {
			return lockedOne{}, fmt.Errorf("token %.32q: %w (`token list` shows all)", spec.Subject, ErrTokenUnknown)
		}
	default:
		return lockedOne{}, fmt.Errorf("a lock of kind %.32q: want user, node, tag, device or token: %w", spec.Kind, ErrInvalid)
	}
	return t.about(&Lock{Kind: spec.Kind, Subject: spec.Subject}), nil
}

// ErrLockUnknown means that there is no such lock.
var ErrLockUnknown = errors.New("lock is not known")

// DeleteLock removes a lock. It returns the nodes that are trusted again because no other lock holds them.
func (d *Directory) DeleteLock(ctx context.Context, id, by string) (*Lock, []proto.NodeID, error) {
	var l *Lock
	var nodes []proto.NodeID
	err := d.do(ctx, func(t *tx) error {
		var ok bool
		if l, ok = t.locks.Get(id); !ok {
			return fmt.Errorf("lock %.32q: %w (`lock list` shows all)", id, ErrLockUnknown)
		}
		nodes = t.unlock(l, by, audit.LockDelete)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return l, nodes, nil
}

// unlock ends a lock and returns the nodes that are trusted again.
func (t *tx) unlock(l *Lock, by, action string) []proto.NodeID {
	t.writes = append(t.writes, store.Delete(lockPath(l.ID)))
	t.dropLock(l)
	free := slices.DeleteFunc(t.relock(l), func(id proto.NodeID) bool {
		n, _ := t.state.nodes.Get(id)
		return n.Barred()
	})
	t.recordLock(by, action, l, t.about(l), number(len(free), "node is", "nodes are")+" trusted again")
	return free
}

// expireLocks ends the locks that have expired. If the transaction has no room for all of them, the others hold until the next
// one, which follows at once because they are due.
func (t *tx) expireLocks() {
	for l := range over(t.lockEnds, t.moment) {
		if t.full() {
			return
		}
		t.unlock(l, "coordinator", audit.LockExpire)
	}
}

// Locks yields all locks, sorted by id.
func (s *Snapshot) Locks() iter.Seq[*Lock] { return values(s.state.locks) }

// Under yields the nodes that a lock covers, sorted by id.
func (s *Snapshot) Under(l *Lock) iter.Seq[proto.NodeID] { return s.state.under(l) }
