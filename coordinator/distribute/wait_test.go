package distribute

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// quarantine renews a node as if two machines used its key.
func (w *world) quarantine(id proto.NodeID) {
	w.t.Helper()
	old, _ := w.dir.Snapshot().Lookup(id)
	w.renew(id)
	w.renew(id)
	k, err := key.NewNode(w.random)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.dir.Renew(background, directory.Renewal{ID: id, Key: k.Public(), Ticket: old.NextTicket()}); !errors.Is(err, directory.ErrQuarantined) {
		w.t.Fatalf("%v, want quarantine", err)
	}
}

// endings are ways in which the status stops counting a node that is away.
var endings = map[string]func(t *testing.T, w *world, id proto.NodeID){
	"deleted": func(t *testing.T, w *world, id proto.NodeID) {
		if err := w.dir.DeleteNode(t.Context(), id, "test"); err != nil {
			t.Fatal(err)
		}
	},
	"locked": func(t *testing.T, w *world, id proto.NodeID) {
		if _, _, err := w.dir.CreateLock(t.Context(), directory.LockSpec{Kind: directory.LockNode, Subject: id.String()}); err != nil {
			t.Fatal(err)
		}
	},
	"quarantined": func(_ *testing.T, w *world, id proto.NodeID) { w.quarantine(id) },
	"lapsed": func(t *testing.T, w *world, _ proto.NodeID) {
		time.Sleep(lifetime + directory.Patience + time.Second)
		if _, err := w.dir.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	},
}

// TestNobodyWaitsForTheDead checks that a wait ends when its node stops counting, and does not start if it did so before.
func TestNobodyWaitsForTheDead(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				a := w.enrol("tag:a")
				settle()
				ctx, cancel := timeout(t, 24*time.Hour)
				defer cancel()
				done := make(chan Status)
				go func() { done <- w.hub.AwaitAll(ctx, w.dir.Snapshot().Version()) }()
				synctest.Wait()
				end(t, w, a)
				start := time.Now()
				if st := <-done; len(st.Laggards) != 0 || time.Since(start) != fold {
					t.Errorf("waited %v for %+v", time.Since(start), st.Laggards)
				}
				start = time.Now()
				w.hub.Await(ctx, []proto.NodeID{a}, w.dir.Snapshot().Version())
				if d := time.Since(start); d != 0 {
					t.Errorf("waited %v for a node that does not count", d)
				}
			})
		})
	}
}

// TestNobodyWaitsForWhatWasUndone checks that a wait for a change ends when the change is undone before the node is sent it.
func TestNobodyWaitsForWhatWasUndone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.setPolicy(everything)
		c := attached(t, w, w.enrol("tag:a"))
		other := attached(t, w, w.enrol("tag:b"))
		settle()
		for _, c := range []*client{c, other} {
			c.drain()
			c.ack()
		}
		await := func() <-chan Status {
			ctx, cancel := timeout(t, time.Hour)
			done := make(chan Status, 1)
			go func() {
				defer cancel()
				done <- w.hub.AwaitAll(ctx, w.dir.Snapshot().Version())
			}()
			return done
		}
		over := func(what string, done <-chan Status) {
			t.Helper()
			start := time.Now()
			if st := <-done; len(st.Laggards) != 0 || time.Since(start) > fold {
				t.Errorf("%s: waited %v for %+v", what, time.Since(start), st.Laggards)
			}
		}
		w.setPolicy("{}")
		settle()
		done := await()
		synctest.Wait()
		w.setPolicy(everything)
		over("nothing was sent", done)

		// The node may also lose what it was sent, and come back with what it had.
		before := c.nm
		w.setPolicy("{}")
		settle()
		other.drain()
		c.drain()
		c.session.Close()
		w.setPolicy(everything)
		settle()
		other.drain()
		other.ack()
		done = await()
		synctest.Wait()
		c.nm = before
		if err := c.attach(); err != nil {
			t.Fatal(err)
		}
		c.drain()
		over("it was lost", done)
	})
}
