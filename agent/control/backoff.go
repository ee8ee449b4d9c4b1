package control

import "time"

const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 60 * time.Second
)

// Backoff says how long to wait between attempts. The zero value has seen no failure.
type Backoff struct{ last time.Duration }

// Fail is the pause after another failure: twice the one before, within bounds, and of that between a half and all of it, as
// random (0 to 1) has it, so that those who failed together do not come back together. A coordinator that named a time
// gets that at least, and up to half as much again.
func (b *Backoff) Fail(random float64, named time.Duration) time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	pause := time.Duration((0.5 + 0.5*random) * float64(b.last))
	if named > 0 {
		pause = max(pause, named+time.Duration(0.5*random*float64(named)))
	}
	return pause
}

// Reset forgets the failures.
func (b *Backoff) Reset() { b.last = 0 }
