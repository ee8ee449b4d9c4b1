package state

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// State is everything that a directory holds. Zero and nil values stand for files that do not exist.
type State struct {
	Device key.DevicePrivate
	Sealed device.Blob       // the device key, if it is in a TPM
	Nodes  []key.NodePrivate // the one in use, then those to come
	Lost   error             // why there are none although the disk has some; nil otherwise
	// Again reads the node keys again; nil: there is no hope. It may be called from any goroutine.
	Again  func() (nodes []key.NodePrivate, hope bool, err error)
	Join   *Join
	Self   *identity.Self
	Netmap *proto.Netmap
	// Checked are signatures of peers' certificates that this node has already found good.
	Checked map[cert.Signature]struct{}
	Floors  Floors
	Wanted  Wanted
	Port    uint16
	Relay   *relaymsg.Secret // the key by which nodes know a relay; nil: none
}

// Join is the content of a join code.
type Join struct {
	URLs   []string
	Root   [32]byte // fingerprint
	Secret key.TokenSecret
}

// Floors are values that must never go back.
type Floors struct {
	MeshTime    time.Time
	LastContact time.Time // when the coordinator was last heard, in mesh time
	Version     proto.Version
	Sequences   map[proto.NodeID]Sequence
}

// Sequence is the greatest sequence number seen of a peer's certificates, and when that certificate expires.
type Sequence struct {
	Seen  uint64
	Until time.Time
}

// Wanted is what the user and the coordinator decided about the node.
type Wanted struct {
	Up       bool
	Hostname string      `json:",omitempty"`
	Revoked  *Revocation `json:",omitempty"`
	Locked   *Revocation `json:",omitempty"` // until the coordinator serves the node again
	Routing  Routing     `json:",omitzero"`
}

// Revocation says when and why the coordinator revoked or locked the node.
type Revocation struct {
	At      time.Time
	Message string
}

// Load reads and checks everything. If any of it is unusable, the error says what, and nothing is returned.
func (d *Dir) Load() (*State, error) {
	s := &State{}
	for _, load := range []func(*State) error{
		d.loadKeys, d.loadJoin, d.loadFloors, d.loadWanted, d.loadPort, d.loadRelay, d.loadIdentity, d.loadNetmap, d.loadChecked,
	} {
		if err := load(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// The types of the PEM blocks of node keys, plain and wrapped.
const (
	pemNode    = "REDOUBT NODE KEY"
	pemWrapped = "REDOUBT WRAPPED NODE KEY"
)

func (d *Dir) loadKeys(s *State) error {
	b, err := d.read(fileDevice, limitSmall)
	if err != nil {
		return err
	}
	if b != nil {
		if block, _ := pem.Decode(b); block != nil && block.Type == device.PEMType {
			s.Sealed, err = device.ParseBlob(b)
		} else {
			s.Device, err = key.ParseDevicePEM(b)
		}
		if err != nil {
			return d.corrupt(fileDevice, err.Error())
		}
	}
	if b, err = d.read(fileNode, limitSmall); b == nil || err != nil {
		return err
	}
	var lost *lostError
	s.Nodes, err = d.parseNodes(b)
	switch {
	case errors.As(err, &lost):
		s.Lost, s.Again = lost, d.again(b, lost)
	case err != nil:
		return d.corrupt(fileNode, err.Error())
	}
	return nil
}

// again returns State.Again for a file that could not be read.
func (d *Dir) again(file []byte, err error) func() ([]key.NodePrivate, bool, error) {
	if d.wrapper == nil || device.Lost(err) {
		return nil
	}
	return func() ([]key.NodePrivate, bool, error) {
		nodes, err := d.parseNodes(file)
		var lost *lostError
		return nodes, errors.As(err, &lost) && !device.Lost(err), err
	}
}

// Wrapper encrypts secrets with a key that does not leave this machine.
type Wrapper interface {
	Wrap(secret []byte) ([]byte, error)
	Unwrap(wrapped []byte) ([]byte, error)
}

// Protect sets the Wrapper for reading and writing wrapped node keys.
func (d *Dir) Protect(w Wrapper) { d.wrapper = w }

// lostError says why a wrapped node key cannot be read. Only its own machine could read it; the file is not damaged.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

func (d *Dir) unwrap(b []byte) ([]byte, error) {
	if d.wrapper == nil {
		return nil, &lostError{errors.New("the node keys are wrapped by a TPM, which is off or not there")}
	}
	secret, err := d.wrapper.Unwrap(b)
	if err != nil {
		return nil, &lostError{fmt.Errorf("read the node keys: %w", err)}
	}
	return secret, nil
}

// MaxNodes is how many node keys there can be: the one in use, the one that takes over, and the one that is asked for.
const MaxNodes = 3

func (d *Dir) parseNodes(b []byte) (nodes []key.NodePrivate, err error) {
	for len(bytes.TrimSpace(b)) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil || block.Type != pemNode && block.Type != pemWrapped {
			return nil, errors.New("contains something other than node keys")
		}
		secret := block.Bytes
		if block.Type == pemWrapped {
			if secret, err = d.unwrap(secret); err != nil {
				return nil, err
			}
		}
		k, err := key.ParseNodePrivate(secret)
		if err != nil {
			return nil, err
		}
		if nodes = append(nodes, k); len(nodes) > MaxNodes {
			return nil, fmt.Errorf("holds more than %d node keys", MaxNodes)
		}
	}
	if len(nodes) == 0 {
		return nil, errors.New("holds no node key")
	}
	return nodes, nil
}

// SaveDevice saves the device key.
func (d *Dir) SaveDevice(k key.DevicePrivate) error {
	b, err := k.MarshalPEM()
	if err != nil {
		return fmt.Errorf("write the device key: %w", err)
	}
	return d.write(fileDevice, b)
}

// SaveSealed saves a device key that a TPM holds.
func (d *Dir) SaveSealed(k device.Blob) error {
	b, err := k.MarshalPEM()
	if err != nil {
		return err
	}
	return d.write(fileDevice, b)
}

// SaveNodes saves the node keys, the one in use first.
func (d *Dir) SaveNodes(nodes []key.NodePrivate) error {
	var b []byte
	for _, k := range nodes {
		secret := k.Expose()
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemNode, Bytes: secret[:]})...)
	}
	return d.write(fileNode, b)
}

// WrapNodes is SaveNodes with the keys wrapped by the Wrapper that Protect set. On ErrWrap, nothing was written.
func (d *Dir) WrapNodes(nodes []key.NodePrivate) error {
	var b []byte
	for _, k := range nodes {
		secret := k.Expose()
		wrapped, err := d.wrapper.Wrap(secret[:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrWrap, err)
		}
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemWrapped, Bytes: wrapped})...)
	}
	return d.write(fileNode, b)
}

// ErrWrap reports that the keys could not be wrapped.
var ErrWrap = errors.New("wrap the node keys")

// joinFile is the file format of Join.
type joinFile struct {
	URLs   []string
	Root   []byte
	Secret []byte `json:",omitempty"`
}

func (d *Dir) loadJoin(s *State) error {
	var f joinFile
	if ok, err := d.readJSON(fileJoin, limitSmall, &f); !ok || err != nil {
		return err
	}
	if len(f.Root) != 32 || len(f.URLs) == 0 {
		return d.corrupt(fileJoin, "lacks a URL or the root's fingerprint")
	}
	j := &Join{URLs: f.URLs, Root: [32]byte(f.Root)}
	if f.Secret != nil {
		var err error
		if j.Secret, err = key.ParseTokenSecret(f.Secret); err != nil {
			return d.corrupt(fileJoin, err.Error())
		}
	}
	s.Join = j
	return nil
}

// SaveJoin saves the content of a join code; a Join without URLs removes the file.
func (d *Dir) SaveJoin(j Join) error {
	if len(j.URLs) == 0 {
		return d.remove(fileJoin)
	}
	f := joinFile{URLs: j.URLs, Root: j.Root[:]}
	if !j.Secret.IsZero() {
		secret := j.Secret.Expose()
		f.Secret = secret[:]
	}
	return d.writeJSON(fileJoin, f)
}

func (d *Dir) loadFloors(s *State) error {
	_, err := d.readJSON(fileFloors, limitFloors, &s.Floors)
	return err
}

// SaveFloors saves the floors.
func (d *Dir) SaveFloors(f Floors) error { return d.writeJSON(fileFloors, f) }

func (d *Dir) loadWanted(s *State) error {
	ok, err := d.readJSON(fileWanted, limitSmall, &s.Wanted)
	if ok && err == nil {
		if bad := s.Wanted.Routing.Check(proto.Mesh{}); bad != nil {
			return d.corrupt(fileWanted, bad.Error())
		}
	}
	return err
}

func (d *Dir) loadPort(s *State) error {
	_, err := d.readJSON(filePort, limitSmall, &s.Port)
	return err
}

// SavePort saves the UDP port.
func (d *Dir) SavePort(port uint16) error { return d.writeJSON(filePort, port) }

func (d *Dir) loadRelay(s *State) error {
	b, err := d.read(fileRelay, limitSmall)
	if b == nil || err != nil {
		return err
	}
	if s.Relay, err = relaymsg.ParseSecret(b); err != nil {
		return d.corrupt(fileRelay, err.Error())
	}
	return nil
}

// SaveRelay saves a relay's key.
func (d *Dir) SaveRelay(k *relaymsg.Secret) error { return d.write(fileRelay, k.Expose()) }

// SaveFlows saves the flow table for the next run.
func (d *Dir) SaveFlows(flows []byte) error { return d.write(fileFlows, flows) }

// TakeFlows returns what SaveFlows saved and removes it; nil if there is nothing.
func (d *Dir) TakeFlows() ([]byte, error) {
	b, err := d.read(fileFlows, limitFlows)
	return b, errors.Join(err, d.remove(fileFlows))
}

// SaveWanted saves what was decided about the node.
func (d *Dir) SaveWanted(w Wanted) error { return d.writeJSON(fileWanted, w) }

func (d *Dir) loadIdentity(s *State) error {
	var r identity.Record
	if ok, err := d.readJSON(fileIdentity, limitSmall, &r); !ok || err != nil {
		return err
	}
	own := s.Device.Device()
	if !s.Sealed.IsZero() {
		own = s.Sealed.Device()
	}
	if own.IsZero() || len(s.Nodes) == 0 && s.Lost == nil {
		return d.corrupt(fileIdentity, "exists without the keys that it is about")
	}
	if s.Join == nil {
		return d.corrupt(fileIdentity, "exists without the file join, which says where the coordinator is")
	}
	held := make([]key.NodePublic, len(s.Nodes))
	for i, k := range s.Nodes {
		held[i] = k.Public()
	}
	self, err := identity.CheckLost(r, own)
	if s.Lost == nil {
		self, err = identity.Check(r, own, held...)
	}
	if err != nil {
		return d.corrupt(fileIdentity, err.Error())
	}
	s.Self = self
	return nil
}

// SaveIdentity saves a certificate.
func (d *Dir) SaveIdentity(r identity.Record) error { return d.writeJSON(fileIdentity, r) }

// Forget removes everything about one membership: keys, certificate, netmap, floors. Wanted stays. The order is such that no
// file is left without one that it depends on, wherever this is interrupted.
func (d *Dir) Forget() error {
	for _, name := range []string{fileChecked, fileLog, fileNetmap, fileIdentity, fileJoin, fileFloors, fileRelay, fileNode, fileDevice} {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	d.logSize, d.snapshotSize, d.logBroken = 0, 0, false
	return nil
}

func (d *Dir) remove(name string) error {
	err := d.fs.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.fs.SyncDir()
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", d.path(name), err)
	}
	return nil
}

// readJSON reports whether the file exists.
func (d *Dir) readJSON(name string, limit int64, to any) (bool, error) {
	b, err := d.read(name, limit)
	if b == nil || err != nil {
		return false, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return false, d.corrupt(name, err.Error())
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return false, d.corrupt(name, "goes on after its end")
	}
	return true, nil
}

func (d *Dir) writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", d.path(name), err)
	}
	return d.write(name, b)
}
