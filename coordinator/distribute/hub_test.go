package distribute

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

const everything = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}`

// inBubble runs a test with a hub that runs by itself in virtual time.
func inBubble(t *testing.T, f func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, New, time.Now)
		defer w.close()
		f(t, w)
	})
}

func attached(t *testing.T, w *world, id proto.NodeID) *client {
	t.Helper()
	c := w.client(id)
	if err := c.attach(); err != nil {
		t.Fatal(err)
	}
	return c
}

// settle waits until the hub has folded and processed all changes.
func settle() {
	time.Sleep(fold + time.Millisecond)
	synctest.Wait()
}

func TestChangesAreFolded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a := w.enrol("ann@example.com")
		settle()
		c := attached(t, w, a)
		c.drain()
		if c.full != 1 || len(c.nm.Peers) != 0 {
			t.Fatalf("%d snapshots, %d peers", c.full, len(c.nm.Peers))
		}
		c.ack()
		for range 5 {
			w.enrol("tag:a")
			time.Sleep(fold / 10)
		}
		if _, ok := c.session.Next(); ok {
			t.Error("a change was not held back to be folded")
		}
		settle()
		select {
		case <-c.wakes:
		default:
			t.Error("the stream was not woken")
		}
		c.drain()
		if c.delta != 1 || len(c.nm.Peers) != 5 {
			t.Errorf("%d deltas, %d peers", c.delta, len(c.nm.Peers))
		}
	})
}

func TestWhoIsNotTouchedHearsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:a"], "ip": ["*"]}]}`)
		a, b := w.enrol("tag:a"), w.enrol("tag:b")
		settle()
		ca, cb := attached(t, w, a), attached(t, w, b)
		ca.drain()
		ca.ack()
		cb.drain()
		cb.ack()
		w.enrol("tag:a")
		settle()
		ca.drain()
		cb.drain()
		if ca.delta != 1 || cb.delta != 0 {
			t.Errorf("deltas: a %d, b %d", ca.delta, cb.delta)
		}
		ca.ack()
		if st := w.hub.Status(); len(st.Laggards) != 1 || st.Laggards[0].ID != w.nodes[2] {
			t.Errorf("b acknowledged an older version and lags for it: %+v", st)
		}
	})
}

func TestResume(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a := w.enrol("tag:a")
		settle()
		c := attached(t, w, a)
		c.drain()
		c.ack()
		c.session.Close()

		w.enrol("tag:b")
		settle()
		if err := c.attach(); err != nil {
			t.Fatal(err)
		}
		c.drain()
		if c.full != 1 || c.delta != 1 || len(c.nm.Peers) != 1 {
			t.Errorf("back soon: %d snapshots, %d deltas, %d peers", c.full, c.delta, len(c.nm.Peers))
		}
		c.session.Close() // without an acknowledgement: it reconnects with the version that it holds
		if err := c.attach(); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.session.Next(); ok {
			t.Error("it has everything and is sent something")
		}
		if st := w.hub.Status(); len(st.Laggards) != 1 {
			t.Errorf("coming back with a version says that it is enforced: %+v", st.Laggards)
		}
		c.session.Close()

		time.Sleep(maxAwayTime + 2*time.Minute)
		synctest.Wait()
		if err := c.attach(); err != nil {
			t.Fatal(err)
		}
		c.drain()
		if c.full != 2 {
			t.Errorf("back after a long time: %d snapshots", c.full)
		}
	})
}

// TestAnOlderVersionIsNotEnough checks that, if two versions are acknowledged one after the other, the wait is for the
// second, and the lag counts from the first.
func TestAnOlderVersionIsNotEnough(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a := w.enrol("tag:a")
		settle()
		c := attached(t, w, a)
		c.drain()
		c.ack()
		w.enrol("tag:b")
		settle()
		c.drain()
		older := c.nm.Version
		time.Sleep(time.Second)
		w.enrol("tag:b")
		settle()
		c.drain()
		var done atomic.Bool
		go func() {
			w.hub.Await(t.Context(), []proto.NodeID{a}, w.dir.Snapshot().Version())
			done.Store(true)
		}()
		synctest.Wait()
		c.session.Applied(older)
		synctest.Wait()
		if done.Load() {
			t.Error("an older version was enough")
		}
		for _, l := range w.hub.Status().Laggards {
			if l.ID == a && (l.Applied != older || l.Lag < time.Second) {
				t.Errorf("%+v", l)
			}
		}
		c.ack()
		synctest.Wait()
		if !done.Load() {
			t.Error("the last version was not enough")
		}
	})
}

// TestLostOnTheWay checks that a node does not count as having a delta that was lost with the connection.
func TestLostOnTheWay(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		c := attached(t, w, w.enrol("tag:a"))
		settle()
		c.drain()
		for n := range 3 {
			w.enrol("tag:b")
			settle()
			if _, ok := c.session.Next(); !ok {
				t.Fatal("nothing to lose")
			}
			c.session.Close()
			if err := c.attach(); err != nil {
				t.Fatal(err)
			}
			c.drain()
			if c.full != 1 || len(c.nm.Peers) != n+1 {
				t.Errorf("%d snapshots, %d peers", c.full, len(c.nm.Peers))
			}
		}
	})
}

// TestChangedBack checks that nothing is sent if a netmap changes and changes back before the node reads.
func TestChangedBack(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		w.enrol("tag:b")
		c := attached(t, w, w.enrol("tag:a"))
		settle()
		c.drain()
		c.ack()
		w.setPolicy("{}")
		settle()
		w.setPolicy(everything)
		settle()
		c.drain()
		if c.delta != 0 || len(c.nm.Peers) != 1 {
			t.Errorf("%d deltas, %d peers", c.delta, len(c.nm.Peers))
		}
		if st := w.hub.Status(); len(st.Laggards) != 1 { // the other node, which never connected
			t.Errorf("%+v", st.Laggards)
		}
	})
}

func TestOneStreamANode(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := w.enrol("tag:a")
		settle()
		first, second := attached(t, w, a), attached(t, w, a)
		if r := first.over(); r == nil || r.Code != redoubtv1.Refusal_CODE_REPLACED {
			t.Errorf("the first stream: %v", r)
		}
		first.session.Close()
		if !w.hub.Attached(a) {
			t.Error("the end of the first stream ended the second one's session")
		}
		second.drain()
		if second.full != 1 || second.over() != nil {
			t.Errorf("the second stream: %d snapshots, %v", second.full, second.over())
		}
		second.session.Close()
		if w.hub.Attached(a) {
			t.Error("a node without a stream is attached")
		}
	})
}

// TestReplacedStreamTakesNothing checks that a stream that was replaced does not take the update meant for the new one, nor
// acknowledges for it.
func TestReplacedStreamTakesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a := w.enrol("tag:a")
		settle()
		first := attached(t, w, a)
		first.drain()
		first.ack()
		w.enrol("tag:b")
		settle()
		second := w.client(a)
		second.nm = first.nm
		if err := second.attach(); err != nil {
			t.Fatal(err)
		}
		if u, ok := first.session.Next(); ok {
			t.Errorf("the replaced stream was given %+v", u)
		}
		second.drain()
		if second.delta != 1 || len(second.nm.Peers) != 1 {
			t.Errorf("the new stream: %d deltas, %d peers", second.delta, len(second.nm.Peers))
		}
		if first.session.Applied(second.nm.Version) || w.hub.Applied(a) == second.nm.Version {
			t.Error("the replaced stream acknowledged what the new one was sent")
		}
		// The older of two streams may also be the last to begin.
		if _, ok := second.session.record.begin(first.session.turn, able, proto.Version{}, proto.Version{}); ok {
			t.Error("the replaced stream began after the new one")
		}
	})
}

func TestRevocation(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a, b, away := w.enrol("tag:a"), w.enrol("tag:b"), w.enrol("tag:b")
		settle()
		ca, cb, caway := attached(t, w, a), attached(t, w, b), attached(t, w, away)
		for _, c := range []*client{ca, cb, caway} {
			c.drain()
			c.ack()
		}
		caway.session.Close()
		if st := w.hub.Status(); len(st.Laggards) != 0 {
			t.Fatalf("everybody is current: %+v", st)
		}
		holders := Holders(w.hub.Source(), []proto.NodeID{b})
		if len(holders) != 2 {
			t.Fatalf("holders %v", holders)
		}
		if _, err := w.dir.RevokeNode(t.Context(), b, "stolen", "test"); err != nil {
			t.Fatal(err)
		}
		version := w.dir.Snapshot().Version()
		go func() {
			for range ca.wakes {
				time.Sleep(5 * time.Millisecond)
				ca.drain()
				ca.ack()
			}
		}()
		defer close(ca.wakes)
		ctx, cancel := timeout(t, 3*time.Second)
		defer cancel()
		start := time.Now()
		if n := w.hub.Await(ctx, holders, version); n != 1 {
			t.Errorf("%d enforce it, want 1: the other one is away", n)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("waited %v", d)
		}
		ctx2, cancel2 := timeout(t, 3*time.Second)
		defer cancel2()
		start = time.Now()
		if n := w.hub.Await(ctx2, []proto.NodeID{a}, version); n != 1 || time.Since(start) != 0 {
			t.Errorf("%d after %v", n, time.Since(start))
		}
		if r := cb.over(); r == nil || r.Code != redoubtv1.Refusal_CODE_REVOKED {
			t.Errorf("the revoked node's stream: %v", r)
		}
		var no *refusal.Refusal
		if err := cb.attach(); !errors.As(err, &no) || no.Code != redoubtv1.Refusal_CODE_REVOKED {
			t.Errorf("attach of a revoked node: %v", err)
		}
		if len(ca.nm.Peers) != 1 {
			t.Errorf("%d peers are left", len(ca.nm.Peers))
		}
		st := w.hub.Status()
		if len(st.Laggards) != 1 || st.Laggards[0].ID != away || st.Laggards[0].Connected || st.Laggards[0].Lag != 3*time.Second-fold {
			t.Errorf("status %+v", st)
		}
	})
}

func TestRenewalsDoNotHurry(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a, b := w.enrol("tag:a"), w.enrol("tag:b")
		settle()
		c := attached(t, w, a)
		c.drain()
		c.ack()
		time.Sleep(lifetime / 2)
		w.renew(b)
		settle()
		if _, ok := c.session.Next(); ok {
			t.Error("a renewal was sent at once")
		}
		time.Sleep(foldCalm)
		synctest.Wait()
		c.drain()
		if c.delta != 1 {
			t.Errorf("%d deltas", c.delta)
		}
		// If the old certificate is about to end, the new one is sent at once.
		time.Sleep(lifetime - hurry/2)
		w.renew(b)
		settle()
		c.drain()
		if c.delta != 2 {
			t.Errorf("%d deltas after a late renewal", c.delta)
		}
	})
}

func TestLapsedNodesLeaveNetmaps(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a, b := w.enrol("tag:a"), w.enrol("tag:b")
		settle()
		c := attached(t, w, a)
		c.drain()
		expire := func() {
			if _, err := w.dir.Expire(t.Context()); err != nil {
				t.Fatal(err)
			}
			settle()
			c.drain()
		}
		time.Sleep(lifetime)
		w.renew(a)
		expire()
		if len(c.nm.Peers) != 1 {
			t.Fatal("a node whose certificate just ended is gone")
		}
		time.Sleep(lifetime / 2)
		expire()
		if len(c.nm.Peers) != 0 || len(c.nm.Rules) == 0 {
			t.Fatalf("%d peers, %d rules", len(c.nm.Peers), len(c.nm.Rules))
		}
		w.renew(b)
		settle()
		c.drain()
		if len(c.nm.Peers) != 1 {
			t.Error("a node that is back with a new certificate is not in the netmap")
		}
	})
}

func TestMissingFeature(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a := w.enrol("tag:a")
		w.enrol("tag:b")
		settle()
		c := w.client(a)
		s, err := w.hub.Attach(a, []string{"something/else"}, proto.Version{}, c)
		if err != nil {
			t.Fatal(err)
		}
		c.session = s
		c.drain()
		if len(c.nm.Rules)+len(c.nm.Peers)+len(c.nm.Sets) != 0 || len(c.nm.Requires) != 1 {
			t.Errorf("%+v", c.nm)
		}
		// The same node with a newer program gets everything.
		if err := c.attach(); err != nil {
			t.Fatal(err)
		}
		c.drain()
		if len(c.nm.Rules) == 0 || len(c.nm.Peers) != 1 {
			t.Errorf("%+v", c.nm)
		}
	})
}

// TestMeetIsMutual checks that two nodes meet only if both know each other, whichever of them is asked about first.
func TestMeetIsMutual(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		a, b, lapsed := w.enrol("tag:a"), w.enrol("tag:b"), w.enrol("tag:b")
		settle()
		meet := func(what string, x, y proto.NodeID, want bool) {
			t.Helper()
			if there, back := w.hub.Meet(x, y), w.hub.Meet(y, x); there != want || back != want {
				t.Errorf("%s: %v, and %v the other way, want %v", what, there, back, want)
			}
		}
		meet("neither was here", a, b, true)
		c := attached(t, w, a)
		meet("one was here", a, b, true)
		old := w.client(b)
		if _, err := w.hub.Attach(b, []string{"something/else"}, proto.Version{}, old); err != nil {
			t.Fatal(err)
		}
		meet("one lacks a feature", a, b, false)
		attached(t, w, b)
		meet("both can do everything", a, b, true)

		time.Sleep(lifetime)
		w.renew(a)
		time.Sleep(directory.Patience + time.Second)
		if _, err := w.dir.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle()
		c.session.Close()
		time.Sleep(maxAwayTime + 2*time.Minute) // until nothing is known of a
		meet("one has lapsed", a, lapsed, false)
	})
}

func TestAttachBeforeTheHubKnows(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := w.enrol("tag:a")
		c := attached(t, w, a) // within the fold
		if _, ok := c.session.Next(); ok {
			t.Error("sent something that cannot be known yet")
		}
		settle()
		c.drain()
		if c.full != 1 {
			t.Errorf("%d snapshots", c.full)
		}
	})
}

func TestAwaitAll(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		c := attached(t, w, w.enrol("tag:a"))
		go func() {
			for range c.wakes {
				c.drain()
				time.Sleep(time.Second)
				c.ack()
			}
		}()
		defer close(c.wakes)
		ctx, cancel := timeout(t, time.Minute)
		defer cancel()
		start := time.Now()
		st := w.hub.AwaitAll(ctx, w.dir.Snapshot().Version())
		if len(st.Laggards) != 0 || time.Since(start) != time.Second+fold {
			t.Errorf("%+v after %v", st, time.Since(start))
		}
		c.session.Close()
	})
}
