package osnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"golang.org/x/sys/unix"
)

// TestAgent is the process that the test below kills: it does the part of an agent that this package provides. Without the
// environment variable it does nothing.
func TestAgent(t *testing.T) {
	if os.Getenv("REDOUBT_OSNET_AGENT") == "" {
		return
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq("redoubt0")
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	n, err := New(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Up(configA()); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("up\n")
	buf := make([]byte, 65536)
	for {
		if _, err := unix.Read(fd, buf); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKilledAgentLeavesNothingInClear kills an agent with SIGKILL three times while a client keeps sending.
func TestKilledAgentLeavesNothingInClear(t *testing.T) {
	w := labtest.World(t)
	labtest.TUN(t)
	h := labtest.Host(t, w, "a", labtest.LAN(t, w, "lan"))
	furnish(t, h)
	before := state(t, h)
	agent := func() *lab.Process {
		p, err := h.Start(lab.Command{
			Name: "agent", Path: "/proc/self/exe", Args: []string{"-test.run=^TestAgent$"},
			Env: []string{"REDOUBT_OSNET_AGENT=1"},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WaitFor(t.Context(), "up\n"); err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := agent()
	whole := state(t, h)
	wire, err := h.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	sent := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			for _, to := range peerA.Slice() {
				_ = send(h, to) // fails while there is no agent
			}
		}
		sent <- n
	}()
	for range 3 {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		for _, to := range peerA.Slice() {
			if err := send(h, to); err == nil {
				t.Errorf("a packet to %v found a way without an agent", to)
			}
		}
		p = agent()
		same(t, "after the restart", whole, state(t, h))
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if n := <-sent; n < 10 {
		t.Errorf("the client has sent only %d times", n)
	}
	if _, err := h.Ping(t.Context(), h.Ports[0].LAN.V4.Addr()); err != nil { // the wire works
		t.Fatal(err)
	}
	for _, f := range overlayFrames(t, wire, h.Ports[0]) {
		t.Errorf("in clear on the wire: %s", f)
	}
	if err := cleanup(t, h); err != nil {
		t.Fatal(err)
	}
	same(t, "after the cleanup", before, state(t, h))
}

// BenchmarkUp measures an Up that finds everything in place, which is also what the keeper does when something in the firewall
// changes.
func BenchmarkUp(b *testing.B) {
	w := labtest.World(b)
	labtest.TUN(b)
	h := labtest.Host(b, w, "a", labtest.LAN(b, w, "lan"))
	tun := openTunnel(b, h, "redoubt0")
	defer tun.kill()
	n, _ := inNetwork(b, h)
	began := time.Now()
	if err := h.Do(func() error { return n.Up(configA()) }); err != nil {
		b.Fatal(err)
	}
	first := time.Since(began)
	var errs error
	for b.Loop() {
		errs = errors.Join(errs, n.Up(configA()))
	}
	if errs != nil {
		b.Fatal(fmt.Errorf("up again: %w", errs))
	}
	b.ReportMetric(float64(first.Microseconds()), "µs-first")
}
