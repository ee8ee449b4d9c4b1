package session

import "time"

// spoke records that something authentic was sent.
func (p *Peer) spoke(now time.Time) {
	p.answerAt = time.Time{}
	p.traverse(now)
}

// heard records that something authentic arrived.
func (p *Peer) heard(now time.Time) {
	p.silentAt = time.Time{}
	p.traverse(now)
}

func (p *Peer) traverse(now time.Time) {
	if p.keepalive > 0 {
		p.persistentAt = now.Add(p.keepalive)
	}
}

// sent records that messages were sent over the current session.
func (p *Peer) sent(now time.Time, data bool, out []Effect) []Effect {
	p.spoke(now)
	if data && p.silentAt.IsZero() {
		p.silentAt = now.Add(silence + rekeyTimeout + p.delay())
	}
	c := p.current
	if c != nil && (c.counter.Load() > p.cfg.Limits.Rekey || (c.Initiator && now.Sub(c.made) > RekeyAfterTime)) {
		out = p.shake(now, need, out)
	}
	return out
}

// due reports whether a timer has expired, and stops it if so.
func due(now time.Time, t *time.Time) bool {
	if t.IsZero() || now.Before(*t) {
		return false
	}
	*t = time.Time{}
	return true
}

// tick handles all expired timers.
func (p *Peer) tick(now time.Time, out []Effect) []Effect {
	if due(now, &p.expireAt) {
		out = p.drop(now, func(s *Session) bool { return s.Alive(now) }, out)
	}
	if due(now, &p.retryAt) {
		out = p.retry(now, out)
	}
	if due(now, &p.moveAt) && p.Current(now) != nil && p.current.Pair != p.pairs[0] {
		out = p.shake(now, move, out)
	}
	if due(now, &p.answerAt) {
		out = p.keep(now, out)
		if p.again {
			p.again = false
			p.answerAt = now.Add(silence)
		}
	}
	if due(now, &p.silentAt) {
		out = p.shake(now, need, append(out, ForgetSource{}))
	}
	if due(now, &p.persistentAt) && p.keepalive > 0 {
		p.persistentAt = now.Add(p.keepalive)
		out = p.keep(now, out)
	}
	return out
}

// retry makes the next attempt of a series, or ends it.
func (p *Peer) retry(now time.Time, out []Effect) []Effect {
	switch {
	case p.why == none:
		return p.land(out)
	case len(p.pairs) == 0:
		p.why = none
		return p.land(out)
	case p.flight != nil:
		p.attempts++
		out = append(out, Unanswered{})
	}
	if p.why == move && p.attempts > maxMoveAttempts {
		p.why = none
		return p.land(out)
	}
	if p.attempts > maxAttempts {
		p.why, p.answerAt, p.again = none, time.Time{}, false
		return append(p.land(out), GiveUp{})
	}
	if p.flight != nil {
		out = append(out, ForgetSource{})
	}
	return p.initiate(now, out)
}
