package osnet

import "time"

// fold calls act on events: on the first at once, and then once at the end of each interval in which more came. An act that
// returns false found nothing to do, and starts no interval. fold returns when events is closed.
func fold(events <-chan struct{}, interval time.Duration, act func() bool) {
	for range events {
		for held := act(); held; {
			if !gather(events, interval) {
				break
			}
			held = act()
		}
	}
}

// gather reports whether there were events within the interval.
func gather(events <-chan struct{}, interval time.Duration) bool {
	timer := time.NewTimer(interval)
	defer timer.Stop()
	some := false
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return false
			}
			some = true
		case <-timer.C:
			return some
		}
	}
}
