package posture

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

const (
	// maxState is how many files the state of a package manager may have. With more it is not recognised.
	maxState = 4096
	// askAnyway is how long an answer is good while nothing seems to have changed.
	askAnyway = day
)

// stateID identifies the state of a package manager; zero: unknown.
type stateID [sha256.Size]byte

// lastAsked is the last answer of a package manager: each costs seconds of CPU time, and rarely differs from the one before.
type lastAsked struct {
	of      stateID
	at      time.Time
	pending []update
}

// ask returns what f did when it was last called, unless that was in another state or is long ago.
func (l *lastAsked) ask(now time.Time, of stateID, f func() ([]update, error)) ([]update, error) {
	if age := now.Sub(l.at); of != (stateID{}) && of == l.of && age >= 0 && age < askAnyway {
		return l.pending, nil
	}
	*l = lastAsked{}
	pending, err := f()
	if err != nil {
		return nil, err
	}
	*l = lastAsked{of, now, pending}
	return pending, nil
}

// aptState identifies what apt's answer depends on: the packages that are installed, the lists of those that there are, and the
// configuration. It does not read the files; all programs that change them change their sizes or times.
func aptState(files fs.FS) stateID {
	names := []string{"var/lib/dpkg/status"}
	for _, pattern := range []string{
		"var/lib/apt/lists/*", "etc/apt/apt.conf*", "etc/apt/apt.conf*/*", "etc/apt/preferences*", "etc/apt/preferences*/*",
		"etc/apt/sources*", "etc/apt/sources*/*",
	} {
		more, err := fs.Glob(files, pattern)
		if err != nil {
			return stateID{} // cannot happen: the patterns are constant
		}
		names = append(names, more...)
	}
	if len(names) > maxState {
		return stateID{}
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		s, err := fs.Stat(files, name)
		if err != nil {
			return stateID{}
		}
		fmt.Fprintf(h, "%q %d %d\n", name, s.Size(), s.ModTime().UnixNano())
	}
	return stateID(h.Sum(nil))
}
