package sim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
)

// maxQueued bounds the packets queued on either side of a TUN; more are lost.
const maxQueued = 1024

// TUN is an in-memory TUN device. Its methods of tun.Device are for the engine; Send, Recv and Handle are the host's side.
type TUN struct {
	name   string
	events chan tun.Event

	mu       sync.Mutex
	mtu      int
	toEngine [][]byte
	toHost   [][]byte
	handle   func(pkt []byte)
	moved    signal
	deadline time.Time
	closed   bool
}

var _ tun.Device = (*TUN)(nil)

// NewTUN returns a device that is up.
func NewTUN(name string, mtu int) *TUN {
	t := &TUN{name: name, mtu: mtu, events: make(chan tun.Event, 4)}
	t.events <- tun.EventUp
	return t
}

// Read implements tun.Device.
func (t *TUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case t.closed:
			return 0, os.ErrClosed
		case past(t.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(t.toEngine) > 0:
			n := min(len(t.toEngine), len(bufs), batchSize)
			for i, p := range t.toEngine[:n] {
				sizes[i] = copy(bufs[i][offset:], p)
			}
			t.toEngine = slices.Delete(t.toEngine, 0, n)
			return n, nil
		}
		t.wait(t.deadline)
	}
}

// wait releases the lock until something changes or the time comes.
func (t *TUN) wait(until time.Time) {
	ch := t.moved.changed()
	t.mu.Unlock()
	defer t.mu.Lock()
	await(ch, until)
}

// Write implements tun.Device.
func (t *TUN) Write(bufs [][]byte, offset int) (int, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return 0, os.ErrClosed
	}
	handle := t.handle
	if handle == nil {
		for _, b := range bufs {
			if len(t.toHost) < maxQueued {
				t.toHost = append(t.toHost, bytes.Clone(b[offset:]))
			}
		}
		t.moved.fire()
	}
	t.mu.Unlock()
	if handle != nil {
		for _, b := range bufs {
			handle(bytes.Clone(b[offset:]))
		}
	}
	return len(bufs), nil
}

// Send sends a packet from the host. It reports whether there was room for it.
func (t *TUN) Send(pkt []byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.toEngine) >= maxQueued {
		return false
	}
	t.toEngine = append(t.toEngine, bytes.Clone(pkt))
	t.moved.fire()
	return true
}

// Recv waits for the next packet from the engine to the host.
func (t *TUN) Recv(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.moved.fire()
	})
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case len(t.toHost) > 0:
			p := t.toHost[0]
			t.toHost = slices.Delete(t.toHost, 0, 1)
			return p, nil
		case t.closed:
			return nil, os.ErrClosed
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		t.wait(time.Time{})
	}
}

// Handle passes packets for the host to f instead of Recv. f runs on the engine's goroutines, and may Send.
func (t *TUN) Handle(f func(pkt []byte)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handle = f
}

// SetReadDeadline ends a Read that is still waiting at that time.
func (t *TUN) SetReadDeadline(at time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return os.ErrClosed
	}
	t.deadline = at
	t.moved.fire()
	return nil
}

// SetMTU changes the MTU and notifies the engine.
func (t *TUN) SetMTU(mtu int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mtu = mtu
	if !t.closed {
		select {
		case t.events <- tun.EventMTUUpdate:
		default: // a pending event says the same
		}
	}
}

// MTU implements tun.Device.
func (t *TUN) MTU() (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mtu, nil
}

// Name implements tun.Device.
func (t *TUN) Name() (string, error) { return t.name, nil }

// File implements tun.Device: there is none.
func (t *TUN) File() *os.File { return nil }

// BatchSize implements tun.Device.
func (t *TUN) BatchSize() int { return batchSize }

// Events implements tun.Device.
func (t *TUN) Events() <-chan tun.Event { return t.events }

// Close implements tun.Device.
func (t *TUN) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	close(t.events)
	t.moved.fire()
	return nil
}

// PeerMade removes the finalizers of an engine's peer. They drain the peer's queues, and the runtime kills a program whose
// finalizer touches a channel of a synctest bubble, since finalizers run outside of it.
func (t *TUN) PeerMade(p *device.Peer) {
	queue := reflect.ValueOf(p).Elem().FieldByName("queue")
	for _, name := range []string{"inbound", "outbound"} {
		f := queue.FieldByName(name)
		if f.Kind() != reflect.Pointer {
			panic(fmt.Sprintf("sim: a WireGuard peer has no queue %s any more: see whether it still has finalizers", name))
		}
		//nolint:gosec // the field is not exported; it is only read
		q := reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().Interface()
		runtime.SetFinalizer(q, nil)
	}
}
