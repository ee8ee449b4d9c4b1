package state

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

var errCut = errors.New("the machine is off")

// disk is a filesystem that loses what was not synced when its power is cut.
type disk struct {
	names   map[string]*inode // as programs see them
	durable map[string]*inode // as they are after a cut
	left    int               // steps until the cut
	rand    *rand.Rand
}

type inode struct {
	data   []byte
	synced []byte
}

func newDisk() *disk {
	return &disk{names: map[string]*inode{}, durable: map[string]*inode{}, left: -1, rand: rand.New(rand.NewPCG(1, 1))}
}

// step is called before each operation: the machine may go off there.
func (d *disk) step() error {
	if d.left == 0 {
		return errCut
	}
	d.left--
	return nil
}

// reboot leaves the disk as the next run finds it. A kill keeps everything that was written, as the kernel does when a
// process dies; a power cut keeps what was synced, and a random part of the rest.
func (d *disk) reboot(powerCut bool) {
	d.left = -1
	if !powerCut {
		return
	}
	for name, i := range d.names { // directory entries that were not synced may have made it
		if d.rand.IntN(2) == 0 {
			d.durable[name] = i
		}
	}
	for name := range d.durable {
		if _, ok := d.names[name]; !ok && d.rand.IntN(2) == 0 {
			delete(d.durable, name)
		}
	}
	d.names = map[string]*inode{}
	for name, i := range d.durable {
		var lost []byte
		if bytes.HasPrefix(i.data, i.synced) { // appended: part of the tail may be there, or zeros in its place
			tail := slices.Clone(i.data[len(i.synced):])
			switch d.rand.IntN(3) {
			case 0:
				tail = tail[:d.rand.IntN(len(tail)+1)]
			case 1:
				clear(tail)
			case 2:
				tail = nil
			}
			lost = append(slices.Clone(i.synced), tail...)
		} else {
			lost = i.synced
		}
		n := &inode{data: lost, synced: slices.Clone(lost)}
		d.names[name] = n
		d.durable[name] = n
	}
}

func (d *disk) Read(name string, _ int64) ([]byte, error) {
	i, ok := d.names[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(i.data), nil
}

func (d *disk) Create(name string) (file, error) {
	if err := d.step(); err != nil {
		return nil, err
	}
	i := &inode{}
	d.names[name] = i
	return &handle{d, i}, nil
}

func (d *disk) Append(name string) (file, error) {
	i, ok := d.names[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &handle{d, i}, d.step()
}

func (d *disk) Rename(from, to string) error {
	if err := d.step(); err != nil {
		return err
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	return nil
}

func (d *disk) Remove(name string) error {
	if err := d.step(); err != nil {
		return err
	}
	if _, ok := d.names[name]; !ok {
		return fs.ErrNotExist
	}
	delete(d.names, name)
	return nil
}

func (d *disk) Truncate(name string, size int64) error {
	if err := d.step(); err != nil {
		return err
	}
	i := d.names[name]
	i.data = i.data[:size]
	i.synced = slices.Clone(i.data)
	return nil
}

func (d *disk) SyncDir() error {
	if err := d.step(); err != nil {
		return err
	}
	d.durable = maps.Clone(d.names)
	return nil
}

type handle struct {
	d *disk
	i *inode
}

func (h *handle) Write(b []byte) (int, error) {
	if err := h.d.step(); err != nil {
		half := len(b) / 2 // power failed halfway through
		h.i.data = append(h.i.data, b[:half]...)
		return half, err
	}
	h.i.data = append(h.i.data, b...)
	return len(b), nil
}

func (h *handle) Sync() error {
	if err := h.d.step(); err != nil {
		return err
	}
	h.i.synced = slices.Clone(h.i.data)
	return nil
}

func (h *handle) Close() error { return nil }

// script is a node's life on the disk. Each step is one promise: once it has returned nil, its effect lasts.
type script struct {
	dir  *Dir
	mesh *identitytest.Mesh
	node *identitytest.Machine
	peer proto.Peer

	record identity.Record
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func newScript(d *disk) *script {
	m := identitytest.New(noon)
	s := &script{dir: &Dir{name: "/state", fs: d}, mesh: m, node: m.Machine(1, "self")}
	other := m.Machine(2, "other")
	s.peer = proto.Peer{ID: other.ID, Certificate: m.Issue(other, 1, noon, time.Hour)}
	s.record = m.Record(s.node, 1, noon, time.Hour)
	return s
}

// on returns the same life on another disk.
func (s *script) on(d *disk) *script {
	other := *s
	other.dir = &Dir{name: "/state", fs: d}
	return &other
}

func (s *script) netmap(n uint64) *proto.Netmap {
	if n%2 == 0 {
		return s.mesh.Netmap(s.node, n, 0)
	}
	return s.mesh.Netmap(s.node, n, 0, s.peer)
}

func (s *script) change(from, to uint64) error {
	nm := s.netmap(to)
	return s.dir.SaveDelta(proto.Diff(s.netmap(from), nm), nm)
}

func (s *script) steps() []func() error {
	d := s.dir
	secret := Join{URLs: []string{"https://c.test"}, Root: [32]byte{1}}
	steps := []func() error{
		func() error { return d.SaveDevice(s.node.Device) },
		func() error { return d.SaveNodes([]key.NodePrivate{s.node.Node}) },
		func() error { return d.SaveJoin(secret) },
		func() error { return d.SaveWanted(Wanted{Up: true, Hostname: "web"}) },
		func() error { return d.SaveIdentity(s.record) },
		func() error { return d.SaveNetmap(s.netmap(1)) },
		func() error { return s.change(1, 2) },
		func() error { return s.change(2, 3) },
		func() error { return d.SaveFloors(Floors{MeshTime: noon, Version: proto.Version{Epoch: 1, N: 3}}) },
		func() error { return s.change(3, 4) },
		func() error { return d.SaveNetmap(s.netmap(5)) },
		func() error { return s.change(5, 6) },
		func() error { d.logSize = 1 << 40; return s.change(6, 7) }, // as if the log were long
		func() error { return s.change(7, 8) },
		func() error { return d.SaveWanted(Wanted{Revoked: &Revocation{At: noon, Message: "by ann"}}) },
		d.Forget,
	}
	return steps
}

// versionAfter returns the netmap version that a number of complete steps leaves.
func versionAfter(steps int) uint64 {
	return []uint64{0, 0, 0, 0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 0}[steps]
}

// TestStoppedAnywhere checks that, wherever the program or the machine is stopped, the next run starts and knows everything
// that was promised.
func TestStoppedAnywhere(t *testing.T) {
	life := newScript(nil)
	for _, powerCut := range []bool{false, true} {
		for round := range 8 {
			if !powerCut && round > 0 {
				break
			}
			for at := 0; ; at++ {
				d := newDisk()
				d.rand = rand.New(rand.NewPCG(uint64(at), uint64(round)))
				s := life.on(d)
				d.left = at
				done := 0
				for _, step := range s.steps() {
					if step() != nil {
						break
					}
					done++
				}
				if d.left > 0 {
					break // it reached its end
				}
				d.reboot(powerCut)
				checkReboot(t, d, s, done, at)
			}
		}
	}
}

func checkReboot(t *testing.T, d *disk, s *script, done, at int) {
	t.Helper()
	next := &Dir{name: "/state", fs: d}
	got, err := next.Load()
	if err != nil {
		t.Fatalf("cut at %d, after %d steps: %v", at, done, err)
	}
	if done >= 15 { // forgetting may be half done, or done
		return
	}
	if done >= 2 && (got.Device.Device() != s.node.Device.Device() || len(got.Nodes) != 1 || got.Nodes[0].Public() != s.node.Node.Public()) {
		t.Errorf("cut at %d, after %d steps: the keys are lost", at, done)
	}
	if done >= 5 && got.Self == nil {
		t.Errorf("cut at %d, after %d steps: the certificate is lost", at, done)
	}
	version := uint64(0)
	if got.Netmap != nil {
		version = got.Netmap.Version.N
	}
	if version != versionAfter(done) && version != versionAfter(done+1) {
		t.Errorf("cut at %d, after %d steps: netmap %d", at, done, version)
	}
	if version > 0 {
		if diff := proto.Diff(got.Netmap, s.netmap(version)); !diff.Empty() {
			t.Errorf("cut at %d: netmap %d is another than was saved: %+v", at, version, diff)
		}
		// And it continues from there.
		nm := s.netmap(version + 1)
		if err := next.SaveDelta(proto.Diff(got.Netmap, nm), nm); err != nil {
			t.Fatalf("cut at %d: %v", at, err)
		}
		again, err := (&Dir{name: "/state", fs: d}).Load()
		if err != nil || again.Netmap.Version.N != version+1 {
			t.Errorf("cut at %d: after going on: %v", at, err)
		}
	}
	if done == 15 && got.Wanted.Revoked == nil {
		t.Errorf("cut at %d: the revocation is lost", at)
	}
}

// TestWriteFails checks that a write that fails halfway (a full disk) spoils nothing, and that the next one that works
// catches up.
func TestWriteFails(t *testing.T) {
	life := newScript(nil)
	for at := range 40 {
		d := newDisk()
		s := life.on(d)
		for _, step := range s.steps()[:6] {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		d.left = at
		version := uint64(1)
		for version < 6 && s.change(version, version+1) == nil {
			version++
		}
		d.left = -1
		nm := s.netmap(9)
		if err := s.dir.SaveDelta(proto.Diff(s.netmap(version), nm), nm); err != nil {
			t.Fatalf("at %d: %v", at, err)
		}
		got, err := (&Dir{name: "/state", fs: d}).Load()
		if err != nil || got.Netmap.Version.N != 9 {
			t.Errorf("at %d: %+v, %v", at, got, err)
		}
	}
}
