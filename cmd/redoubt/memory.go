package main

import "runtime/debug"

// tuneMemory keeps an idle agent small: little is allocated once the peers are there, so collecting at half of the usual
// growth costs nothing that can be measured. A setting of the environment wins.
func tuneMemory() {
	if old := debug.SetGCPercent(50); old != 100 {
		debug.SetGCPercent(old)
	}
}
