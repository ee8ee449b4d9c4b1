package control

import "time"

const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 60 * time.Second
)

// Backoff says how long to wait between attempts. The zero value has seen no failure.
type Backoff struct{ last time.Duration }

// Fail is the pause after another failure: some time below a bound that doubles, as random (0 to 1) has it, so that those who
// failed together come back spread out. A coordinator that named a time gets that at least, and up to half as much again.
func (b *Backoff) Fail(random float64, named time.Duration) time.Duration {
	b.last = min(max(2*b.last, backoffMin), backoffMax)
	pause := time.Duration(random * float64(b.last))
	if named > 0 {
		pause = max(pause, named+time.Duration(0.5*random*float64(named)))
	}
	return pause
}

// Reset forgets the failures.
func (b *Backoff) Reset() { b.last = 0 }
