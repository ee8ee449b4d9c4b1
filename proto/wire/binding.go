package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// The domains of a Binding.
const (
	DomainEnrol = "redoubt enrol v1"
	DomainRenew = "redoubt renew v1"
)

// Binding is what the signatures and the MAC of a Proof are over: the SHA-256 of its arguments, each after its length in 8
// bytes. It binds the proof to what it is for, to the coordinator's nonce, to the TLS connection (cert.Exporter), to both
// keys, to the posture that is reported with it, and to the Up message with the Hello or Renew, as it was sent.
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

// NodeKeyMAC proves, to the one who holds the other half of the shared secret, that the node key is held. Compare it with
// hmac.Equal.
func NodeKeyMAC(shared, binding [32]byte) [32]byte {
	h := hmac.New(sha256.New, shared[:])
	h.Write(binding[:])
	return [32]byte(h.Sum(nil))
}
