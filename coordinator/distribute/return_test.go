package distribute

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAcknowledgementLostWithTheStream checks that a wait ends when its node reconnects with the version that is waited for.
func TestAcknowledgementLostWithTheStream(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		a := w.enrol("tag:a")
		settle()
		c := attached(t, w, a)
		c.drain()
		c.ack()
		w.setPolicy(everything)
		settle()
		c.drain()
		c.session.Close()

		ctx, cancel := timeout(t, time.Hour)
		defer cancel()
		start := time.Now()
		done := make(chan Status, 1)
		go func() { done <- w.hub.AwaitAll(ctx, w.dir.Snapshot().Version()) }()
		synctest.Wait()
		if err := c.attach(); err != nil {
			t.Fatal(err)
		}
		if st := <-done; len(st.Laggards) != 0 || time.Since(start) > 0 {
			t.Errorf("waited %v for %+v", time.Since(start), st.Laggards)
		}
	})
}
