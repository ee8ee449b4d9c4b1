//go:build !linux && !darwin && !windows

package posture

const root = "/"

func programDirs() []string { return nil }

func environment() []string { return nil }

// OSVersion is not known on this system.
func OSVersion() string { return "" }

// Local is the source of what is known of this machine: nothing on this system.
func Local(Config) Source { return Source{} }
