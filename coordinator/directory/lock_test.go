package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

func (r *rig) lock(kind, subject string, ttl time.Duration) (*Lock, []proto.NodeID) {
	r.t.Helper()
	l, nodes, err := r.CreateLock(From(r.t.Context(), "admin socket"), LockSpec{Kind: kind, Subject: subject, Reason: "stolen", TTL: ttl, By: "uid 0"})
	if err != nil {
		r.t.Fatal(err)
	}
	return l, nodes
}

// TestLocksOfEveryKind locks a node by each kind of subject, and unlocks it.
func TestLocksOfEveryKind(t *testing.T) {
	r := newRig(t)
	tok := r.token(func(s *TokenSpec) { s.Tags, s.User, s.Reusable = nil, "ann@example.com", true })
	mine := r.enroll(machine(t, tok, "laptop"))
	other := r.node("db")
	for kind, subject := range map[string]string{
		LockUser: "ann@example.com", LockNode: mine.ID.String(), LockDevice: mine.Device.String(), LockToken: tok.ID,
	} {
		l, nodes := r.lock(kind, subject, 0)
		if !slices.Equal(nodes, []proto.NodeID{mine.ID}) || r.Snapshot().Trusted(mine.ID) || !r.Snapshot().Trusted(other.ID) {
			t.Errorf("%s: locked %v", kind, nodes)
		}
		if _, ok := r.Snapshot().Node(mine.ID); !ok {
			t.Errorf("%s: those whom policies tie to the node could not be told of it", kind)
		}
		r.reopen()
		if n, _ := r.Snapshot().Lookup(mine.ID); n.Lock == nil || *n.Lock != *l || r.Snapshot().Trusted(mine.ID) {
			t.Errorf("%s, after a restart: %+v", kind, n.Lock)
		}
		_, err := r.Renew(t.Context(), r.renewal(mine, newNodeKey(t)))
		var locked *LockedError
		if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) || locked.Lock.ID != l.ID || !strings.Contains(err.Error(), "stolen") {
			t.Errorf("%s: renewal: %v", kind, err)
		}
		if kind == LockUser || kind == LockToken {
			if _, err := r.Enroll(t.Context(), machine(t, tok, "second")); !errors.Is(err, ErrLocked) {
				t.Errorf("%s: enrolment: %v", kind, err)
			}
		}
		if _, free, err := r.DeleteLock(t.Context(), l.ID, "uid 0"); err != nil || !slices.Equal(free, []proto.NodeID{mine.ID}) || !r.Snapshot().Trusted(mine.ID) {
			t.Errorf("%s: deleted: %v, %v", kind, free, err)
		}
	}
	if _, nodes := r.lock(LockTag, "tag:db", 0); !slices.Equal(nodes, []proto.NodeID{other.ID}) {
		t.Errorf("by tag: %v", nodes)
	}
	if _, err := r.Enroll(t.Context(), machine(t, r.token(nil), "db2")); !errors.Is(err, ErrLocked) {
		t.Errorf("a machine with a locked tag: %v", err)
	}
	verifyBook(t, r.Directory)
}

func TestSeveralLocksHoldUntilTheLast(t *testing.T) {
	r := newRig(t)
	n := r.node("db")
	first, _ := r.lock(LockTag, "tag:db", 0)
	r.clock.pass(time.Second)
	second, nodes := r.lock(LockNode, n.ID.String(), 0)
	if len(nodes) != 0 {
		t.Errorf("a node that was locked is locked anew: %v", nodes)
	}
	if _, free, err := r.DeleteLock(t.Context(), first.ID, "uid 0"); err != nil || len(free) != 0 || r.Snapshot().Trusted(n.ID) {
		t.Errorf("free: %v, %v", free, err)
	}
	if now, _ := r.Snapshot().Lookup(n.ID); now.Lock == nil || now.Lock.ID != second.ID {
		t.Errorf("held by %+v", now.Lock)
	}
	if _, free, err := r.DeleteLock(t.Context(), second.ID, "uid 0"); err != nil || len(free) != 1 {
		t.Errorf("free: %v, %v", free, err)
	}
	if _, _, err := r.DeleteLock(t.Context(), second.ID, "uid 0"); !errors.Is(err, ErrLockUnknown) {
		t.Errorf("deleted twice: %v", err)
	}
}

// TestALockEndsByItself checks that a lock expires without any request, and that this is recorded.
func TestALockEndsByItself(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		n := r.node("db")
		r.clock.t = time.Now()
		sub := r.Subscribe()
		defer sub.Close()
		l, _ := r.lock(LockNode, n.ID.String(), time.Hour)
		<-sub.Ready()
		sub.Take()
		begin := time.Now()
		<-sub.Ready()
		if took := time.Since(begin); took != time.Hour {
			t.Errorf("it ended after %v", took)
		}
		if c, ok := sub.Take(); !ok || !slices.Equal(c.Nodes, []proto.NodeID{n.ID}) || !r.Snapshot().Trusted(n.ID) {
			t.Errorf("change: %+v", c)
		}
		list, err := r.Audit(t.Context(), 0, 1, AuditQuery{Node: n.ID.String()})
		if err != nil || list[0].Action != audit.LockExpire || !strings.Contains(list[0].Reason, l.ID) {
			t.Errorf("audit: %+v, %v", list, err)
		}
		r.reopen()
		if got := slices.Collect(r.Snapshot().Locks()); len(got) != 0 {
			t.Errorf("after a restart: %v", got)
		}
	})
}

// TestALockThatEndedDuringAnOutageEnds checks that a lock that expires during an outage ends at the next start.
func TestALockThatEndedDuringAnOutageEnds(t *testing.T) {
	r := newRig(t)
	n := r.node("db")
	r.lock(LockNode, n.ID.String(), time.Minute)
	r.Close()
	r.clock.pass(time.Hour)
	r.open()
	r.token(nil) // the lock expires before whatever happens next
	if !r.Snapshot().Trusted(n.ID) {
		t.Error("it is locked")
	}
}

// TestManyLocksThatEndAtOnceEnd checks that locks too many to end in one transaction do not keep others from writing, and that
// all of them end at once.
func TestManyLocksThatEndAtOnceEnd(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		r.clock.t = time.Now()
		n := r.node("db")
		for i := range store.MaxOps / 2 {
			r.lock(LockTag, fmt.Sprintf("tag:t%d", i), time.Minute)
		}
		r.lock(LockTag, "tag:db", time.Minute)
		time.Sleep(time.Minute)
		r.token(nil)
		time.Sleep(time.Second)
		if left := r.Snapshot().state.locks.Len(); left != 0 || !r.Snapshot().Trusted(n.ID) {
			t.Errorf("%d locks are left", left)
		}
		verifyBook(t, r.Directory)
	})
}

func TestWhatCannotBeLocked(t *testing.T) {
	r := newRig(t)
	n := r.node("db")
	for what, c := range map[string]struct {
		spec LockSpec
		want error
	}{
		"nothing":               {LockSpec{}, ErrInvalid},
		"an unknown node":       {LockSpec{Kind: LockNode, Subject: (n.ID + 1).String()}, ErrUnknown},
		"a name":                {LockSpec{Kind: LockNode, Subject: "db"}, ErrInvalid},
		"everybody":             {LockSpec{Kind: LockUser, Subject: "*@example.com"}, ErrInvalid},
		"no tag":                {LockSpec{Kind: LockTag, Subject: "db"}, ErrInvalid},
		"no device":             {LockSpec{Kind: LockDevice, Subject: "00"}, ErrInvalid},
		"an unknown token":      {LockSpec{Kind: LockToken, Subject: "t0000000000000"}, ErrTokenUnknown},
		"a long reason":         {LockSpec{Kind: LockTag, Subject: "tag:db", Reason: strings.Repeat("x", maxReason+1)}, ErrInvalid},
		"a reason of two lines": {LockSpec{Kind: LockTag, Subject: "tag:db", Reason: "a\nb"}, ErrInvalid},
		"a moment":              {LockSpec{Kind: LockTag, Subject: "tag:db", TTL: time.Millisecond}, ErrInvalid},
		"ever":                  {LockSpec{Kind: LockTag, Subject: "tag:db", TTL: MaxLockTTL + 1}, ErrInvalid},
	} {
		if _, _, err := r.CreateLock(context.Background(), c.spec); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if !r.Snapshot().Trusted(n.ID) || len(slices.Collect(r.Snapshot().Locks())) != 0 {
		t.Error("something was locked")
	}
}

// TestLocksInQuarantine checks that quarantined nodes are locked like any other, so that their release does not bring them
// back.
func TestLocksInQuarantine(t *testing.T) {
	r := newRig(t)
	mine := r.enroll(machine(t, r.token(func(s *TokenSpec) { s.Tags, s.User = nil, "ann@example.com" }), "laptop"))
	other := r.node("db")
	for _, n := range []*Node{mine, other} {
		r.renew(r.renew(n))
		if _, err := r.Renew(t.Context(), r.renewal(n, newNodeKey(t))); !errors.Is(err, ErrQuarantined) { // two machines
			t.Fatalf("%v, want quarantine", err)
		}
	}
	for kind, c := range map[string]struct {
		subject string
		n       *Node
	}{LockUser: {"ann@example.com", mine}, LockTag: {"tag:db", other}} {
		l, nodes := r.lock(kind, c.subject, 0)
		if n, _ := r.Snapshot().Lookup(c.n.ID); n.Lock == nil || !slices.Equal(nodes, []proto.NodeID{c.n.ID}) {
			t.Errorf("%s: locked %v: %+v", kind, nodes, n.Lock)
		}
		if _, _, err := r.DeleteLock(t.Context(), l.ID, "uid 0"); err != nil {
			t.Fatal(err)
		}
		if n, _ := r.Snapshot().Lookup(c.n.ID); n.Lock != nil {
			t.Errorf("%s: still locked by what was deleted: %+v", kind, n.Lock)
		}
	}
}
