// Package meshtime is the time by which certificates are judged.
//
//	heard from the coordinator?  yes: its time as last heard + CLOCK_BOOTTIME since then (so suspend counts)
//	                             no:  the system's clock, but never below the floor that the last run left on disk
//
// So a machine whose clock is wrong, or is set back by somebody, cannot be made to trust an expired certificate. The
// coordinator is believed in both directions: it is what issued the certificates.
package meshtime

import (
	"sync"
	"time"
)

// Clock is the time that a machine knows by itself.
type Clock interface {
	// Now returns the system's clock, which anybody may have set.
	Now() time.Time
	// Boot returns the time since some fixed moment. It never jumps, and counts suspend if the system can tell.
	Boot() time.Duration
}

// Time keeps mesh time. It is safe for concurrent use.
type Time struct {
	clock Clock

	mu    sync.Mutex
	floor time.Time
	born  time.Duration // the clock's Boot when the floor was read
	// base is mesh time at the moment when Boot returned at.
	base  time.Time
	at    time.Duration
	heard bool
}

// New starts from the floor that the previous run left, or the zero time.
func New(clock Clock, floor time.Time) *Time {
	return &Time{clock: clock, floor: floor, born: clock.Boot()}
}

// Floor returns the lower bound of mesh time for the next run: the coordinator's time and what has passed since. The
// system's clock plays no part in it: if it had once been wrong and ahead, the node could not talk to its coordinator until
// real time caught up.
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

// Heard takes the coordinator's time. Zero, from a coordinator that does not know the time, is ignored.
func (t *Time) Heard(server time.Time) {
	if server.IsZero() || server.Unix() <= 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.base, t.at, t.heard = server, t.clock.Boot(), true
}

// Now returns mesh time. Within one run it goes back only when the coordinator says so, and never before it was heard.
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
	// A system clock that is set back must not make certificates valid again, nor make time stand still at the floor.
	boot := t.clock.Boot()
	if !t.base.IsZero() {
		if least := t.base.Add(boot - t.at); now.Before(least) {
			now = least
		}
	}
	t.base, t.at = now, boot
	return now.Round(0)
}
