package relay

import (
	"context"
	crand "crypto/rand"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestUnreachableByUDP checks that a client rests while it knows no UDP address of a relay, and that it looks for one again.
func TestUnreachableByUDP(t *testing.T) {
	lookups := 0
	fails := func(context.Context, string) ([]netip.Addr, error) {
		lookups++
		return nil, errors.New("no such host")
	}
	for name, c := range map[string]struct {
		port    uint16
		resolve func(context.Context, string) ([]netip.Addr, error)
		lookups int // within eleven minutes
	}{
		"it has no UDP port":        {0, fails, 0},
		"its name is not found":     {3478, fails, 3},
		"names cannot be looked up": {3478, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lookups = 0
				x := New(Config{Rand: crand.Reader, Resolve: c.resolve})
				defer x.Close()
				x.SetRelays([]proto.Relay{{ID: 7, UDPPort: c.port, URLs: []string{"https://relay.example"}}})
				x.Warm(7)
				time.Sleep(time.Second)
				synctest.Wait()
				if rest := x.tick(time.Now()); rest < time.Minute {
					t.Errorf("it looks again after %s", rest)
				}
				time.Sleep(11 * time.Minute)
				synctest.Wait()
				if rest := x.tick(time.Now()); rest < time.Minute {
					t.Errorf("eleven minutes later it looks again after %s", rest)
				}
				if lookups != c.lookups {
					t.Errorf("%d lookups, want %d", lookups, c.lookups)
				}
			})
		})
	}
}

// TestNothingWaitsBesideASession checks that a packet does not wait for a session that was made while its sender found none:
// what waits is sent when a session begins, and the next one may be long after.
func TestNothingWaitsBesideASession(t *testing.T) {
	for name, begin := range map[string]func(*hop){
		"UDP":    func(h *hop) { h.route.Store(&route{}) },
		"stream": func(h *hop) { h.stream.Store(&runner{}) },
	} {
		h := &hop{}
		if !h.wait([]byte{1}, 1, 2) || len(h.waits) != 1 {
			t.Errorf("%s: nothing waits without a session", name)
		}
		begin(h)
		if h.wait([]byte{1}, 1, 2) || len(h.waits) != 1 {
			t.Errorf("%s: %d packets wait", name, len(h.waits))
		}
	}
}
