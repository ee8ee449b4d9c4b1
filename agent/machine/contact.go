package machine

import "time"

// Settle is how long the grace goes on at most after contact has returned: as long as others may take to come back (they
// dial at least once a minute) and their new certificates to reach us (merged within another minute).
const Settle = 2 * time.Minute

// maxPast is how many contacts that did not settle are remembered.
const maxPast = 8

// contact is what is known of the connection to the coordinator.
type contact struct {
	open   bool // a stream is open
	serves bool // it serves us: we are told what the coordinator knows
	url    string
	since  time.Time   // when serves became true
	last   time.Time   // when the coordinator was last heard on a stream that serves us
	past   []time.Time // last, at the end of each earlier contact, back to the latest that had settled
	lostAt time.Time   // when the stream ended, or when we began to look for the first one
	reason string      // why there is no stream
}

func (c *contact) serve(now time.Time) {
	if !c.serves {
		if c.settled(c.last) {
			c.past = nil
		}
		if len(c.past) == maxPast {
			c.past = append(c.past[:1], c.past[2:]...) // the first one had settled
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

// settled reports whether, at a time, the contact had lasted long enough for earlier grace to be over.
func (c *contact) settled(at time.Time) bool { return !at.Before(c.since.Add(Settle)) }

// lose reports whether there was a stream to lose.
func (c *contact) lose(now time.Time, reason string) bool {
	was := c.open
	if was || c.lostAt.IsZero() {
		c.lostAt = now
	}
	c.open, c.serves, c.url, c.reason = false, false, "", reason
	return was
}

// grace says which expired certificates are still good: those that were valid at a lease's moment, until that lease ends.
type grace []lease

type lease struct {
	at, until time.Time
}

// covers reports whether an expired certificate is good, and by which lease: the one that ends last.
func (g grace) covers(begin, end, now time.Time) (l lease, ok bool) {
	for _, x := range g {
		if !x.at.Before(begin) && x.at.Before(end) && now.Before(x.until) && x.until.After(l.until) {
			l, ok = x, true
		}
	}
	return l, ok
}

// end returns when the last lease ends.
func (g grace) end() (end time.Time) {
	for _, l := range g {
		if l.until.After(end) {
			end = l.until
		}
	}
	return end
}

// grace returns what holds at the moment, if the netmap allows d. A contact that was lost before it settled takes nothing
// away from certificates that earlier ones cover: a coordinator that comes and goes does no harm.
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
