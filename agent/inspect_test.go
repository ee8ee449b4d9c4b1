package agent

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// looping returns an agent of which there is nothing but the loop.
func looping(t *testing.T) *Agent {
	t.Helper()
	a := &Agent{inbox: make(chan func()), ended: make(chan struct{}), inspector: newInspector()}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(a.ended)
		for {
			select {
			case f := <-a.inbox:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-a.ended
	})
	return a
}

// TestStatusInATightLoop checks that programs that ask for the status all the time leave the loop most of its time, and that what
// each gets was made after it asked.
func TestStatusInATightLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const cost = 10 * time.Millisecond
		a := looping(t)
		var s shared[time.Time]
		made := 0
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				for ctx.Err() == nil {
					asked := time.Now()
					at, err := s.get(ctx, a.inspect, func() time.Time {
						made++
						at := time.Now()
						time.Sleep(cost)
						return at
					})
					if err == nil && at.Before(asked) {
						t.Errorf("asked at %v, and got what was made at %v", asked, at)
					}
				}
			})
		}
		var longest time.Duration
		for ctx.Err() == nil {
			time.Sleep(7 * time.Millisecond)
			begun := time.Now()
			if err := a.call(t.Context(), func() {}); err != nil {
				t.Fatal(err)
			}
			longest = max(longest, time.Since(begun))
		}
		all.Wait()
		if most := int(10 * time.Second / (cost * (1 + rest))); made > most+1 || made < most-1 {
			t.Errorf("%d were made, want about %d", made, most)
		}
		if longest > cost {
			t.Errorf("the loop was taken for %v", longest)
		}
	})
}

// TestInspectionsTakeTurns checks that no time passes between inspections that take none, and that those who give up harm nobody.
func TestInspectionsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := looping(t)
		begun := time.Now()
		for range 100 {
			if err := a.inspect(t.Context(), func() {}); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("it took %v", took)
		}
		if err := a.inspect(t.Context(), func() { time.Sleep(time.Second) }); err != nil {
			t.Fatal(err)
		}
		hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		var s shared[int]
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.get(hasty, a.inspect, func() int { return 1 }); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hasty: %v", err)
			}
		})
		synctest.Wait()
		for range 3 {
			all.Go(func() {
				if n, err := s.get(t.Context(), a.inspect, func() int { return 2 }); n != 2 || err != nil {
					t.Errorf("patient: %d, %v", n, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(begun); took != (1+rest)*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// TestInspectionsEndWithTheAgent checks that nobody waits for an agent that has stopped.
func TestInspectionsEndWithTheAgent(t *testing.T) {
	a := &Agent{inbox: make(chan func()), ended: make(chan struct{}), inspector: newInspector()}
	close(a.ended)
	var s shared[int]
	for range 2 {
		if _, err := s.get(t.Context(), a.inspect, func() int { return 1 }); !errors.Is(err, errEnded) {
			t.Error(err)
		}
	}
}
