package pathmsg

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// ErrKey means that a path key is not the node's.
var ErrKey = errors.New("a path key that the node's device key did not sign")

// signed returns the digest that a device key signs.
func signed(id proto.NodeID, boot uint64, public [proto.PathKeySize]byte) []byte {
	b := []byte("redoubt path key v1\x00")
	b = binary.BigEndian.AppendUint64(b, uint64(id))
	b = binary.BigEndian.AppendUint64(b, boot)
	d := sha256.Sum256(append(b, public[:]...))
	return d[:]
}

// SignKey returns a node's path key in the form in which its peers receive it.
func SignKey(device crypto.Signer, id proto.NodeID, boot uint64, public key.PathPublic) (*proto.PathKey, error) {
	sig, err := device.Sign(rand.Reader, signed(id, boot, public.Array()), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign the path key: %w", err)
	}
	return &proto.PathKey{Public: public.Array(), Boot: boot, Signature: sig}, nil
}

// VerifyKey returns the path key of a node whose certificate names the device key.
func VerifyKey(device key.DevicePublic, id proto.NodeID, k *proto.PathKey) (key.PathPublic, error) {
	if k == nil || !device.Verify(signed(id, k.Boot, k.Public), k.Signature) {
		return key.PathPublic{}, ErrKey
	}
	return key.ParsePathPublic(k.Public[:])
}
