//go:build !linux && !darwin && !windows

package posture

const root = "/"

func programDirs() []string { return nil }

func environment() []string { return nil }

// OSVersion is not known on this system.
func OSVersion() string { return "" }

// Local returns the source of facts about this machine: none on this system.
func Local(Config) Source { return Source{} }
