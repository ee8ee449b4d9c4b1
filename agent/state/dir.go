package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// The files of a directory.
const (
	fileLock     = "lock"
	fileDevice   = "device.key"
	fileNode     = "node.key"
	fileJoin     = "join"
	fileIdentity = "identity"
	fileNetmap   = "netmap"
	fileLog      = "netmap.log"
	fileFloors   = "floors"
	fileWanted   = "wanted"
	filePort     = "port"
	fileFlows    = "flows"
	fileChecked  = "checked"
	fileRelay    = "relay.key"
)

// Dir is a state directory locked by this process. Its methods must be called from one goroutine.
type Dir struct {
	name    string
	fs      filesystem
	lock    *os.File
	wrapper Wrapper // nil: nothing is wrapped

	// The netmap's log: its size, that of the snapshot before it, and whether a failed write left part of a record.
	logSize, snapshotSize int64
	logBroken             bool
}

// InUseError reports that another process holds the directory.
type InUseError struct {
	Path   string
	Holder string // the other process, as far as it is known
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("state directory %s is in use by another agent (%s): stop that one first, or use another --state",
		e.Path, e.Holder)
}

// Open creates the directory if there is none, and locks it until Close.
func Open(path string, now time.Time) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("state directory %s: %w", path, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	if err := closeToOthers(abs); err != nil {
		return nil, err
	}
	lock, err := hold(filepath.Join(abs, fileLock), now)
	var busy *InUseError
	if errors.As(err, &busy) {
		busy.Path = abs
	}
	if err != nil {
		return nil, err
	}
	return &Dir{name: abs, fs: directory(abs), lock: lock}, nil
}

// closeToOthers removes other users' access to a directory of keys: service managers and people create directories that others
// may enter. It must be empty or already ours: restricting another program's directory, such as /tmp, would break the machine.
func closeToOthers(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if runtime.GOOS == "windows" || info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	ours := func(e os.DirEntry) bool { return e.Name() == fileLock }
	if len(list) > 0 && !slices.ContainsFunc(list, ours) {
		return fmt.Errorf("state directory %s contains other files and has mode %04o: give the agent a directory of its own", dir, info.Mode().Perm())
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("restrict access to the state directory: %w", err)
	}
	return nil
}

// hold locks the file at path and records in it who holds it.
func hold(path string, now time.Time) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	ok, err := tryLock(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if !ok {
		defer f.Close()
		b, _ := io.ReadAll(io.LimitReader(f, 200))
		holder := strings.TrimSpace(strings.ToValidUTF8(string(b), "?"))
		if holder == "" {
			holder = "it has not said who it is yet"
		}
		return nil, &InUseError{Holder: holder}
	}
	host, _ := os.Hostname()
	text := fmt.Sprintf("process %d on %s, since %s\n", os.Getpid(), host, now.UTC().Format(time.RFC3339))
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(text), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// Path returns the directory's absolute path.
func (d *Dir) Path() string { return d.name }

func (d *Dir) path(name string) string { return filepath.Join(d.name, name) }

// Close releases the directory. It may be called more than once.
func (d *Dir) Close() error {
	if d.lock == nil {
		return nil
	}
	err := errors.Join(unlock(d.lock), d.lock.Close())
	d.lock = nil
	return err
}
