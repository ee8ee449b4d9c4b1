package osnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	code := labtest.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var (
	meshA = proto.Mesh{
		ID: "a", Domain: "a.internal",
		V4: netip.MustParsePrefix("100.80.0.0/16"), V6: netip.MustParsePrefix("fd12:3456:789a::/48"),
	}
	ownA  = proto.Addrs{V4: netip.MustParseAddr("100.80.0.5"), V6: netip.MustParseAddr("fd12:3456:789a::5")}
	peerA = proto.Addrs{V4: netip.MustParseAddr("100.80.0.9"), V6: netip.MustParseAddr("fd12:3456:789a::9")}
)

func configA() Config { return Config{Interface: "redoubt0", Addrs: ownA, Mesh: meshA, MTU: 1280} }

// tunnel is a TUN device with no engine behind it: packets to it can be read.
type tunnel struct{ file *os.File }

func openTunnel(t testing.TB, h *lab.Host, name string) *tunnel {
	t.Helper()
	labtest.TUN(t)
	tun := &tunnel{}
	err := h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return os.NewSyscallError("open /dev/net/tun", err)
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return errors.Join(os.NewSyscallError("TUNSETIFF", err), unix.Close(fd))
		}
		tun.file = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tun.kill)
	return tun
}

// kill closes the device, as the death of its agent does.
func (tun *tunnel) kill() { _ = tun.file.Close() }

// read returns the addresses of the next packet routed to the device.
func (tun *tunnel) read(wait time.Duration) (src, dst netip.Addr, err error) {
	if err := tun.file.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return src, dst, err
	}
	b := make([]byte, 65536)
	if _, err := tun.file.Read(b); err != nil {
		return src, dst, err
	}
	if b[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), nil
	}
	return netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40])), nil
}

// next returns the source of the next packet routed to the device for an address.
func (tun *tunnel) next(t *testing.T, to netip.Addr) netip.Addr {
	t.Helper()
	for {
		src, dst, err := tun.read(30 * time.Second)
		if err != nil {
			t.Fatalf("wait for a packet to %v: %v", to, err)
		}
		if dst == to {
			return src
		}
	}
}

// led lists the packets that were routed to the device, without the kernel's own multicast.
func (tun *tunnel) led(t *testing.T) []string {
	t.Helper()
	var out []string
	for {
		src, dst, err := tun.read(20 * time.Millisecond)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if !dst.IsMulticast() {
			out = append(out, fmt.Sprintf("%v to %v", src, dst))
		}
	}
}

// inNetwork returns a Network in the host's namespace. kill leaves the kernel state as a crash does.
func inNetwork(t testing.TB, h *lab.Host) (n *Host, kill func()) {
	t.Helper()
	err := h.Do(func() error {
		var err error
		n, err = New(slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	n.resolv = nil
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, func() {
		n.life.Lock()
		defer n.life.Unlock()
		if n.closed {
			return
		}
		if err := n.release(); err != nil {
			t.Error(err)
		}
	}
}

func up(t *testing.T, h *lab.Host, n *Host, c Config) {
	t.Helper()
	if err := h.Do(func() error { return n.Up(c) }); err != nil {
		t.Fatal(err)
	}
	if got := n.Problems(); len(got) != 0 {
		t.Fatalf("problems: %q", got)
	}
}

// cleanup calls Down as an agent does that starts after a crash. State of a running agent stays, and is reported.
func cleanup(t *testing.T, h *lab.Host) error {
	t.Helper()
	return h.Do(func() error {
		n, err := New(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return errors.Join(n.Down(), n.Close())
	})
}

// state returns everything in a host's network that Up may change, as text.
func state(t *testing.T, h *lab.Host) string {
	t.Helper()
	s, err := h.NetworkState()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually retries f until the kernel has caught up.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func same(t *testing.T, what, before, after string) {
	t.Helper()
	if before == after {
		return
	}
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, line := range b {
		if !slices.Contains(a, line) {
			t.Errorf("%s: gone: %s", what, line)
		}
	}
	for _, line := range a {
		if !slices.Contains(b, line) {
			t.Errorf("%s: new:  %s", what, line)
		}
	}
	if !t.Failed() {
		t.Errorf("%s: something is there twice:\n%s", what, after)
	}
}
