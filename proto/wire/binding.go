package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// The domains that Binding separates.
const (
	DomainEnrol = "redoubt enrol v1"
	DomainRenew = "redoubt renew v1"
)

// Binding returns what the signatures and the MAC of a Proof cover: the SHA-256 of the arguments, each preceded by its length in
// 8 bytes, big endian. It binds the proof to its purpose, the coordinator's nonce, the TLS connection (cert.Exporter), both keys,
// the posture reported with it, and the Up message with the Hello or Renew, as it was sent.
func Binding(domain string, nonce, exporter []byte, node key.NodePublic, device key.DevicePublic, postureDigest, helloHash [32]byte) [32]byte {
	h := sha256.New()
	for _, part := range [][]byte{
		[]byte(domain), nonce, exporter, node.Bytes(), device.Bytes(), postureDigest[:], helloHash[:],
	} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write(part)
	}
	return [32]byte(h.Sum(nil))
}

// NodeKeyMAC proves possession of the node key to the holder of the other half of the shared secret. Compare it with hmac.Equal.
func NodeKeyMAC(shared, binding [32]byte) [32]byte {
	h := hmac.New(sha256.New, shared[:])
	h.Write(binding[:])
	return [32]byte(h.Sum(nil))
}
