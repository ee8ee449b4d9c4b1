package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// What is in use is mostly what connected nodes take, and stays. What a burst of joins or of changes took beside it is resident
// for nothing once that is over, and the runtime gives back little of it by itself: its heap may be three times as large as what is
// in use. Collecting more often would cost most when there is most to do.
const (
	memoryLook = 5 * time.Second
	// memoryBusy is how many bytes are allocated in that time where something goes on.
	memoryBusy = 16 << 20
	// memorySpare is how much must be to be had for giving it back to be worth it; a quarter of what is in use at least.
	memorySpare = 16 << 20
	// memoryGrowth is how many percent of what is in use may be garbage until it is collected: twice what is usual, for what
	// there is most of stays, and looking at all of it while nodes join or wait to be told costs them. GOGC says something else.
	memoryGrowth = 200
)

// memory is what the heap is like at a moment, in bytes.
type memory struct {
	live      uint64 // that was in use when garbage was collected last
	resident  uint64 // that, garbage, and what is free and was not given back
	allocated uint64 // since the program began
}

func readMemory() memory {
	s := []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	at := func(i int) uint64 { return s[i].Value.Uint64() }
	return memory{live: at(0), allocated: at(1), resident: at(2) + at(3)}
}

// spare says whether memory should be given back: much of it is to be had, and nothing goes on since before.
func (m memory) spare(before memory) bool {
	return m.allocated-before.allocated < memoryBusy && m.resident > m.live+max(memorySpare, m.live/4)
}

// keepMemory gives memory back to the system, until ctx ends.
func keepMemory(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(memoryGrowth)
	}
	t := time.NewTicker(memoryLook)
	defer t.Stop()
	before := readMemory()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := readMemory()
		if now.spare(before) {
			debug.FreeOSMemory()
			now = readMemory()
		}
		before = now
	}
}
