package bind

import (
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/conn"
)

// Runs is a conn.Bind that also moves runs: messages of one size that lie one after the other, of which the last may be
// shorter. A run is moved by one system call.
type Runs interface {
	conn.Bind
	// OpenRuns is Open for who takes runs.
	OpenRuns(port uint16) ([]RunFunc, uint16, error)
	// SendRun sends a run of messages of size bytes.
	SendRun(run []byte, size int, to conn.Endpoint) error
}

// RunFunc waits for a run. It gives how many bytes of buf it takes, and the size of all messages but the last. A buffer of
// RunSize holds any.
type RunFunc func(buf []byte) (n, size int, from conn.Endpoint, err error)

const (
	// RunSize is how long a run is that is received, at most.
	RunSize = 1 << 16
	// MaxRun and MaxRunCount are how many bytes and messages a run has that is sent, at most: what fits a UDP datagram
	// over IPv4, and what Linux takes.
	MaxRun      = 1<<16 - 1 - 20 - 8
	MaxRunCount = 64
)

// AsRuns says whether b moves runs.
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
	fns, actual, err := openAs(b, port, inner.OpenRuns)
	if err != nil {
		return nil, 0, err
	}
	for i, fn := range fns {
		fns[i] = b.receiveRuns(fn)
	}
	return fns, actual, nil
}

// receiveRuns wraps one of the inner Bind's functions, which one goroutine calls.
func (b *Bind) receiveRuns(fn RunFunc) RunFunc {
	t := &table{bind: b}
	return func(buf []byte) (int, int, conn.Endpoint, error) {
		for {
			n, size, from, err := fn(buf)
			if err != nil || n == 0 {
				return 0, 0, nil, err
			}
			e := t.intern(from)
			if e.refused {
				continue
			}
			b.spoilCopies(buf[:n], size)
			return n, size, e, nil
		}
	}
}

// spoilCopies makes something that is not a WireGuard message of each handshake initiation in a run that came before.
func (b *Bind) spoilCopies(run []byte, size int) {
	for len(run) > 0 {
		msg := run[:min(size, len(run))]
		run = run[len(msg):]
		if isInitiation(msg) && !b.once.first(msg) {
			msg[0] = 0
		}
	}
}

// SendRun implements Runs.
func (b *Bind) SendRun(run []byte, size int, ep conn.Endpoint) error {
	e, ok := ep.(*Endpoint)
	if !ok || e.bind != b {
		return conn.ErrWrongEndpointType
	}
	inner, ok := b.cfg.Inner.(Runs)
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
