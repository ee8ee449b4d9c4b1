package posture

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// gauge is a test collector: it reads what the test has set.
type gauge struct {
	mu    sync.Mutex
	value string
	slow  time.Duration
}

func (g *gauge) set(value string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.value = value
}

func (g *gauge) read(ctx context.Context) []Reading {
	g.mu.Lock()
	slow := g.slow
	g.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return []Reading{known("posture:gauge", g.value, "")}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		g := &gauge{value: "1", slow: 10 * time.Millisecond}
		events := make(chan Trigger)
		source := Source{
			Collectors: []Collector{{Plan{Every: time.Minute, On: Firewall}, g.read}},
			Changes: func(ctx context.Context) (<-chan Trigger, error) {
				context.AfterFunc(ctx, func() { close(events) })
				return events, nil
			},
		}
		var mu sync.Mutex
		var told []string
		w, err := Start(source, func() time.Duration { return time.Since(began) }, func(_ context.Context, r Report) {
			mu.Lock()
			defer mu.Unlock()
			for _, f := range r.Facts {
				told = append(told, f.Value)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		want := func(values ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, values) {
				t.Fatalf("at %v: %q, want %q", time.Since(began), told, values)
			}
		}
		time.Sleep(g.slow)
		want("1")
		g.set("2")
		time.Sleep(30 * time.Second)
		want("1")
		events <- Firewall
		time.Sleep(g.slow)
		want("1", "2")
		g.set("3")
		time.Sleep(time.Minute + g.slow)
		want("1", "2", "3")
		g.set("4")
		if err := w.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		want("1", "2", "3", "4")
		if facts, complete := w.Facts(); len(facts) != 1 || facts[0].Value != "4" || !complete {
			t.Errorf("%+v, %v", facts, complete)
		}
		w.Close()
		w.Close()
		if err := w.Refresh(t.Context()); err == nil {
			t.Error("a watch that was closed reads")
		}
	})
}

// TestHangingCollector checks that a hanging collector does not keep the watch from closing, and that what it read is forgotten.
func TestHangingCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		g := &gauge{value: "1"}
		w, err := Start(Source{Collectors: []Collector{{Plan{Every: time.Minute}, g.read}}}, func() time.Duration { return time.Since(began) },
			func(context.Context, Report) {})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		g.mu.Lock()
		g.slow = time.Hour
		g.mu.Unlock()
		time.Sleep(4 * time.Minute)
		if facts, _ := w.Facts(); len(facts) != 1 || facts[0].Value != "" || facts[0].Note == "" {
			t.Errorf("%+v", facts)
		}
		within, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Refresh(within); err == nil {
			t.Error("what hangs was read")
		}
		w.Close()
	})
}
