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

// headroom is what every device may write before a packet: a virtio header or an address family.
const headroom = 16

// maxBadReads is how many reads in a row may fail before the device is given up.
const maxBadReads = 1024

// verdictRoom is how many packets are judged together.
const verdictRoom = 128

// waker can end a blocked Read: an *os.File, or a device that has deadlines of its own.
type waker interface{ SetReadDeadline(time.Time) error }

// longAgo as a deadline ends a Read at once.
var longAgo = time.Unix(1, 0)

// FilteredDevice is a Device whose packets a Hook judges. It owns the device that it wraps.
//
// It hides the device's up and down events: whether the engine runs is its owner's decision, and a session should not
// end because somebody sets the link down for a moment.
type FilteredDevice struct {
	inner  Device
	hook   BatchHook
	waker  waker // nil where the device cannot be woken
	events chan Event
	ended  chan struct{} // closed when the forwarder of events is gone
	close  func() error

	// pending says that there is something in injected, or that the deadline must be reset.
	pending  atomic.Bool
	mu       sync.Mutex
	injected [][]byte
	awoken   bool // the deadline is in the past

	// Of Write, so that verdicts need not be made anew for each batch.
	writing  sync.Mutex
	verdicts [verdictRoom]filter.Verdict

	badReads      atomic.Uint64
	injectDropped atomic.Uint64
}

var _ Device = (*FilteredDevice)(nil)

// Filtered puts f around inner.
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

// forward passes on changes of the MTU, until the device is closed. One that waits to be taken stands for all.
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

// Read gives packets that go to peers: what Inject left, and what the Hook lets the host send. A packet that may not
// pass has size zero, and the engine skips it: its buffer belongs to its place, so it cannot be closed up.
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

// Supers are the wrapped device's queues, of which only that comes which may pass.
func (d *FilteredDevice) Supers() []SuperReader {
	inner := Supers(d.inner)
	out := make([]SuperReader, len(inner))
	for i, q := range inner {
		out[i] = &filteredReader{d: d, inner: q, injects: i == 0}
	}
	return out
}

// filteredReader is one queue; the first is also where injected packets come from, since it is the one that is woken.
type filteredReader struct {
	d       *FilteredDevice
	inner   SuperReader
	injects bool
	bad     int // in a row
}

// maxDenied is how many packets that may not pass are taken at most by who does not wait, since others wait for that one.
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

// judgeSuper says whether a packet of the host may pass. One verdict is for all that a super-packet is.
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

// lasting says whether an error of the device's Read means that it is no use any more. All others are about one packet
// of the host that has no sense, or about the device's watch over its link; the engine would close itself for either.
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
			// The device writes checksums for the host, and does not know that UDP has no zero.
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

// refuse tells the host that a packet of it was denied.
func (d *FilteredDevice) refuse(v filter.Verdict, pkt []byte) {
	buf := v.AppendReply(make([]byte, headroom, headroom+packet.ReplyLimit), pkt)
	if len(buf) > headroom {
		// A host that does not get its answer times out instead; there is nobody to tell.
		_, _ = d.inner.Write([][]byte{buf}, headroom)
	}
}

// Write gives the host the packets of peers that the Hook lets in. It closes up bufs over those that it does not.
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

// Deliver gives the host a packet that was judged already, such as the reset of a flow that died.
func (d *FilteredDevice) Deliver(toLocal []byte) error {
	buf := make([]byte, headroom+len(toLocal))
	copy(buf[headroom:], toLocal)
	if _, err := d.inner.Write([][]byte{buf}, headroom); err != nil {
		return fmt.Errorf("give the host a packet: %w", err)
	}
	return nil
}

// MTU is the wrapped device's.
func (d *FilteredDevice) MTU() (int, error) { return d.inner.MTU() }

// Name is the wrapped device's.
func (d *FilteredDevice) Name() (string, error) { return d.inner.Name() }

// File is the wrapped device's.
func (d *FilteredDevice) File() *os.File { return d.inner.File() }

// BatchSize is the wrapped device's.
func (d *FilteredDevice) BatchSize() int { return d.inner.BatchSize() }

// Events tells of changes of the MTU; it is closed when the device is.
func (d *FilteredDevice) Events() <-chan Event { return d.events }

// Unwrap is the wrapped device.
func (d *FilteredDevice) Unwrap() Device { return d.inner }

// Close closes the wrapped device and waits until its events are over.
func (d *FilteredDevice) Close() error { return d.close() }

// Stats are what a FilteredDevice counts itself; verdicts are counted by the Hook.
type Stats struct {
	BadReads      uint64 // packets of the host that had no sense
	InjectDropped uint64 // packets that Inject had no room for
}

// Stats says what was counted so far.
func (d *FilteredDevice) Stats() Stats {
	return Stats{BadReads: d.badReads.Load(), InjectDropped: d.injectDropped.Load()}
}
