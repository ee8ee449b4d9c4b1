package meshtime

import "time"

// System returns the machine's own clocks.
func System() Clock { return system{} }

type system struct{}

func (system) Now() time.Time      { return time.Now().Round(0) }
func (system) Boot() time.Duration { return boot() }
