package echo

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestPingThisMachine(t *testing.T) {
	for _, text := range []string{"127.0.0.1", "::1"} {
		a := netip.MustParseAddr(text)
		s, err := Open(a)
		if err != nil {
			if errors.Is(err, os.ErrPermission) || a.Is6() {
				t.Logf("%s: %v", text, err)
				continue
			}
			t.Fatal(err)
		}
		defer s.Close()
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			rtt, err := s.Ping(ctx, a)
			cancel()
			if err != nil || rtt <= 0 {
				t.Errorf("ping %s: %v, %v", text, rtt, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Ping(ctx, a); err != nil && !errors.Is(err, ErrLost) {
			t.Errorf("ping that was given up: %v", err)
		}
	}
}
