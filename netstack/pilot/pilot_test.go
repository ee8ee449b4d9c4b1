package pilot_test

import (
	"testing"
	"testing/synctest"
	"time"
)

// Without relays, nodes that can reach each other use a direct path from the first answer on.
func TestDirectAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a, b := w.addNode(w.net.Host("a", addr("192.0.2.1")), 1), w.addNode(w.net.Host("b", addr("198.51.100.1")), 2)
		w.meet()
		begun := time.Now()
		w.must(a.Ping(b.Addrs.V4))
		if took := time.Since(begun); took > 40*time.Millisecond {
			t.Errorf("the first ping took %s: want a round trip for the session, and one for itself", took)
		}
		if v := a.view(b); !v.Way.Direct() || v.Doubt {
			t.Errorf("way %+v", v)
		}
	})
}

// Traffic leaves a cut path for the relay within a fraction of a second, and returns to it without losing a packet.
func TestCutAndHealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.close()
		a, b := w.addNode(w.net.Host("a", addr("192.0.2.1")), 1), w.addNode(w.net.Host("b", addr("198.51.100.1")), 2)
		w.net.Cut(a.Host, b.Host)
		w.meet()
		begun := time.Now()
		w.must(a.Ping(b.Addrs.V4))
		if took := time.Since(begun); took > 80*time.Millisecond {
			t.Errorf("the first ping took %s: want two round trips through the relay", took)
		}
		for _, c := range []struct {
			name   string
			change func()
			during time.Duration
			gap    time.Duration
			lost   bool
			direct bool
		}{
			{"healed", func() { w.net.Heal(a.Host, b.Host) }, 8 * time.Second, 60 * time.Millisecond, false, true},
			{"cut", func() { w.net.Cut(a.Host, b.Host) }, 3 * time.Second, 300 * time.Millisecond, true, false},
			{"healed again", func() { w.net.Heal(a.Host, b.Host) }, 8 * time.Second, 60 * time.Millisecond, false, true},
		} {
			c.change()
			gap, lost := a.talk(b, c.during)
			if gap > c.gap || (lost > 0) != c.lost {
				t.Errorf("%s: %s without an answer, want %s at most; %d lost", c.name, gap, c.gap, lost)
			}
			if v := a.view(b); v.Way.Direct() != c.direct || v.Doubt {
				t.Errorf("%s: %+v", c.name, v)
			}
			t.Logf("%s: %s without an answer, %d lost", c.name, gap, lost)
		}
	})
}

// A node that gets another address is followed at once.
func TestRoaming(t *testing.T) {
	for _, relays := range []int{0, 2} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, relays)
			defer w.close()
			a, b := w.addNode(w.net.Host("a", addr("192.0.2.1")), 1), w.addNode(w.net.Host("b", addr("198.51.100.1")), 2)
			w.meet()
			a.talk(b, time.Second)
			a.Host.SetAddrs(addr("192.0.2.77"))
			a.moved()
			gap, lost := a.talk(b, 2*time.Second)
			if gap > 200*time.Millisecond {
				t.Errorf("%d relays: %s without an answer, %d lost", relays, gap, lost)
			}
			if v := b.view(a); v.Way.Addr.Addr() != addr("192.0.2.77") || v.Doubt {
				t.Errorf("%d relays: the way back is %+v", relays, v)
			}
			t.Logf("%d relays: %s without an answer, %d lost", relays, gap, lost)
		})
	}
}
