package machine

import "time"

// Settle is how long after contact returned the grace goes on at most: as long as others may take to come back (they dial
// at least once a minute) and their new certificates to reach us (folded within another).
const Settle = 2 * time.Minute

// maxPast is how many contacts that did not settle are told apart.
const maxPast = 8

// contact is what is known of the way to the coordinator.
type contact struct {
	open   bool // a stream is open
	serves bool // and it serves us: what the coordinator knows, we know
	url    string
	since  time.Time   // when serves became true
	last   time.Time   // when the coordinator was heard last on a stream that serves us
	past   []time.Time // last, as it was at the end of the contacts before this one, up to one that had settled
	lostAt time.Time   // when the stream ended, or when we began to look for the first
	reason string      // why there is no stream
}

func (c *contact) serve(now time.Time) {
	if !c.serves {
		if c.settled(c.last) {
			c.past = nil
		}
		if len(c.past) == maxPast {
			c.past = append(c.past[:1], c.past[2:]...) // the first is the one that had settled
		}
		if !c.last.IsZero() {
			c.past = append(c.past, c.last)
		}
		c.serves, c.since = true, now
	}
	c.last = now
}

func (c *contact) heard(now time.Time) {
	if c.serves {
		c.last = now
	}
}

// settled says whether the contact had lasted long enough, at a time, for the grace of earlier ones to be over.
func (c *contact) settled(at time.Time) bool { return !at.Before(c.since.Add(Settle)) }

// lose says whether there was something to lose.
func (c *contact) lose(now time.Time, reason string) bool {
	was := c.open
	if was || c.lostAt.IsZero() {
		c.lostAt = now
	}
	c.open, c.serves, c.url, c.reason = false, false, "", reason
	return was
}

// grace is which certificates are good although their time is over: those that were good at some moment, until another.
type grace []lease

type lease struct {
	at, until time.Time
}

// covers says whether a certificate whose time is over is good, and by which lease: the longest.
func (g grace) covers(begin, end, now time.Time) (l lease, ok bool) {
	for _, x := range g {
		if !x.at.Before(begin) && x.at.Before(end) && now.Before(x.until) && x.until.After(l.until) {
			l, ok = x, true
		}
	}
	return l, ok
}

// end is when the last of it ends.
func (g grace) end() (end time.Time) {
	for _, l := range g {
		if l.until.After(end) {
			end = l.until
		}
	}
	return end
}

// grace says what holds now, if the netmap allows d. A contact that was lost before it settled takes nothing away from those
// that earlier ones cover: a coordinator that comes and goes does them no harm.
func (c *contact) grace(d time.Duration, now time.Time) (g grace) {
	if !c.serves {
		if !c.last.IsZero() {
			g = append(g, lease{c.last, c.last.Add(d)})
		}
		if !c.settled(c.last) {
			for _, at := range c.past {
				g = append(g, lease{at, at.Add(d)})
			}
		}
		return g
	}
	if end := c.since.Add(Settle); now.Before(end) {
		for _, at := range c.past {
			until := at.Add(d)
			if end.Before(until) {
				until = end
			}
			g = append(g, lease{at, until})
		}
	}
	return g
}
