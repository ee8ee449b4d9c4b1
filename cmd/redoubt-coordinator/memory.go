package main

import "runtime/debug"

// tuneMemory lets the heap grow by half, not to twice, of what is in use before garbage is collected, unless GOGC says otherwise.
// What is in use is mostly what connected nodes take, which stays: the other half would be resident for nothing.
func tuneMemory() {
	if old := debug.SetGCPercent(50); old != 100 {
		debug.SetGCPercent(old)
	}
}
