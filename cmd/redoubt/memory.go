package main

import "runtime/debug"

// tuneMemory keeps an idle agent small: little is allocated once the peers are known, so collecting at half the usual heap growth
// has no measurable cost. A GOGC setting in the environment takes precedence.
func tuneMemory() {
	if old := debug.SetGCPercent(50); old != 100 {
		debug.SetGCPercent(old)
	}
}
