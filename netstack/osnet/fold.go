package osnet

import "time"

// fold hands events on: the first at once, and those of the interval after it as one at its end, if there were any.
// It returns when events is closed. An event that nobody has taken stands for those that come after it.
func fold(events <-chan struct{}, interval time.Duration, emit func()) {
	for range events {
		emit()
		for held := true; held; {
			held = gather(events, interval)
			if held {
				emit()
			}
		}
	}
}

// gather says whether there were events within the interval.
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
