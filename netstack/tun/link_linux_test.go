package tun

import "testing"

// A super-packet has room for one packet at least, whatever the MTU.
func TestSuperSize(t *testing.T) {
	for mtu := 1280; mtu <= 65535; mtu++ {
		if got := superSize(mtu); got < mtu || got > 1<<16 {
			t.Fatalf("MTU %d: %d bytes", mtu, got)
		}
	}
}
