package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Most live memory belongs to connected nodes and stays in use. What a burst of joins or changes needed on top of that stays
// resident after the burst, and the runtime returns little of it by itself: the heap may be three times as large as its live
// part. Collecting more often would cost most when there is most work.
const (
	memoryLook = 5 * time.Second
	// memoryBusy is the number of bytes allocated per memoryLook from which on the coordinator counts as busy.
	memoryBusy = 16 << 20
	// memorySpare is how much memory must be reclaimable, in bytes, to make returning it worthwhile; at least a quarter of the
	// live heap must be, too.
	memorySpare = 16 << 20
	// memoryGrowth is the GC percentage, twice the default, unless GOGC is set: most of the heap is long-lived, and scanning it
	// while nodes join or wait for updates delays them.
	memoryGrowth = 200
)

// memory describes the heap at one moment, in bytes.
type memory struct {
	live      uint64 // after the last collection
	resident  uint64 // live objects, garbage, and free memory not returned to the system
	allocated uint64 // since the program started
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

// spare reports whether to return memory to the system: much is reclaimable, and little was allocated since before.
func (m memory) spare(before memory) bool {
	return m.allocated-before.allocated < memoryBusy && m.resident > m.live+max(memorySpare, m.live/4)
}

// keepMemory periodically returns spare memory to the system until ctx ends.
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
