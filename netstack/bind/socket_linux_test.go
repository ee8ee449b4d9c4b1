package bind

import (
	"bytes"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCorruptsSegments(t *testing.T) {
	for release, want := range map[string]bool{
		"": false, "6.18.44-fc": false, "6.19": false, "7.0.0": true, "7.0.2-6-pve": true, "7.1": true, "7.1.4-arch1-1": true,
		"7.1.5": false, "7.2-rc1": false, "7.10.1": false, "8.0": false, "7": true, "nonsense": false,
	} {
		if got := corruptsSegments(release); got != want {
			t.Errorf("Linux %q: %t", release, got)
		}
	}
}

// TestSendSingly checks that messages are sent one by one if the kernel or the network device does not split them.
func TestSendSingly(t *testing.T) {
	for _, c := range []struct {
		errno syscall.Errno
		stays bool
	}{{unix.EIO, false}, {unix.EMSGSIZE, true}} {
		u, far := &udp{}, &udp{}
		if _, _, err := u.OpenRuns(0); err != nil {
			t.Fatal(err)
		}
		fns, port, err := far.OpenRuns(0)
		if err != nil {
			t.Fatal(err)
		}
		s := u.v4.Load()
		call := newSending(s)
		once := call.call
		refused := false
		call.call = func(fd uintptr) { // as the kernel would, the first time
			if !refused {
				refused, call.errno = true, c.errno
				return
			}
			once(fd)
		}
		to, err := newUDPEndpoint(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
		if err != nil {
			t.Fatal(err)
		}
		msgs := [][]byte{[]byte("one,"), []byte("two,"), []byte("3")}
		if n := call.gather(msgs, true); n != 3 {
			t.Fatalf("%d messages go together", n)
		}
		if err := call.send(to, call.bytes, 4); err != nil {
			t.Fatal(err)
		}
		var got []byte
		for buf := make([]byte, RunSize); len(got) < 9; {
			n, _, _, err := fns[0](buf)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, buf[:n]...)
		}
		if !bytes.Equal(got, bytes.Join(msgs, nil)) || s.segments.Load() != c.stays {
			t.Errorf("after %v: got %q, and it goes on splitting: %t", c.errno, got, s.segments.Load())
		}
		u.Close()
		far.Close()
	}
}
