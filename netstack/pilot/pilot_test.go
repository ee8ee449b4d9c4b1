package pilot_test

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestDirectAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 0)
		defer w.close()
		a := w.addNode(w.net.Host("a", addr("192.0.2.1")), 1)
		b := w.addNode(w.net.Host("b", addr("198.51.100.1")), 2)
		w.meet()
		begun := time.Now()
		w.must(a.Ping(b.Addrs.V4))
		t.Log("first ping", time.Since(begun), a.view(b))
		time.Sleep(100 * time.Millisecond)
		if v := a.view(b); !v.Way.Direct() || v.Doubt {
			t.Errorf("way %+v", v)
		}
	})
}

func TestRelayFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.close()
		a := w.addNode(w.net.Host("a", addr("192.0.2.1")), 1)
		b := w.addNode(w.net.Host("b", addr("198.51.100.1")), 2)
		w.net.Cut(a.Host, b.Host)
		w.meet()
		begun := time.Now()
		w.must(a.Ping(b.Addrs.V4))
		t.Log("first ping", time.Since(begun), a.view(b))
		t.Log(a.client.States())
		if v := a.view(b); v.Way.Relay == 0 {
			t.Errorf("way %+v", v)
		}
		w.net.Heal(a.Host, b.Host)
		gap, lost := a.talk(b, 8*time.Second)
		t.Log("gap", gap, lost, a.view(b))
		if v := a.view(b); !v.Way.Direct() {
			t.Errorf("way %+v", v)
		}
		w.net.Cut(a.Host, b.Host)
		gap, lost = a.talk(b, 3*time.Second)
		t.Log("gap after cut", gap, lost, a.view(b))
		w.net.Heal(a.Host, b.Host)
		gap, lost = a.talk(b, 8*time.Second)
		t.Log("gap after heal", gap, lost, a.view(b))
	})
}
