package tun_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
)

var (
	here  = netip.MustParseAddr("100.64.0.1")
	there = netip.MustParseAddr("100.64.0.2")
)

// numbers judges echo requests by their number: it passes all but the denied ones.
type numbers struct {
	mu      sync.Mutex
	denied  map[uint16]bool
	refused map[uint16]bool
	in, out []uint16
}

func (h *numbers) verdict(seen *[]uint16, pkt []byte) filter.Verdict {
	p, err := sim.Parse(pkt)
	if err != nil {
		return filter.Verdict{}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	*seen = append(*seen, p.Number)
	return filter.Verdict{Pass: !h.denied[p.Number] && !h.refused[p.Number], Refuse: h.refused[p.Number]}
}

func (h *numbers) Out(pkt []byte) filter.Verdict { return h.verdict(&h.out, pkt) }
func (h *numbers) In(pkt []byte) filter.Verdict  { return h.verdict(&h.in, pkt) }

func echo(number uint16) []byte { return sim.Echo(here, there, 1, number, []byte("x")).Bytes() }

func buffers(n int) (bufs [][]byte, sizes []int) {
	for range n {
		bufs = append(bufs, make([]byte, 2048))
	}
	return bufs, make([]int, n)
}

// read makes one Read as the engine does, and returns the numbers of its packets.
func read(t *testing.T, d tun.Device) []uint16 {
	t.Helper()
	const offset = 16
	bufs, sizes := buffers(8)
	n, err := d.Read(bufs, sizes, offset)
	if err != nil {
		t.Fatal(err)
	}
	var got []uint16
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		p, err := sim.Parse(bufs[i][offset : offset+sizes[i]])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p.Number)
	}
	return got
}

func want(t *testing.T, got []uint16, numbers ...uint16) {
	t.Helper()
	if !slices.Equal(got, numbers) {
		t.Errorf("got %v, want %v", got, numbers)
	}
}

// inBubble runs f with a filtered device in virtual time.
func inBubble(t *testing.T, h *numbers, f func(*testing.T, *sim.TUN, *tun.FilteredDevice)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		inner := sim.NewTUN("sim0", 1420)
		d := tun.Filtered(inner, h)
		defer d.Close()
		f(t, inner, d)
	})
}

func TestReadGivesWhatPasses(t *testing.T) {
	h := &numbers{denied: map[uint16]bool{1: true, 3: true, 5: true, 6: true, 7: true, 8: true}}
	inBubble(t, h, func(t *testing.T, inner *sim.TUN, d *tun.FilteredDevice) {
		for n := uint16(1); n <= 9; n++ {
			inner.Send(echo(n))
		}
		want(t, read(t, d), 2, 4)
		want(t, read(t, d), 9) // a batch in which nothing passed is skipped
	})
}

func TestWriteGivesWhatPasses(t *testing.T) {
	h := &numbers{denied: map[uint16]bool{1: true, 3: true}}
	inBubble(t, h, func(t *testing.T, inner *sim.TUN, d *tun.FilteredDevice) {
		const offset = 16
		var bufs [][]byte
		for n := uint16(1); n <= 4; n++ {
			bufs = append(bufs, append(make([]byte, offset), echo(n)...))
		}
		if _, err := d.Write(bufs, offset); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Write([][]byte{append(make([]byte, offset), echo(3)...)}, offset); err != nil {
			t.Fatal(err)
		}
		var got []uint16
		for range 2 {
			b, err := inner.Recv(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			p, err := sim.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p.Number)
		}
		want(t, got, 2, 4)
		want(t, h.in, 1, 2, 3, 4, 3)
	})
}

func TestRefusedPacketIsAnswered(t *testing.T) {
	h := &numbers{refused: map[uint16]bool{1: true}}
	inBubble(t, h, func(t *testing.T, inner *sim.TUN, d *tun.FilteredDevice) {
		stack := sim.NewStack(inner, here)
		done := make(chan error)
		go func() {
			_, err := stack.Ping(t.Context(), there)
			done <- err
		}()
		go func() {
			bufs, sizes := buffers(1)
			_, err := d.Read(bufs, sizes, 16)
			done <- err
		}()
		if err := <-done; !errors.Is(err, sim.ErrProhibited) {
			t.Errorf("the host was told: %v", err)
		}
		d.Close()
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read on a closed device: %v", err)
		}
	})
}

func TestInjectWakesRead(t *testing.T) {
	h := &numbers{denied: map[uint16]bool{1: true}}
	inBubble(t, h, func(t *testing.T, inner *sim.TUN, d *tun.FilteredDevice) {
		got := make(chan []uint16)
		go func() {
			for range 3 {
				got <- read(t, d)
			}
		}()
		synctest.Wait()
		d.Inject(echo(1)) // denied for the host, but the host did not send it
		want(t, <-got, 1)
		synctest.Wait() // Read must block again, otherwise this never returns
		inner.Send(echo(2))
		want(t, <-got, 2)
		synctest.Wait()
		d.Inject(nil)
		d.Inject(echo(3))
		want(t, <-got, 3)
		want(t, h.out, 2)
	})
}

func TestInjectIsBounded(t *testing.T) {
	inBubble(t, &numbers{}, func(t *testing.T, _ *sim.TUN, d *tun.FilteredDevice) {
		const sent = 600
		for n := range uint16(sent) {
			d.Inject(echo(n))
		}
		got := 0
		for dropped := int(d.Stats().InjectDropped); got < sent-dropped; {
			got += len(read(t, d))
		}
		if got != 512 {
			t.Errorf("%d packets came out", got)
		}
	})
}

func TestDeliver(t *testing.T) {
	h := &numbers{denied: map[uint16]bool{7: true}}
	inBubble(t, h, func(t *testing.T, inner *sim.TUN, d *tun.FilteredDevice) {
		if err := d.Deliver(echo(7)); err != nil {
			t.Fatal(err)
		}
		if b, err := inner.Recv(t.Context()); err != nil || string(b) != string(echo(7)) {
			t.Errorf("got %x, %v", b, err)
		}
		want(t, h.in)
		d.Close()
		if err := d.Deliver(echo(7)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("on a closed device: %v", err)
		}
	})
}

func TestEvents(t *testing.T) {
	inBubble(t, &numbers{}, func(t *testing.T, inner *sim.TUN, d *tun.FilteredDevice) {
		inner.SetMTU(1280)
		synctest.Wait()
		if e := <-d.Events(); e != tun.EventMTUUpdate {
			t.Errorf("event %d", e)
		}
		if mtu, err := d.MTU(); mtu != 1280 || err != nil {
			t.Errorf("MTU %d, %v", mtu, err)
		}
		for range 2 {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, ok := <-d.Events(); ok {
			t.Error("an event after Close")
		}
		if tun.Unwrap(d) != tun.Device(inner) {
			t.Error("Unwrap gives another device")
		}
	})
}

// script is a device whose Read follows a script.
type script struct {
	*sim.TUN
	steps []step
}

type step struct {
	packets [][]byte
	err     error
}

func (s *script) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(s.steps) == 0 {
		return 0, os.ErrClosed
	}
	next := s.steps[0]
	s.steps = s.steps[1:]
	for i, p := range next.packets {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(next.packets), next.err
}

func TestReadErrors(t *testing.T) {
	strange := errors.New("unsupported virtio GSO type: 9")
	broken := &os.PathError{Op: "read", Path: "/dev/net/tun", Err: os.ErrInvalid}
	many := slices.Repeat([]step{{err: strange}}, 2000)
	for _, c := range []struct {
		name  string
		steps []step
		want  error
		bad   uint64
	}{
		{"one packet without sense", []step{{err: strange}, {err: strange}}, os.ErrClosed, 3},
		{"the device broke", []step{{err: fmt.Errorf("x: %w", broken)}}, os.ErrInvalid, 1},
		{"nothing else comes", many, strange, 1024},
		{"too many segments", []step{{err: wgtun.ErrTooManySegments}}, wgtun.ErrTooManySegments, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := tun.Filtered(&script{TUN: sim.NewTUN("sim0", 1420), steps: c.steps}, &numbers{})
			defer d.Close()
			bufs, sizes := buffers(4)
			if _, err := d.Read(bufs, sizes, 0); !errors.Is(err, c.want) {
				t.Errorf("error %v", err)
			}
			if got := d.Stats().BadReads; got != c.bad {
				t.Errorf("%d bad reads, want %d", got, c.bad)
			}
		})
	}
	// Packets returned with an error are judged like all others.
	h := &numbers{denied: map[uint16]bool{1: true}}
	d := tun.Filtered(&script{TUN: sim.NewTUN("sim0", 1420), steps: []step{
		{packets: [][]byte{echo(1), echo(2)}, err: wgtun.ErrTooManySegments},
	}}, h)
	defer d.Close()
	bufs, sizes := buffers(4)
	n, err := d.Read(bufs, sizes, 0)
	if n != 2 || sizes[0] != 0 || sizes[1] == 0 || !errors.Is(err, wgtun.ErrTooManySegments) {
		t.Errorf("read %d, sizes %v, error %v", n, sizes, err)
	}
}

// null is a device whose Read always returns one packet and whose Write accepts everything.
type null struct{ *sim.TUN }

func (null) Read(_ [][]byte, sizes []int, _ int) (int, error) { sizes[0] = 64; return 1, nil }
func (null) Write(bufs [][]byte, _ int) (int, error)          { return len(bufs), nil }

// open passes everything.
type open struct{}

func (open) Out([]byte) filter.Verdict { return filter.Verdict{Pass: true} }
func (open) In([]byte) filter.Verdict  { return filter.Verdict{Pass: true} }

func TestNoAllocations(t *testing.T) {
	d := tun.Filtered(null{sim.NewTUN("sim0", 1420)}, open{})
	defer d.Close()
	bufs, sizes := buffers(4)
	if n := testing.AllocsPerRun(100, func() { _, _ = d.Read(bufs, sizes, 16) }); n != 0 {
		t.Errorf("Read allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = d.Write(bufs, 16) }); n != 0 {
		t.Errorf("Write allocates %v times", n)
	}
}

func TestVirtualDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := sim.NewTUN("sim0", 1420)
		defer d.Close()
		bufs, sizes := buffers(1)
		begun := time.Now()
		if err := d.SetReadDeadline(begun.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(bufs, sizes, 0); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// piped is a device whose Read reads from a pipe, with the deadlines of a real file.
type piped struct {
	*sim.TUN
	file *os.File
}

// tunDevice hides that the simulated TUN supports deadlines itself.
type tunDevice struct{ tun.Device }

func (p piped) File() *os.File { return p.file }

func (p piped) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := p.file.Read(bufs[0][offset:])
	if err != nil {
		return 0, err
	}
	sizes[0] = n
	return 1, nil
}

func TestInjectWakesFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	d := tun.Filtered(tunDevice{piped{sim.NewTUN("sim0", 1420), r}}, &numbers{})
	defer d.Close()
	got := make(chan []uint16)
	go func() {
		defer close(got)
		for range 200 {
			got <- read(t, d)
		}
	}()
	for n := uint16(0); n < 200; n += 2 {
		d.Inject(echo(n))
		want(t, <-got, n)
		if _, err := w.Write(echo(n + 1)); err != nil {
			t.Fatal(err)
		}
		want(t, <-got, n+1)
	}
	if _, open := <-got; open {
		t.Error("more came than was sent")
	}
}

// all passes everything.
type all struct{}

func (all) Out([]byte) filter.Verdict { return filter.Verdict{Pass: true} }
func (all) In([]byte) filter.Verdict  { return filter.Verdict{Pass: true} }

// TestReadMendsChecksums checks that Read repairs the checksums of a device that writes zero where UDP over IPv6 requires
// 0xffff.
func TestReadMendsChecksums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := sim.NewTUN("sim0", 1420)
		d := tun.Filtered(inner, all{})
		defer d.Close()
		// From fd00:: to fd00::, ports 0, an 8-byte header and two bytes that make the sum all ones.
		udp := []byte{0, 0, 0, 0, 0, 10, 0, 0, 0, 0}
		v6 := append([]byte{0x60, 0, 0, 0, 0, 10, 17, 64, 0xfd, 23: 0, 24: 0xfd, 39: 0}, udp...)
		const rest = 2*0xfd00 - 0xffff + 17 + 10 + 10
		binary.BigEndian.PutUint16(v6[48:], 0xffff-rest)
		inner.Send(v6)
		bufs, sizes := buffers(8)
		if n, err := d.Read(bufs, sizes, 16); err != nil || n != 1 || sizes[0] != len(v6) {
			t.Fatalf("read %d packets, the first of %d bytes: %v", n, sizes[0], err)
		}
		if got := bufs[0][16+46 : 16+48]; got[0] != 0xff || got[1] != 0xff {
			t.Errorf("the checksum is %x", got)
		}
	})
}
