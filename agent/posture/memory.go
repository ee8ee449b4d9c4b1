package posture

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Memory is what survives a restart of the agent.
type Memory interface {
	// Load returns what was last saved; fs.ErrNotExist if nothing was.
	Load() ([]byte, error)
	Save(b []byte) error
}

// File is a Memory in a file. Losing it loses only ages, so it is replaced as a whole but not synced.
type File string

// Load implements Memory.
func (f File) Load() (b []byte, err error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(io.LimitReader(file, maxFile))
}

// Save implements Memory.
func (f File) Save(b []byte) error {
	next := filepath.Join(filepath.Dir(string(f)), "."+filepath.Base(string(f))+".next")
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, string(f))
}
