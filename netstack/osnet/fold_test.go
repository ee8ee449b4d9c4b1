package osnet

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestFoldActsAtOnceAndThenGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan struct{})
		var at []time.Duration
		began := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			fold(events, FoldInterval, func() bool {
				at = append(at, time.Since(began))
				return len(at) != 5
			})
		}()
		// A burst, then one event within the interval that follows the burst, then quiet, then a single event; then one for
		// which act finds nothing to do, after which the next is acted on at once.
		for _, wait := range []time.Duration{0, 10, 10, 10, 300, 2000, 1000, 10} {
			time.Sleep(wait * time.Millisecond)
			events <- struct{}{}
		}
		close(events)
		<-done
		want := []time.Duration{0, 250, 500, 2330, 3330, 3340}
		if len(at) != len(want) {
			t.Fatalf("acted at %v, want %v ms", at, want)
		}
		for i, w := range want {
			if at[i] != w*time.Millisecond {
				t.Errorf("acted at %v, want %v ms", at, want)
				break
			}
		}
	})
}
