// Package device is the node's device key: the key that its certificate is about, and that never leaves the machine.
//
// It lives in the TPM where there is one, and else in a file of the state directory. In the TPM it is made as a child of the
// storage root; what is on the disk is wrapped by that root, and of no use anywhere else. A TPM has few places for keys, and
// may be shared: at most two are taken at a time, and what a crash left there is put out first.
//
//	Sign      storage root ─load─► device key, kept
//	Evidence  device key, attestation key ─► certification, quote; endorsement key, attestation key ─► activation
//
// The attestation key is a primary key of the endorsement hierarchy: the TPM makes the same one whenever it is asked, so that
// nothing has to be stored and nothing can be lost.
package device

import (
	"crypto"
	"fmt"
	"io"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Key signs for this machine. It signs digests of SHA-256, and is the signer of the node's TLS certificate.
type Key interface {
	crypto.Signer
	Device() key.DevicePublic
}

// Store keeps a software key; it makes what it is given last before it returns.
type Store interface {
	DeviceKey() (k key.DevicePrivate, ok bool)
	SaveDeviceKey(key.DevicePrivate) error
}

// Open returns the key of the store, making one if there is none.
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
