package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// leastLog is how large the log may become whatever the size of the snapshot.
const leastLog = 256 << 10

// loadNetmap reads the snapshot and applies the log.
func (d *Dir) loadNetmap(s *State) error {
	b, err := d.fs.Read(fileNetmap, limitNetmap)
	if errors.Is(err, fs.ErrNotExist) {
		return d.orphan()
	}
	if err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	nm, err := wire.DecodeNetmapFile(b)
	if err != nil {
		return d.corrupt(fileNetmap, err.Error())
	}
	d.snapshotSize = int64(len(b))
	records, err := d.readLog()
	if err != nil {
		return err
	}
	for _, r := range records {
		delta, err := decodeDelta(r)
		if err != nil {
			return d.corrupt(fileLog, err.Error())
		}
		if !nm.Version.Less(delta.To) {
			continue // from before the snapshot: a crash came between writing the snapshot and dropping the log
		}
		if nm, err = nm.Apply(delta); err != nil {
			return d.corrupt(fileLog, err.Error())
		}
	}
	if s.Self == nil {
		return d.corrupt(fileNetmap, "exists without a certificate")
	}
	if nm.Self != s.Self.Node.ID {
		return d.corrupt(fileNetmap, "is another node's")
	}
	s.Netmap = nm
	return nil
}

// orphan rejects a log without the snapshot that it changes.
func (d *Dir) orphan() error {
	_, err := d.fs.Read(fileLog, limitNetmap)
	if err == nil {
		return d.corrupt(fileLog, "changes a netmap that is not there")
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("read the state: %w", err)
}

// SaveNetmap saves a whole netmap.
func (d *Dir) SaveNetmap(nm *proto.Netmap) error {
	b, err := wire.EncodeNetmapFile(nm)
	if err != nil {
		return err
	}
	if err := d.replace(fileNetmap, b); err != nil {
		return fmt.Errorf("write %s: %w", d.path(fileNetmap), err)
	}
	d.snapshotSize = int64(len(b))
	if err := d.dropLog(); err != nil {
		// What is in the log leads up to this snapshot at most, but nothing more may be appended to it.
		d.logBroken = true
		return fmt.Errorf("remove %s: %w", d.path(fileLog), err)
	}
	return nil
}

// SaveDelta saves a change of the netmap; nm is the result. Its cost is proportional to the change, except for an occasional
// snapshot.
func (d *Dir) SaveDelta(delta *proto.Delta, nm *proto.Netmap) error {
	if d.logBroken || d.snapshotSize == 0 || d.logSize > max(d.snapshotSize, leastLog) {
		return d.SaveNetmap(nm)
	}
	record, err := encodeDelta(delta)
	if err != nil {
		return err
	}
	if err := d.appendLog(record); err != nil {
		return fmt.Errorf("write %s: %w", d.path(fileLog), err)
	}
	return nil
}

func encodeDelta(delta *proto.Delta) ([]byte, error) {
	var b []byte
	for _, part := range wire.FromDelta(delta) {
		var err error
		if b, err = wire.AppendFrame(b, part); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func decodeDelta(b []byte) (*proto.Delta, error) {
	var a wire.DeltaAssembler
	r := bytes.NewReader(b)
	for {
		frame, err := wire.ReadFrame(r, nil, wire.MaxFrame)
		if err != nil {
			return nil, fmt.Errorf("change of the netmap: %w", err)
		}
		var part redoubtv1.DeltaPart
		if err := pb.Unmarshal(frame, &part); err != nil {
			return nil, fmt.Errorf("change of the netmap: %w", err)
		}
		done, delta, err := a.Add(&part)
		switch {
		case err != nil:
			return nil, err
		case done && r.Len() > 0:
			return nil, errors.New("change of the netmap goes on after its end")
		case done:
			return delta, nil
		}
	}
}
