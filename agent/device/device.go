// Package device is the node's device key: the key that its certificate is about, and that never leaves the machine.
//
// It lives in the TPM if there is one, and otherwise in a file of the state directory. In the TPM it is created as a child
// of the storage root; what is on the disk is wrapped by that root, and useless anywhere else. A TPM has few slots for keys,
// and may be shared: the package takes at most two at a time, and first flushes what a crash left there.
//
//	Sign      storage root ─load─► device key, kept
//	Evidence  device key, attestation key ─► certification, quote; endorsement key, attestation key ─► activation
//
// The attestation key is a primary key of the endorsement hierarchy: the TPM derives the same one every time, so that
// nothing has to be stored and nothing can be lost.
package device

import (
	"crypto"
	"fmt"
	"io"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Key signs for this machine. It signs SHA-256 digests, and is the signer of the node's TLS certificate.
type Key interface {
	crypto.Signer
	Device() key.DevicePublic
}

// Store keeps a software key; SaveDeviceKey returns only once the key is durable.
type Store interface {
	DeviceKey() (k key.DevicePrivate, ok bool)
	SaveDeviceKey(key.DevicePrivate) error
}

// Open returns the key of the store, creating one if there is none.
func Open(s Store, rand io.Reader) (Key, error) {
	if k, ok := s.DeviceKey(); ok {
		return k, nil
	}
	k, err := key.NewDevice(rand)
	if err != nil {
		return nil, fmt.Errorf("create the device key: %w", err)
	}
	if err := s.SaveDeviceKey(k); err != nil {
		return nil, err
	}
	return k, nil
}
