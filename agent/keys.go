package agent

import (
	"crypto/rand"
	"fmt"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// keys are the node's own. Those that there are, are on the disk.
type keys struct {
	dir    *state.Dir
	file   key.DevicePrivate // the device key, where it is one in a file
	device device.Key        // nil: none yet
	node   key.NodePrivate
}

var _ device.Store = (*keys)(nil)

// open takes the keys that were loaded.
func (k *keys) open(s *state.State) error {
	k.file, k.node = s.Device, s.Node
	if k.file.IsZero() {
		return nil
	}
	return k.make()
}

// make makes what is missing.
func (k *keys) make() error {
	var err error
	if k.device, err = device.Open(k, rand.Reader); err != nil {
		return err
	}
	if !k.node.IsZero() {
		return nil
	}
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		return fmt.Errorf("make the node key: %w", err)
	}
	if err := k.dir.SaveNode(node); err != nil {
		return err
	}
	k.node = node
	return nil
}

// DeviceKey implements device.Store.
func (k *keys) DeviceKey() (key.DevicePrivate, bool) { return k.file, !k.file.IsZero() }

// SaveDeviceKey implements device.Store.
func (k *keys) SaveDeviceKey(d key.DevicePrivate) error {
	if err := k.dir.SaveDevice(d); err != nil {
		return err
	}
	k.file = d
	return nil
}
