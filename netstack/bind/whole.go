package bind

import (
	"errors"
	"fmt"
	"os"
)

// Whole is a conn.Bind that can probe which message sizes get through.
type Whole interface {
	// Whole makes messages sent by send leave unfragmented and stay so (IP_PMTUDISC_PROBE): messages too large for the path are
	// lost. Messages sent by others meanwhile may be affected too.
	Whole(send func() error) error
	// Fragment lets the network fragment what is sent over IPv4 from then on. Over IPv6 only this host can, and it does once it
	// has been told how large packets may be.
	Fragment() error
}

// Probes reports whether the inner Bind is a Whole.
func (b *Bind) Probes() bool {
	_, ok := b.cfg.Inner.(Whole)
	return ok
}

// Whole calls the inner Bind's Whole.
func (b *Bind) Whole(send func() error) error {
	if w, ok := b.cfg.Inner.(Whole); ok {
		return w.Whole(send)
	}
	return fmt.Errorf("send in one piece: %w", errors.ErrUnsupported)
}

// Fragment calls Fragment of the inner Bind and of all extra sockets, also those opened later.
func (b *Bind) Fragment() error {
	w, ok := b.cfg.Inner.(Whole)
	if !ok {
		return fmt.Errorf("send in fragments: %w", errors.ErrUnsupported)
	}
	errs := []error{w.Fragment()}
	for _, x := range b.extras.cut() {
		errs = append(errs, x.fragment())
	}
	return errors.Join(errs...)
}

// fragment calls the socket's Fragment. The socket may be closed meanwhile.
func (x *extra) fragment() error {
	w, ok := x.inner.(Whole)
	if !ok {
		return nil
	}
	if err := w.Fragment(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("send in fragments by socket %d: %w", x.number, err)
	}
	return nil
}
