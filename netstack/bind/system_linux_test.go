package bind_test

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
)

// openRuns opens a Bind over the system's sockets, and returns their receive functions, IPv4 first.
func openRuns(t *testing.T) (b *bind.Bind, fns []bind.RunFunc, port uint16) {
	t.Helper()
	b = bind.New(bind.Config{Bounds: path.Bounds{Loopback: true}})
	if _, ok := bind.AsRuns(b); !ok {
		t.Fatal("the system's sockets move no runs")
	}
	fns, port, err := b.OpenRuns(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b, fns, port
}

func loopback(t *testing.T, b conn.Bind, v6 bool, port uint16) conn.Endpoint {
	t.Helper()
	a := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if v6 {
		a = netip.IPv6Loopback()
	}
	ep, err := b.ParseEndpoint(netip.AddrPortFrom(a, port).String())
	if err != nil {
		t.Fatal(err)
	}
	return ep
}

// collect receives until it has want messages.
func collect(t *testing.T, fn bind.RunFunc, want int) (got [][]byte, from conn.Endpoint) {
	t.Helper()
	buf := make([]byte, bind.RunSize)
	for len(got) < want {
		n, size, ep, err := fn(buf)
		if err != nil {
			t.Fatal(err)
		}
		from = ep
		for rest := buf[:n]; len(rest) > 0; {
			m := rest[:min(size, len(rest))]
			rest = rest[len(m):]
			got = append(got, bytes.Clone(m))
		}
	}
	return got, from
}

func TestRuns(t *testing.T) {
	a, _, _ := openRuns(t)
	_, fns, port := openRuns(t)
	for family, fn := range fns {
		to := loopback(t, a, family == 1, port)
		for _, c := range []struct{ size, length int }{
			{1, 1},
			{100, 100},
			{100, 250},
			{100, 6400},
			{100, 6401},
			{1452, 45 * 1452},
			{1452, 45*1452 - 1},
			{1452, 46 * 1452},
			{32, 2048},
			{9000, 65000},
		} {
			run := make([]byte, c.length)
			for i := range run {
				run[i] = byte(i / c.size * 7)
			}
			if err := a.SendRun(run, c.size, to); err != nil {
				t.Fatalf("%d bytes in messages of %d: %v", c.length, c.size, err)
			}
			got, _ := collect(t, fn, (c.length+c.size-1)/c.size)
			if !bytes.Equal(bytes.Join(got, nil), run) {
				t.Errorf("%d bytes in messages of %d came as others", c.length, c.size)
			}
			for i, m := range got {
				if want := min(c.size, c.length-i*c.size); len(m) != want {
					t.Errorf("message %d of %d bytes has %d", i, want, len(m))
				}
			}
		}
	}
}

// TestRunsAreAnswered checks that a run is answered from the address that it came to.
func TestRunsAreAnswered(t *testing.T) {
	a, fromA, _ := openRuns(t)
	b, fromB, port := openRuns(t)
	for family := range fromA {
		if err := a.SendRun([]byte("hello, world"), 5, loopback(t, a, family == 1, port)); err != nil {
			t.Fatal(err)
		}
		got, from := collect(t, fromB[family], 3)
		if string(got[2]) != "ld" || !from.SrcIP().IsLoopback() {
			t.Errorf("got %q at %s", got, from.SrcIP())
		}
		for range 2 { // with a source, and without
			if err := b.SendRun([]byte("yes"), 3, from); err != nil {
				t.Fatal(err)
			}
			if got, _ := collect(t, fromA[family], 1); string(got[0]) != "yes" {
				t.Errorf("the answer is %q", got)
			}
			from.ClearSrc()
		}
	}
}

// TestRunsHaveNoCopies checks that the second copy of an initiation does not arrive, wherever in a run it is.
func TestRunsHaveNoCopies(t *testing.T) {
	a, _, _ := openRuns(t)
	_, fns, port := openRuns(t)
	to := loopback(t, a, false, port)
	initiation := append([]byte{1, 0, 0, 0}, make([]byte, 144)...)
	run := slices.Concat(initiation, initiation, []byte("next"))
	if err := a.SendRun(run, len(initiation), to); err != nil {
		t.Fatal(err)
	}
	if got, _ := collect(t, fns[0], 2); got[0][0] != 1 || string(got[1]) != "next" {
		t.Errorf("got %q", got)
	}
}

func TestRunsOfOthers(t *testing.T) {
	a, fns, port := openRuns(t)
	other := bind.New(bind.Config{})
	if err := a.SendRun([]byte("x"), 1, loopback(t, bind.New(bind.Config{Bounds: path.Bounds{Loopback: true}}), false, port)); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("to the endpoint of another: %v", err)
	}
	if _, _, err := other.OpenRuns(port); err == nil {
		t.Error("a port is open twice")
	}
	if err := a.SetMark(0); err != nil {
		t.Error(err)
	}
	done := make(chan error)
	go func() {
		_, _, _, err := fns[0](make([]byte, bind.RunSize))
		done <- err
	}()
	a.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("received by a closed socket: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestRunsDoNotAllocate(t *testing.T) {
	a, _, _ := openRuns(t)
	_, fns, port := openRuns(t)
	to := loopback(t, a, false, port)
	run, buf := make([]byte, 20*100), make([]byte, bind.RunSize)
	n := testing.AllocsPerRun(100, func() {
		if err := a.SendRun(run, 100, to); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(run); {
			n, _, _, err := fns[0](buf)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	})
	if n != 0 {
		t.Errorf("%g allocations a run", n)
	}
}
