package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

func TestEnsure(t *testing.T) {
	s := store.NewMemory()
	m, err := Ensure(t.Context(), s, Plan{Domain: "corp.example", V4: smallPlan.V4}, rand.Reader, start)
	if err != nil || m.Domain != "corp.example" || m.V4 != smallPlan.V4 || !m.Created.Equal(start) {
		t.Fatalf("made %+v, %v", m, err)
	}
	for _, same := range []Plan{{}, {Domain: "corp.example"}, {V4: smallPlan.V4}} {
		if again, err := Ensure(t.Context(), s, same, rand.Reader, start.Add(time.Hour)); err != nil || again != m {
			t.Errorf("%+v: %+v, %v; want the mesh that is there", same, again, err)
		}
	}
	for _, other := range []Plan{{Domain: "mesh.internal"}, {V4: netip.MustParsePrefix("10.9.9.0/24")}} {
		if _, err := Ensure(t.Context(), s, other, rand.Reader, start); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", other, err)
		}
	}
	for _, bad := range []string{"Corp.example", "a..b", ".", "-x.y", "a_b", "dom.", string(make([]byte, 300))} {
		if _, err := Ensure(t.Context(), store.NewMemory(), Plan{Domain: bad}, rand.Reader, start); !errors.Is(err, ErrInvalid) {
			t.Errorf("domain %.10q: %v, want ErrInvalid", bad, err)
		}
	}
	if d, err := Ensure(t.Context(), store.NewMemory(), Plan{}, rand.Reader, start); err != nil || d.Domain != DefaultDomain || d.V4.Bits() != 16 {
		t.Errorf("by default: %+v, %v", d, err)
	}
}

func TestVersionsGrowOverRestartsAndCrashes(t *testing.T) {
	r := newRig(t)
	last := r.Snapshot().Version()
	later := func(when string) {
		t.Helper()
		if v := r.Snapshot().Version(); !last.Less(v) {
			t.Errorf("%s: version %v after %v", when, v, last)
		}
		last = r.Snapshot().Version()
	}
	n := r.node("host")
	later("enrolled")
	for i := range 3 {
		if err := r.SetReach(t.Context(), n.ID, proto.Reach{Endpoints: []proto.Endpoint{endpoint(fmt.Sprint("192.0.2.1:", i+1))}}); err != nil {
			t.Fatal(err)
		}
		later("endpoints")
	}
	r.reopen()
	later("restarted")
	r.open() // the earlier writer is still open, as for a store after a crash
	later("crashed")
	r.token(nil)
	if v := r.Snapshot().Version(); v != last {
		t.Errorf("a token, which no netmap knows, made version %v of %v", v, last)
	}
}

func TestVersionsAreReservedBeforeTheyAreUsed(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	first := r.Snapshot().Version().N
	txns := 0
	r.store.(*store.Memory).Before = func([]store.Op) error { txns++; return nil }
	for i := range 2*block + 10 {
		if err := r.SetReach(t.Context(), n.ID, proto.Reach{Endpoints: []proto.Endpoint{endpoint(fmt.Sprint("192.0.2.1:", i%2+1))}}); err != nil {
			t.Fatal(err)
		}
	}
	if txns < 2 || txns > 5 {
		t.Errorf("%d transactions for %d versions of block %d", txns, 2*block+10, block)
	}
	if n := r.Snapshot().Version().N; n != first+2*block+10 {
		t.Errorf("version %d, want %d", n, first+2*block+10)
	}
	last := r.Snapshot().Version()
	r.open()
	if v := r.Snapshot().Version(); !last.Less(v) {
		t.Errorf("after a crash version %v, not after %v", v, last)
	}
}

func TestASecondOpenTakesTheRightToWrite(t *testing.T) {
	r := newRig(t)
	tok := r.reusable()
	first := r.Directory
	r.open()
	if _, err := first.Enroll(t.Context(), machine(t, tok, "host")); !errors.Is(err, ErrFenced) {
		t.Errorf("the first writer: %v, want ErrFenced", err)
	}
	<-first.Done()
	if err := first.Err(); !errors.Is(err, ErrFenced) {
		t.Errorf("it ended with %v, want ErrFenced", err)
	}
	if _, err := first.Enroll(t.Context(), machine(t, tok, "host")); !errors.Is(err, ErrFenced) {
		t.Errorf("afterwards: %v, want ErrFenced", err)
	}
	r.enroll(machine(t, tok, "host"))
}

func TestOperationsThatWaitShareATransaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory()
		r := newRigOn(t, m, Plan{})
		defer r.Close()
		tok := r.reusable()
		txns, release := 0, make(chan struct{})
		m.Before = func([]store.Op) error {
			txns++
			<-release
			return nil
		}
		var wait sync.WaitGroup
		const many = 50
		for i := range many {
			q := machine(t, tok, "host")
			if i%10 == 9 {
				q.Hostname = string(make([]byte, MaxHostname+1)) // a failing request does not hold up the others
			}
			wait.Go(func() {
				if n, err := r.Enroll(t.Context(), q); err == nil {
					if _, ok := r.Snapshot().Lookup(n.ID); !ok {
						t.Error("an enrolment returned before it was visible")
					}
				}
			})
		}
		synctest.Wait() // the first is being written, the others wait
		close(release)
		wait.Wait()
		if txns != 2 || r.Snapshot().Len() != 45 {
			t.Errorf("%d transactions for %d nodes, want 2 for 45", txns, r.Snapshot().Len())
		}
	})
}

func TestAWriteThatFails(t *testing.T) {
	m := store.NewMemory()
	r := newRigOn(t, m, Plan{})
	tok := r.token(nil)
	full := errors.New("no space left on device")
	m.Before = func([]store.Op) error { return full }
	q := machine(t, tok, "host")
	r.refused(q, full)
	m.Before = nil
	r.enroll(q) // the disk has room again

	m.Before = func([]store.Op) error { return store.ErrFailed }
	if _, err := r.RevokeToken(t.Context(), tok.ID, "uid 0"); !errors.Is(err, store.ErrFailed) {
		t.Errorf("a store that failed: %v", err)
	}
	<-r.Done()
	if err := r.Err(); !errors.Is(err, store.ErrFailed) {
		t.Errorf("the directory ended with %v", err)
	}
}

func TestClose(t *testing.T) {
	r := newRig(t)
	sub := r.Subscribe()
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, open := <-sub.Ready(); open {
		t.Error("a subscription outlived the directory")
	}
	if _, err := r.CreateToken(t.Context(), TokenSpec{Public: newTokenKey(t), TTL: time.Hour}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
	if !errors.Is(r.Err(), ErrClosed) {
		t.Errorf("ended with %v", r.Err())
	}
	late := r.Subscribe()
	if _, open := <-late.Ready(); open {
		t.Error("a subscription after Close waits for ever")
	}
	late.Close()
	sub.Close()
}

func TestACallerThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory()
		r := newRigOn(t, m, Plan{})
		defer r.Close()
		tok := r.token(nil)
		release := make(chan struct{})
		m.Before = func([]store.Op) error { <-release; return nil }
		ctx, cancel := context.WithCancel(t.Context())
		q := machine(t, tok, "host")
		left := make(chan error, 2)
		for range 2 { // one is being written, one waits for the writer
			go func() {
				_, err := r.Enroll(ctx, q)
				left <- err
			}()
		}
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-left; !errors.Is(err, context.Canceled) {
				t.Errorf("a caller that left: %v", err)
			}
		}
		close(release)
		if n := r.enroll(q); r.Snapshot().Len() != 1 || n.Certificate.Sequence != 1 {
			t.Errorf("afterwards: %+v, want the node that was made", n)
		}
	})
}

// TestACallerThatLeavesLearnsNothing checks that a caller that leaves is not told of an outcome that is not on disk yet.
func TestACallerThatLeavesLearnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := store.NewMemory()
		r := newRigOn(t, m, Plan{})
		defer r.Close()
		q := machine(t, r.token(nil), "host")
		old := r.renew(r.node("twice"))
		r.renew(old)
		r.demand.Approval = true
		for what, op := range map[string]func(context.Context) error{
			"enrolment": func(ctx context.Context) error { _, err := r.Enroll(ctx, q); return err },
			"renewal":   func(ctx context.Context) error { _, err := r.Renew(ctx, r.renewal(old, newNodeKey(t))); return err },
		} {
			release := make(chan struct{})
			m.Before = func([]store.Op) error { <-release; return nil }
			ctx, cancel := context.WithCancel(t.Context())
			left := make(chan error)
			go func() { left <- op(ctx) }()
			synctest.Wait() // it is being written
			cancel()
			if err := <-left; !errors.Is(err, context.Canceled) || errors.Is(err, ErrPending) || errors.Is(err, ErrQuarantined) {
				t.Errorf("%s: %v, want nothing but context.Canceled", what, err)
			}
			close(release)
			synctest.Wait()
		}
	})
}

func TestSubscription(t *testing.T) {
	r := newRig(t)
	sub := r.Subscribe()
	defer sub.Close()
	first := r.Snapshot()
	if _, ok := sub.Take(); ok || sub.Snapshot() != first {
		t.Error("a new subscription has something to take")
	}
	a := r.node("a")
	b := r.node("b")
	gone := r.node("gone")
	if err := r.DeleteNode(t.Context(), gone.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	<-sub.Ready()
	c, ok := sub.Take()
	want := []proto.NodeID{a.ID, b.ID}
	slices.Sort(want)
	if !ok || c.Before != first || c.After != r.Snapshot() || !slices.Equal(c.Nodes, want) || c.Policy {
		t.Errorf("change %v of %v to %v", c.Nodes, c.Before.Version(), c.After.Version())
	}
	if _, err := r.SetPolicy(t.Context(), "{}", 0, "uid 0"); err != nil {
		t.Fatal(err)
	}
	if err := r.DeleteNode(t.Context(), a.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	d, ok := sub.Take()
	if !ok || d.Before != c.After || d.After != r.Snapshot() || !slices.Equal(d.Nodes, []proto.NodeID{a.ID}) || !d.Policy {
		t.Errorf("the next change: %v, policy %v", d.Nodes, d.Policy)
	}
	r.token(nil)
	if _, ok := sub.Take(); ok {
		t.Error("a token was told to those who want to know of nodes and policies")
	}
}

func TestASubscriberThatNeverLooksHoldsNothingForNodesThatCameAndWent(t *testing.T) {
	r := newRig(t)
	sub := r.Subscribe()
	defer sub.Close()
	for range 30 {
		if err := r.DeleteNode(t.Context(), r.node("host").ID, "uid 0"); err != nil {
			t.Fatal(err)
		}
	}
	if len(sub.nodes) != 0 {
		t.Errorf("it holds %d ids", len(sub.nodes))
	}
}

func TestDamagedRecordsAreNotOpened(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	tok := r.token(nil)
	if err := r.DeleteNode(t.Context(), r.node("gone").ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetPolicy(t.Context(), "{}", 0, "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.traits(n)
	r.Close()
	good := contents(t, r.store)
	for k, v := range good {
		for what, bad := range map[string]string{
			"cut short": v[:len(v)-1], "with more": v + "{}", "with an unknown field": `{"x":1,` + v[1:],
			"of a later version": `{"v":9,` + v[len(`{"v":1,`):],
		} {
			s := store.NewMemory()
			var ops []store.Op
			for k2, v2 := range good {
				ops = append(ops, store.Put(k2, []byte(v2)))
			}
			if _, err := s.Txn(t.Context(), nil, ops); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put(k, []byte(bad))}); err != nil {
				t.Fatal(err)
			}
			d, err := Open(t.Context(), s, r.config())
			if err == nil {
				var list []audit.Record
				list, err = d.Audit(t.Context(), 0, 100, AuditQuery{}) // records are read on demand
				d.Close()
				if err == nil && k == audit.LastSeal && list[0].Action == audit.BookUnsealed {
					continue // it continues, and records the fact
				}
			}
			if err == nil {
				t.Errorf("%s %s was taken", k, what)
			}
		}
	}
	for what, op := range map[string]store.Op{
		"a node under another id":       store.Put(nodePath(7), []byte(good[nodePath(n.ID)])),
		"a token under another":         store.Put(tokenPath("t0"), []byte(good[tokenPath(tok.ID)])),
		"a key that is none":            store.Put(devicePrefix+"zz", []byte(`{"v":1,"node":"`+n.ID.String()+`","since":"2026-08-01T12:00:00Z"}`)),
		"an address that is none":       store.Put(freedPrefix+"x", []byte(`{"v":1,"until":"2026-08-01T12:00:00Z"}`)),
		"roles of somebody else":        store.Put(rolePath("bob@example.com"), []byte(good[rolePath("ann@example.com")])),
		"traits of another node":        store.Put(traitsPath(7), []byte(good[traitsPath(n.ID)])),
		"traits of a node that is gone": store.Delete(nodePath(n.ID)),
		"facts out of order":            store.Put(traitsPath(n.ID), []byte(`{"v":1,"node":"`+n.ID.String()+`","facts":[{"name":"b","value":"1","source":"","set":"2026-08-01T12:00:00Z"},{"name":"a","value":"1","source":"","set":"2026-08-01T12:00:00Z"}]}`)),
		"no mesh":                       store.Delete(meshKey),
		"no head":                       store.Delete(headKey),
	} {
		s := store.NewMemory()
		for k, v := range good {
			if _, err := s.Txn(t.Context(), nil, []store.Op{store.Put(k, []byte(v))}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Txn(t.Context(), nil, []store.Op{op}); err != nil {
			t.Fatal(err)
		}
		if d, err := Open(t.Context(), s, r.config()); err == nil {
			d.Close()
			t.Errorf("%s was taken", what)
		}
	}
}
