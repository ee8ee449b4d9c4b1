package bolt

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const lockName = "lock"

// Holder describes the process that has a directory open.
type Holder struct {
	PID     int       `json:"pid"`
	Host    string    `json:"host"`
	Since   time.Time `json:"since"`
	Command string    `json:"command"`
}

// HeldError means that another process has the directory open. Holder is zero if that process has not described itself yet.
type HeldError struct {
	Dir    string
	Holder Holder
}

func (e *HeldError) Error() string {
	if e.Holder.PID == 0 {
		return fmt.Sprintf("%s is in use by another process", e.Dir)
	}
	return fmt.Sprintf("%s is in use by process %d on %s since %s (%s); stop that one first",
		e.Dir, e.Holder.PID, e.Holder.Host, e.Holder.Since.Local().Format(time.DateTime), e.Holder.Command)
}

// Lock is the exclusive right to use a directory. It ends with the process, however that ends.
type Lock struct {
	file *os.File
}

// Acquire locks a directory, creating it if necessary (mode 0700). It does not wait: if the lock is held, the error is a
// *HeldError.
func Acquire(dir string) (*Lock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := tryLock(f); err != nil {
		defer f.Close()
		if errors.Is(err, errHeld) {
			return nil, &HeldError{Dir: dir, Holder: readHolder(f)}
		}
		return nil, fmt.Errorf("lock the data directory %s: %w", dir, err)
	}
	if err := writeHolder(f); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the data directory %s: %w", dir, err), f.Close())
	}
	return &Lock{file: f}, nil
}

// Release unlocks the directory. The lock file stays: removing it would let two processes lock different files.
func (l *Lock) Release() error { return errors.Join(unlock(l.file), l.file.Close()) }

var errHeld = errors.New("held by another process")

const (
	maxHolder  = 4096
	maxCommand = 512
)

func readHolder(f *os.File) (h Holder) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxHolder))
	if err != nil || json.Unmarshal(b, &h) != nil {
		return Holder{}
	}
	return h
}

func writeHolder(f *os.File) error {
	host, err := os.Hostname()
	if err != nil {
		host = "this machine"
	}
	command := strings.Join(os.Args, " ")
	if len(command) > maxCommand {
		command = command[:maxCommand] + "..."
	}
	b, err := json.Marshal(Holder{PID: os.Getpid(), Host: host, Since: time.Now().UTC(), Command: command})
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(append(b, '\n'), 0)
	return err
}
