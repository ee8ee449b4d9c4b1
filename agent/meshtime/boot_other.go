//go:build !linux

package meshtime

import "time"

var started = time.Now()

// boot is Go's monotonic clock, which on some systems stands still while the machine sleeps.
func boot() time.Duration { return time.Since(started) }
