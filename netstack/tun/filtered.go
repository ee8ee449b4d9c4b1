package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/acl/packet"
)

// headroom is the room that any device may write to before a packet: a virtio header or an address family.
const headroom = 16

// maxBadReads is how many consecutive reads may fail before the device is given up.
const maxBadReads = 1024

// verdictRoom is how many packets are judged in one batch.
const verdictRoom = 128

// waker can interrupt a blocked Read: an *os.File, or a device that supports deadlines itself.
type waker interface{ SetReadDeadline(time.Time) error }

// longAgo, as a deadline, ends a Read at once.
var longAgo = time.Unix(1, 0)

// FilteredDevice is a Device whose packets are judged by a Hook. It owns the device that it wraps.
//
// It hides the device's up and down events: the engine's owner decides whether it runs, and sessions should not end because
// somebody sets the link down for a moment.
type FilteredDevice struct {
	inner  Device
	hook   BatchHook
	waker  waker // nil if the device cannot be woken
	events chan Event
	ended  chan struct{} // closed when the goroutine that forwards events has ended
	close  func() error

	// pending is set while there are packets in injected or the deadline must be cleared.
	pending  atomic.Bool
	mu       sync.Mutex
	injected [][]byte
	awoken   bool // the deadline is in the past

	// Used by Write, so that verdicts are not allocated for each batch.
	writing  sync.Mutex
	verdicts [verdictRoom]filter.Verdict

	badReads      atomic.Uint64
	injectDropped atomic.Uint64
}

var _ Device = (*FilteredDevice)(nil)

// Filtered wraps f around inner.
func Filtered(inner Device, f Hook) *FilteredDevice {
	d := &FilteredDevice{
		inner:  inner,
		hook:   batching(f),
		events: make(chan Event, 1),
		ended:  make(chan struct{}),
	}
	if w, ok := inner.(waker); ok {
		d.waker = w
	} else if file := inner.File(); file != nil {
		d.waker = file
	}
	d.close = sync.OnceValue(func() error {
		err := inner.Close()
		<-d.ended
		return err
	})
	go d.forward()
	return d
}

// forward passes on MTU changes until the device is closed. One pending event stands for all.
func (d *FilteredDevice) forward() {
	defer close(d.ended)
	defer close(d.events)
	for e := range d.inner.Events() {
		if e&EventMTUUpdate == 0 {
			continue
		}
		select {
		case d.events <- EventMTUUpdate:
		default:
		}
	}
}

// Read returns packets to peers: those given to Inject, and those that the Hook lets the host send. Denied packets have size
// zero, and the engine skips them: a buffer belongs to its index, so the gaps cannot be closed.
func (d *FilteredDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for bad := 0; ; {
		if d.pending.Load() {
			if n := d.takeInjected(bufs, sizes, offset); n > 0 {
				return n, nil
			}
		}
		n, err := d.inner.Read(bufs, sizes, offset)
		passed := d.judgeOut(bufs, sizes, offset, n)
		switch {
		case err == nil:
			bad = 0
			if passed > 0 {
				return n, nil
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			// Woken: there is something to inject.
		case passed > 0 || errors.Is(err, tun.ErrTooManySegments):
			return n, err
		default:
			d.badReads.Add(1)
			if bad++; lasting(err) || bad == maxBadReads {
				return 0, err
			}
		}
	}
}

// Supers returns the wrapped device's queues, limited to the packets that may pass.
func (d *FilteredDevice) Supers() []SuperReader {
	inner := Supers(d.inner)
	out := make([]SuperReader, len(inner))
	for i, q := range inner {
		out[i] = &filteredReader{d: d, inner: q, injects: i == 0}
	}
	return out
}

// filteredReader is one queue; the first also returns the injected packets, since it is the queue that gets woken.
type filteredReader struct {
	d       *FilteredDevice
	inner   SuperReader
	injects bool
	bad     int // consecutive bad reads
}

// maxDenied bounds how many denied packets a read without wait skips, since others wait for its caller.
const maxDenied = 64

// ReadSuper implements SuperReader.
func (r *filteredReader) ReadSuper(s *Super, wait bool) (bool, error) {
	for denied := 0; wait || denied < maxDenied; denied++ {
		if r.injects && r.d.pending.Load() && r.d.takeInjectedSuper(s) {
			return true, nil
		}
		switch ok, err := r.inner.ReadSuper(s, wait); {
		case err == nil && !ok:
			return false, nil
		case err == nil:
			r.bad = 0
			if r.d.judgeSuper(s) {
				return true, nil
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			// Woken: there is something to inject.
		default:
			r.d.badReads.Add(1)
			if r.bad++; lasting(err) || r.bad == maxBadReads {
				return false, err
			}
		}
	}
	return false, nil
}

// judgeSuper reports whether a packet from the host may pass. One verdict applies to all packets of a super-packet.
func (d *FilteredDevice) judgeSuper(s *Super) bool {
	var v filter.Verdict
	if count := s.Count(); count > 1 {
		v = d.hook.OutSegments(s.Packet(), count)
	} else {
		v = d.hook.Out(s.Packet())
	}
	if !v.Pass && v.Refuse {
		d.refuse(v, s.Packet())
	}
	return v.Pass
}

// lasting reports whether an error of the device's Read means that the device is unusable. All others concern a single invalid
// packet from the host, or the device's monitoring of its link; the engine would shut down for either.
func lasting(err error) bool {
	var file *os.PathError
	return errors.Is(err, os.ErrClosed) || errors.As(err, &file)
}

func (d *FilteredDevice) judgeOut(bufs [][]byte, sizes []int, offset, n int) (passed int) {
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		pkt := bufs[i][offset : offset+sizes[i]]
		v := d.hook.Out(pkt)
		if v.Pass {
			// The device computes checksums for the host, and does not know that UDP sends zero as 0xffff.
			packet.MendChecksum(pkt)
			passed++
			continue
		}
		sizes[i] = 0
		if v.Refuse {
			d.refuse(v, pkt)
		}
	}
	return passed
}

// refuse tells the host that one of its packets was denied.
func (d *FilteredDevice) refuse(v filter.Verdict, pkt []byte) {
	buf := v.AppendReply(make([]byte, headroom, headroom+packet.ReplyLimit), pkt)
	if len(buf) > headroom {
		// Without the reply the host times out instead; there is nobody to report the error to.
		_, _ = d.inner.Write([][]byte{buf}, headroom)
	}
}

// Write passes the packets of peers to the host that the Hook lets in. It compacts bufs over the denied ones.
func (d *FilteredDevice) Write(bufs [][]byte, offset int) (int, error) {
	kept := d.judgeIn(bufs, offset)
	if kept == 0 {
		return 0, nil
	}
	return d.inner.Write(bufs[:kept], offset)
}

func (d *FilteredDevice) judgeIn(bufs [][]byte, offset int) (kept int) {
	d.writing.Lock()
	defer d.writing.Unlock()
	for from := 0; from < len(bufs); from += verdictRoom {
		batch := bufs[from:min(from+verdictRoom, len(bufs))]
		verdicts := d.verdicts[:len(batch)]
		d.hook.InBatch(0, batch, offset, verdicts)
		for i, b := range batch {
			if verdicts[i].Pass {
				bufs[kept] = b
				kept++
			}
		}
	}
	return kept
}

// Deliver passes a packet to the host without judging it, such as the reset of a flow that died.
func (d *FilteredDevice) Deliver(toLocal []byte) error {
	buf := make([]byte, headroom+len(toLocal))
	copy(buf[headroom:], toLocal)
	if _, err := d.inner.Write([][]byte{buf}, headroom); err != nil {
		return fmt.Errorf("give the host a packet: %w", err)
	}
	return nil
}

// MTU returns the wrapped device's MTU.
func (d *FilteredDevice) MTU() (int, error) { return d.inner.MTU() }

// Name returns the wrapped device's name.
func (d *FilteredDevice) Name() (string, error) { return d.inner.Name() }

// File returns the wrapped device's file.
func (d *FilteredDevice) File() *os.File { return d.inner.File() }

// BatchSize returns the wrapped device's batch size.
func (d *FilteredDevice) BatchSize() int { return d.inner.BatchSize() }

// Events reports MTU changes; it is closed when the device is.
func (d *FilteredDevice) Events() <-chan Event { return d.events }

// Unwrap returns the wrapped device.
func (d *FilteredDevice) Unwrap() Device { return d.inner }

// Close closes the wrapped device and waits until its events have ended.
func (d *FilteredDevice) Close() error { return d.close() }

// Stats are the counters of a FilteredDevice itself; the Hook counts verdicts.
type Stats struct {
	BadReads      uint64 // invalid packets from the host
	InjectDropped uint64 // packets that Inject had no room for
}

// Stats returns the current counters.
func (d *FilteredDevice) Stats() Stats {
	return Stats{BadReads: d.badReads.Load(), InjectDropped: d.injectDropped.Load()}
}
