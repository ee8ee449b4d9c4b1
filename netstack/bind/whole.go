package bind

import (
	"errors"
	"fmt"
)

// Whole is a conn.Bind that can find out what size of message gets through.
type Whole interface {
	// Whole has what send sends leave in one piece each, and stay so (IP_PMTUDISC_PROBE): what is too long for the way is
	// lost. What others send meanwhile may be sent so too.
	Whole(send func() error) error
	// Fragment lets the network cut from now on what is sent over IPv4. Over IPv6 only this host may, and does where it was
	// told how large packets may be.
	Fragment() error
}

// Probes says whether the inner Bind is a Whole.
func (b *Bind) Probes() bool {
	_, ok := b.cfg.Inner.(Whole)
	return ok
}

// Whole is the inner Bind's.
func (b *Bind) Whole(send func() error) error {
	if w, ok := b.cfg.Inner.(Whole); ok {
		return w.Whole(send)
	}
	return fmt.Errorf("send in one piece: %w", errors.ErrUnsupported)
}

// Fragment is the inner Bind's.
func (b *Bind) Fragment() error {
	if w, ok := b.cfg.Inner.(Whole); ok {
		return w.Fragment()
	}
	return fmt.Errorf("send in fragments: %w", errors.ErrUnsupported)
}
