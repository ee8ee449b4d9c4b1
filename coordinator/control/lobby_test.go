package control

import (
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOldestGuestGivesWay(t *testing.T) {
	l := newLobby(3, 1)
	var ends []net.Conn
	enter := func() *guest {
		a, b := net.Pipe()
		ends = append(ends, b)
		g, ok := l.enter(a, time.Now().Add(time.Hour))
		if !ok {
			t.Fatal("not let in")
		}
		return g
	}
	first, second, third := enter(), enter(), enter()
	third.admit() // leaves without being closed
	enter()
	if l.len() != 3 || l.dropped.Load() != 0 {
		t.Errorf("%d guests, %d dropped", l.len(), l.dropped.Load())
	}
	enter()
	if _, err := first.Write([]byte{1}); !errors.Is(err, net.ErrClosed) && err == nil {
		t.Error("the oldest guest is still there")
	}
	if l.len() != 3 || l.dropped.Load() != 1 {
		t.Errorf("%d guests, %d dropped", l.len(), l.dropped.Load())
	}
	second.drop()
	second.drop()
	if l.len() != 2 {
		t.Errorf("%d guests", l.len())
	}
	l.close()
	if l.len() != 0 {
		t.Errorf("%d guests after the end", l.len())
	}
	a, _ := net.Pipe()
	if _, ok := l.enter(a, time.Now()); ok {
		t.Error("let in after the end")
	}
	go func() { _, _ = ends[2].Read(make([]byte, 1)) }()
	if _, err := third.Write([]byte{1}); err != nil {
		t.Errorf("whoever was admitted is not a guest any more: %v", err)
	}
	third.drop()
}

func TestPatienceBoundsDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(1, 1)
		a, b := net.Pipe()
		defer b.Close()
		g, _ := l.enter(a, time.Now().Add(10*time.Second))
		start := time.Now()
		for _, until := range []time.Time{{}, start.Add(time.Hour)} {
			_ = g.SetDeadline(until)
			_ = g.SetReadDeadline(until)
			_ = g.SetWriteDeadline(until)
		}
		if _, err := g.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		g.admit()
		_ = g.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := g.Read(make([]byte, 1)); err == nil || time.Since(start) != time.Hour+10*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		g.drop()
	})
}

// TestSlotsAreForComputing checks that handshakes waiting for their peers hold no slots, even if there are more of them than
// slots.
func TestSlotsAreForComputing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLobby(100, 2)
		taken := func() int {
			l.slots.mu.Lock()
			defer l.slots.mu.Unlock()
			return 2 - l.slots.free
		}
		var all sync.WaitGroup
		var ends []net.Conn
		for range 50 {
			a, b := net.Pipe()
			ends = append(ends, b)
			g, _ := l.enter(a, time.Now().Add(time.Hour))
			all.Go(func() {
				_ = g.shake(func() error {
					if taken() > 2 {
						t.Errorf("%d slots are taken", taken())
					}
					_, err := g.Read(make([]byte, 1))
					if taken() == 0 {
						t.Error("computing without a slot")
					}
					return err
				})
			})
		}
		synctest.Wait()
		if taken() != 0 {
			t.Errorf("%d slots are held by handshakes that wait", taken())
		}
		for _, c := range ends {
			_, _ = c.Write([]byte{1})
		}
		all.Wait()
		if taken() != 0 {
			t.Errorf("%d slots are lost", taken())
		}
		l.close()
	})
}

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(3)
		var mu sync.Mutex
		var working, most, done int
		job := func() {
			mu.Lock()
			working++
			most = max(most, working)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			working--
			done++
			mu.Unlock()
		}
		for range 30 {
			p.submit(job)
		}
		start := time.Now()
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		if done != 30 || most != 3 || time.Since(start) != 10*time.Millisecond {
			t.Errorf("%d done by %d at once", done, most)
		}
		// Blocked jobs delay no others, however many there are, and end when they are unblocked.
		release := make(chan struct{})
		for range 100 {
			p.submit(func() { p.aside(func() { <-release }) })
		}
		done = 0
		p.submit(job)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if done != 1 {
			t.Error("a job waits behind others that wait")
		}
		close(release)
		synctest.Wait()
		if p.working != 0 {
			t.Errorf("%d workers are left", p.working)
		}
		p.close()
		p.submit(func() { t.Error("a job was done after the end") })
		p.close()
	})
}

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := pace{tokens: burst, at: time.Now()}
		start := time.Now()
		for range burst + 5 {
			p.wait(t.Context())
		}
		if d := time.Since(start); d != 5*time.Second {
			t.Errorf("%d requests in %v", burst+5, d)
		}
		time.Sleep(time.Hour)
		start = time.Now()
		for range burst {
			p.wait(t.Context())
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("a burst after a pause took %v", d)
		}
	})
}
