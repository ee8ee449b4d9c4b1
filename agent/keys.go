package agent

import (
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/redoubt-mesh/redoubt/agent/device"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// keys are the node's own. Those that there are, are on the disk.
//
//	nodes:  in use │ takes over │ asked for
//
// A renewal asks for one that is on the disk before the coordinator hears of it, and for the same one until a certificate came
// that names it. So a reply may be lost, and the program may die anywhere in between.
type keys struct {
	dir    *state.Dir
	file   key.DevicePrivate // the device key, where it is one in a file
	device device.Key        // nil: none yet
	nodes  []key.NodePrivate
}

var _ device.Store = (*keys)(nil)

// open takes the keys that were loaded.
func (k *keys) open(s *state.State) error {
	k.file, k.nodes = s.Device, s.Nodes
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
	if len(k.nodes) > 0 {
		return nil
	}
	return k.add()
}

// add makes a node key, to come after those that there are.
func (k *keys) add() error {
	node, err := key.NewNode(rand.Reader)
	if err != nil {
		return fmt.Errorf("make a node key: %w", err)
	}
	return k.save(append(slices.Clip(k.nodes), node))
}

func (k *keys) save(nodes []key.NodePrivate) error {
	if err := k.dir.SaveNodes(nodes); err != nil {
		return err
	}
	k.nodes = nodes
	return nil
}

// node is the one in use; zero before there is one.
func (k *keys) node() key.NodePrivate {
	if len(k.nodes) == 0 {
		return key.NodePrivate{}
	}
	return k.nodes[0]
}

// next is the key to ask for: one that the certificate does not name, and that is not in use.
func (k *keys) next(self *identity.Self) (key.NodePrivate, error) {
	for _, n := range k.nodes[min(1, len(k.nodes)):] {
		if !names(self, n) {
			return n, nil
		}
	}
	if err := k.add(); err != nil {
		return key.NodePrivate{}, err
	}
	return k.nodes[len(k.nodes)-1], nil
}

// drop gives up the key to ask for: it is not to be had.
func (k *keys) drop(self *identity.Self) error {
	for i := 1; i < len(k.nodes); i++ {
		if !names(self, k.nodes[i]) {
			return k.save(slices.Delete(slices.Clone(k.nodes), i, i+1))
		}
	}
	return nil
}

// turn puts a key to use. Those before it are gone.
func (k *keys) turn(to key.NodePublic) (key.NodePrivate, error) {
	i := slices.IndexFunc(k.nodes, func(n key.NodePrivate) bool { return n.Public() == to })
	if i < 0 {
		return key.NodePrivate{}, fmt.Errorf("the certificate names a node key, %s, that this machine does not have: "+
			"was its state directory put back from a copy? Nothing passes until the next renewal", to)
	}
	if i == 0 {
		return k.nodes[0], nil
	}
	nodes := slices.Clone(k.nodes[i:])
	// In use it is whatever the disk says: which of the two a restart begins with does not matter.
	k.nodes = nodes
	return nodes[0], k.dir.SaveNodes(nodes)
}

// names says whether a certificate names a key.
func names(self *identity.Self, n key.NodePrivate) bool {
	return slices.ContainsFunc(self.Node.Keys, func(c cert.NodeKey) bool { return c.Public == n.Public() })
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
