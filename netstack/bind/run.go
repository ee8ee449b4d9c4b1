package bind

import (
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/conn"
)

// Runs is a conn.Bind that also moves runs: back-to-back messages of one size, of which the last may be shorter. A run is moved
// with one system call.
type Runs interface {
	conn.Bind
	// OpenRuns is like Open, but for receiving runs.
	OpenRuns(port uint16) ([]RunFunc, uint16, error)
	// SendRun sends a run of messages of size bytes.
	SendRun(run []byte, size int, to conn.Endpoint) error
}

// RunFunc waits for a run. It returns how many bytes of buf the run fills, and the size of all messages but the last. A buffer
// of RunSize holds any run.
type RunFunc func(buf []byte) (n, size int, from conn.Endpoint, err error)

const (
	// RunSize is the maximum size of a received run.
	RunSize = 1 << 16
	// MaxRun and MaxRunCount are the maximum bytes and messages of a run to send: what fits a UDP datagram over IPv4, and what
	// Linux accepts.
	MaxRun      = 1<<16 - 1 - 20 - 8
	MaxRunCount = 64
)

// AsRuns returns b as Runs, and reports whether it moves runs.
func AsRuns(b conn.Bind) (Runs, bool) {
	if w, ok := b.(*Bind); ok {
		if _, ok := w.cfg.Inner.(Runs); !ok {
			return nil, false
		}
	}
	r, ok := b.(Runs)
	return r, ok
}

var _ Runs = (*Bind)(nil)

// OpenRuns implements Runs.
func (b *Bind) OpenRuns(port uint16) ([]RunFunc, uint16, error) {
	inner, ok := b.cfg.Inner.(Runs)
	if !ok {
		return nil, 0, fmt.Errorf("listen on UDP port %d for runs: %w", port, errors.ErrUnsupported)
	}
	fns, actual, closed, err := openAs(b, port, inner.OpenRuns)
	if err != nil {
		return nil, 0, err
	}
	for i, fn := range fns {
		fns[i] = b.receiveRuns(fn)
	}
	return append(fns, b.besides(closed)...), actual, nil
}

// receiveRuns wraps one of the inner Bind's functions, which is called by one goroutine.
func (b *Bind) receiveRuns(fn RunFunc) RunFunc {
	t := &table{bind: b}
	var room, rest []byte // the rest of a run in which the kernel joined unrelated messages
	var size int
	var from *Endpoint
	return func(buf []byte) (int, int, conn.Endpoint, error) {
		for {
			run := buf[:copy(buf, rest)]
			if len(rest) == 0 {
				n, each, ep, err := fn(buf)
				if err != nil || n == 0 {
					return 0, 0, nil, err
				}
				run, size, from = buf[:n], each, t.intern(ep)
				if from.refused {
					continue
				}
			}
			n, relay := b.leading(run, size)
			if n == len(run) {
				rest = nil
			} else if len(rest) == 0 {
				room = append(room[:0], run[n:]...)
				rest = room
			} else {
				rest = rest[n:]
			}
			run, each, e := run[:n], size, from
			if relay {
				run, each, e = b.unwrap(run, size, from)
			}
			if run = b.sift(run, each, e); len(run) > 0 {
				return len(run), each, e, nil
			}
		}
	}
}

// SendRun implements Runs.
func (b *Bind) SendRun(run []byte, size int, ep conn.Endpoint) error {
	if c, ok := ep.(*Course); ok && c.bind == b {
		return c.sendRun(run, size)
	}
	e, ok := ep.(*Endpoint)
	if !ok || e.bind != b {
		return conn.ErrWrongEndpointType
	}
	return b.sendRunTo(run, size, e)
}

func (b *Bind) sendRunTo(run []byte, size int, e *Endpoint) error {
	if e.via != (Via{}) {
		return b.carry(run, size, e)
	}
	out, err := b.through(e)
	if err != nil {
		return err
	}
	inner, ok := out.(Runs)
	if !ok {
		return fmt.Errorf("send a run: %w", errors.ErrUnsupported)
	}
	to, sourced, err := e.inner()
	if err != nil {
		return err
	}
	err = inner.SendRun(run, size, to)
	if err == nil || !sourced || !lostSource(err) {
		return err
	}
	e.ClearSrc() // as in sendTo
	if to, _, err = e.inner(); err != nil {
		return err
	}
	return inner.SendRun(run, size, to)
}

// unpack turns a function that returns runs into one that returns messages. It is called by one goroutine.
func unpack(run RunFunc) conn.ReceiveFunc {
	buf := make([]byte, RunSize)
	var rest []byte
	var size int
	var from conn.Endpoint
	return func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		if len(rest) == 0 {
			n, each, ep, err := run(buf)
			if err != nil {
				return 0, err
			}
			rest, size, from = buf[:n], each, ep
		}
		n := 0
		for ; n < len(bufs) && len(rest) > 0; n++ {
			msg := rest[:min(size, len(rest))]
			rest = rest[len(msg):]
			eps[n] = from
			if sizes[n] = copy(bufs[n], msg); sizes[n] < len(msg) {
				sizes[n] = 0 // half a message is useless
			}
		}
		return n, nil
	}
}
