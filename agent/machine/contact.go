package machine

import "time"

// Settle is how long after contact returned the grace goes on at most: as long as others may take to come back (they dial
// at least once a minute) and their new certificates to reach us (folded within another).
const Settle = 2 * time.Minute

// contact is what is known of the way to the coordinator.
type contact struct {
	open   bool // a stream is open
	serves bool // and it serves us: what the coordinator knows, we know
	url    string
	since  time.Time // when serves became true
	last   time.Time // when the coordinator was heard last on a stream that serves us
	before time.Time // last, as it was when serves became true
	lostAt time.Time // when the stream ended, or when we began to look for the first
	reason string    // why there is no stream
}

func (c *contact) serve(now time.Time) {
	if !c.serves {
		c.serves, c.since, c.before = true, now, c.last
	}
	c.last = now
}

func (c *contact) heard(now time.Time) {
	if c.serves {
		c.last = now
	}
}

// lose says whether there was something to lose.
func (c *contact) lose(now time.Time, reason string) bool {
	was := c.open
	if was || c.lostAt.IsZero() {
		c.lostAt = now
	}
	c.open, c.serves, c.url, c.reason = false, false, "", reason
	return was
}

// grace is which certificates are good although their time is over: those that were good at a moment, until another.
type grace struct {
	at, until time.Time
}

func (g grace) none(now time.Time) bool { return g.at.IsZero() || !now.Before(g.until) }

// grace says what holds now, if the netmap allows d.
func (c *contact) grace(d time.Duration) grace {
	if c.serves {
		if c.before.IsZero() {
			return grace{}
		}
		until := c.before.Add(d)
		if end := c.since.Add(Settle); end.Before(until) {
			until = end
		}
		return grace{c.before, until}
	}
	if c.last.IsZero() {
		return grace{}
	}
	return grace{c.last, c.last.Add(d)}
}
