package control

import "time"

const (
	backoffMin = 200 * time.Millisecond
	backoffMax = 60 * time.Second
)

// Backoff computes how long to wait between attempts. The zero value has seen no failure.
type Backoff struct{ last time.Duration }

// Fail returns the pause after another failure: random (0 to 1) times a bound that doubles with each failure, so that nodes
// that failed together come back spread out. If the coordinator named a time, the pause is at least that, plus up to half as
// much again.
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
