package posture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
)

const (
	// maxFile is how large a file may be. Larger ones are not read.
	maxFile = 1 << 20
	// maxOutput is how much a program may print.
	maxOutput = 4 << 20
	// maxRun is how long a program may take.
	maxRun = time.Minute
)

// Host is the machine as collectors see it.
type Host struct {
	// Files are all files of the machine, by paths without the leading slash.
	Files fs.FS
	// Run runs a program of the system, by name, and returns its standard output. If the program does not exist the error is
	// fs.ErrNotExist.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Filters returns the nftables chains.
	Filters func() ([]osnet.FilterChain, error)
	// Now returns the system's clock, which sets the times of files.
	Now func() time.Time
}

// System returns the host that this program runs on.
func System() Host {
	return Host{Files: os.DirFS(root), Run: run, Filters: osnet.Filters, Now: time.Now}
}

// read reads a file.
func (h Host) read(name string) ([]byte, error) {
	f, err := h.Files.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading only
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("/%s has more than %d bytes", name, maxFile)
	}
	return b, nil
}

// head returns the beginning of a file; nil if it cannot be read.
func (h Host) head(name string, most int64) []byte {
	f, err := h.Files.Open(name)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // opened for reading only
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return nil
	}
	return b
}

// text returns a file without surrounding white space; empty if it cannot be read.
func (h Host) text(name string) string {
	b, err := h.read(name)
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}

// exists reports whether a file exists.
func (h Host) exists(name string) bool {
	_, err := fs.Stat(h.Files, name)
	return err == nil
}

// run is Host.Run. It looks for programs only in the system's own directories.
func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := find(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, maxRun)
	defer cancel()
	out := &capped{most: maxOutput}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = filepath.FromSlash("/")
	cmd.Env = append(environment(), "LC_ALL=C")
	cmd.Stdout = out
	cmd.WaitDelay = time.Second
	if err = start(cmd); err == nil {
		err = cmd.Wait()
	}
	switch {
	case out.over:
		return nil, fmt.Errorf("%s prints more than %d bytes", name, maxOutput)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s takes longer than %v", name, maxRun)
	case err != nil:
		return out.Bytes(), fmt.Errorf("%s: %w", name, err)
	}
	return out.Bytes(), nil
}

func find(name string) (string, error) {
	for _, dir := range programDirs() {
		path := filepath.Join(dir, name)
		if s, err := os.Stat(path); err == nil && s.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no program %s: %w", name, fs.ErrNotExist)
}

// capped is a buffer with a maximum size.
type capped struct {
	bytes.Buffer
	most int
	over bool
}

var errFull = errors.New("too much output")

func (c *capped) Write(b []byte) (int, error) {
	if c.Len()+len(b) > c.most {
		c.over = true
		return 0, errFull
	}
	return c.Buffer.Write(b)
}
