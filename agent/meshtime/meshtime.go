// Package meshtime is the time that certificates are judged by.
//
//	heard from the coordinator?  yes: its time as last heard + CLOCK_BOOTTIME since then (so suspend counts)
//	                             no:  the system's clock, but never below the floor that the last run left on disk
//
// A machine whose clock is wrong, or is set back by somebody, so cannot be made to trust a certificate that ran out. The
// coordinator is believed in both directions: it is who issued the certificates.
package meshtime

import (
	"sync"
	"time"
)

// Clock is what a machine knows of time by itself.
type Clock interface {
	// Now is the system's clock, which anybody may have set.
	Now() time.Time
	// Boot is the time since some fixed moment. It never jumps, and counts suspend where the system can tell.
	Boot() time.Duration
}

// Time keeps mesh time. It is safe for concurrent use.
type Time struct {
	clock Clock

	mu    sync.Mutex
	floor time.Time
	born  time.Duration // the clock's Boot when the floor was read
	// base is mesh time at the moment when the clock's Boot was at.
	base  time.Time
	at    time.Duration
	heard bool
}

// New starts from the floor that an earlier run left, or the zero time.
func New(clock Clock, floor time.Time) *Time {
	return &Time{clock: clock, floor: floor, born: clock.Boot()}
}

// Floor is what mesh time will not be below in the next run: what coordinators said, and what passed since. The system's clock
// has no part in it: one that was wrong once, and ahead, would keep the node from its coordinator for as long.
func (t *Time) Floor() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.heard:
		return t.base.Add(t.clock.Boot() - t.at)
	case t.floor.IsZero():
		return t.floor
	}
	return t.floor.Add(t.clock.Boot() - t.born)
}

// Heard takes the coordinator's time. A coordinator that does not know the time (zero) says nothing.
func (t *Time) Heard(server time.Time) {
	if server.IsZero() || server.Unix() <= 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.at, t.heard = server, t.clock.Boot(), true
}

// Now is mesh time. Within one run it goes back only when the coordinator says so, or, before it was heard, never.
func (t *Time) Now() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heard {
		return t.base.Add(t.clock.Boot() - t.at)
	}
	now := t.clock.Now()
	if now.Before(t.floor) {
		now = t.floor
	}
	// A system clock that is set back must not give certificates a second life, nor make time stand still at the floor.
	boot := t.clock.Boot()
	if !t.base.IsZero() {
		if least := t.base.Add(boot - t.at); now.Before(least) {
			now = least
		}
	}
	t.base, t.at = now, boot
	return now.Round(0)
}
