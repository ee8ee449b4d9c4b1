package device

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Blob is a TPM key as stored on the disk: its private half is encrypted by the TPM, and only that TPM can load it. The zero
// value is no key.
type Blob struct {
	public, private []byte // TPM2B_PUBLIC and TPM2B_PRIVATE
	device          key.DevicePublic
}

// PEMType is the PEM block type of a Blob.
const PEMType = "REDOUBT TPM KEY"

// maxBlob bounds each half of a blob.
const maxBlob = 2048

type blobRecord struct{ Public, Private []byte }

// IsZero reports whether there is no key.
func (b Blob) IsZero() bool { return b.device.IsZero() }

// Device returns the public half.
func (b Blob) Device() key.DevicePublic { return b.device }

// MarshalPEM encodes the blob for ParseBlob.
func (b Blob) MarshalPEM() ([]byte, error) {
	der, err := asn1.Marshal(blobRecord{b.public, b.private})
	if err != nil {
		return nil, fmt.Errorf("marshal the device key of the TPM: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: PEMType, Bytes: der}), nil
}

// ParseBlob parses a single PEM block; nothing may follow it.
func ParseBlob(b []byte) (Blob, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != PEMType || len(bytes.TrimSpace(rest)) != 0 {
		return Blob{}, errors.New("device key of the TPM: not a single PEM block of type " + PEMType)
	}
	var r blobRecord
	if rest, err := asn1.Unmarshal(block.Bytes, &r); err != nil || len(rest) != 0 {
		return Blob{}, errors.New("device key of the TPM: not what this program writes")
	}
	return newBlob(r.Public, r.Private)
}

func newBlob(public, private []byte) (Blob, error) {
	bad := errors.New("device key of the TPM: not a key that a TPM made")
	if len(public) == 0 || len(public) > maxBlob || len(private) == 0 || len(private) > maxBlob {
		return Blob{}, bad
	}
	area, err := tpm2.Unmarshal[tpm2.TPM2BPublic](public)
	if err != nil {
		return Blob{}, bad
	}
	p, err := area.Contents()
	if err != nil {
		return Blob{}, bad
	}
	k, err := tpm2.Pub(*p)
	if err != nil {
		return Blob{}, bad
	}
	e, ok := k.(*ecdsa.PublicKey)
	if !ok {
		return Blob{}, bad
	}
	device, err := key.DeviceFromPublic(e)
	if err != nil {
		return Blob{}, err
	}
	return Blob{public: public, private: private, device: device}, nil
}
