package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// CorruptError reports that a file of the directory cannot be used.
type CorruptError struct {
	Path   string
	Reason string
	Remedy string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s: %s. Nothing was started. What to do: %s", e.Path, e.Reason, e.Remedy)
}

// Limits on what is read, far above what is written.
const (
	limitSmall   = 1 << 20
	limitFloors  = 64 << 20
	limitFlows   = 64 << 20
	limitChecked = 8 << 20
	limitNetmap  = 256 << 20
)

const formatVersion = "1"

// seal prefixes a payload with the line that open checks.
func seal(kind string, payload []byte) []byte {
	sum := sha256.Sum256(payload)
	b := make([]byte, 0, len(payload)+96)
	b = fmt.Appendf(b, "redoubt %s %s %s\n", kind, formatVersion, hex.EncodeToString(sum[:]))
	return append(b, payload...)
}

// open is the inverse of seal; its errors become the reason of a CorruptError.
func open(kind string, b []byte) ([]byte, error) {
	line, _, ok := bytes.Cut(b[:min(len(b), 256)], []byte("\n"))
	fields := strings.Split(string(line), " ")
	if !ok || len(fields) != 4 || fields[0] != "redoubt" {
		return nil, errors.New("not written by redoubt, or truncated")
	}
	if fields[1] != kind {
		return nil, fmt.Errorf("holds %.20q, not %q", fields[1], kind)
	}
	if fields[2] != formatVersion {
		return nil, fmt.Errorf("format %.20q; this program knows format %s", fields[2], formatVersion)
	}
	payload := b[len(line)+1:]
	if sum := sha256.Sum256(payload); hex.EncodeToString(sum[:]) != fields[3] {
		return nil, errors.New("damaged: its checksum does not match")
	}
	return payload, nil
}

// read returns the payload of a file; nil if there is no such file.
func (d *Dir) read(name string, limit int64) ([]byte, error) {
	b, err := d.fs.Read(name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the state: %w", err)
	}
	payload, err := open(name, b)
	if err != nil {
		return nil, d.corrupt(name, err.Error())
	}
	return payload, nil
}

// write replaces a file. If it returns nil the new content is on the disk, otherwise either the old or the new one is.
func (d *Dir) write(name string, payload []byte) error {
	if err := d.replace(name, seal(name, payload)); err != nil {
		return fmt.Errorf("write %s: %w", d.path(name), err)
	}
	return nil
}

func (d *Dir) replace(name string, content []byte) error {
	f, err := d.fs.Create(name + ".new")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.fs.Rename(name+".new", name)
	}
	if err == nil {
		err = d.fs.SyncDir()
	}
	return err
}

func (d *Dir) corrupt(name, reason string) error {
	return &CorruptError{Path: d.path(name), Reason: reason, Remedy: remedies[name]}
}

const enrolAnew = "restore a good copy; without one, move the state directory away and enrol again with `redoubt up CODE`"

var remedies = map[string]string{
	fileDevice:   enrolAnew,
	fileNode:     enrolAnew,
	fileIdentity: enrolAnew,
	fileFloors:   enrolAnew,
	fileJoin:     "remove it, then run `redoubt up CODE` with a fresh join code",
	fileNetmap:   "remove netmap and netmap.log; the coordinator sends them again",
	fileLog:      "remove netmap and netmap.log; the coordinator sends them again",
	filePort:     "remove it; the node will choose another port",
	fileFlows:    "remove it; the connections that it lists are cut",
	fileRelay:    "remove it; nodes find this relay by TLS alone until the coordinator has told them of the next key",
	fileWanted:   "remove it, then run `redoubt up` or `redoubt down`",
}
