package state

import (
	"crypto/hmac"
	"crypto/sha256"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// The file checked saves a start from verifying the signatures of all peers' certificates, which is most of what a large
// netmap costs:
//
//	HMAC-SHA-256 of what follows, 32 bytes | names of signatures that were found good, 32 bytes each
//
// The HMAC key is derived from the node key that the node's certificate names. The file vouches for signatures only. Whether
// a certificate chains to a trusted root, is within its validity period, is not revoked and not older than one already seen
// is checked at every start, with or without the file; a signature that it does not list, or lists under another key, is
// verified as usual.
//
// Planting a peer here takes the node key. If a TPM wraps the key, an attacker who can write to the disk, or swap or clone
// it, does not have it; if it is in a plain file, whoever can read that can pose as this node anyway. Nor does this file make
// anything possible that the directory did not allow before: an attacker who can write identity can add a root of their own
// to it.
const checkedPurpose = "checked signatures"

// SaveChecked saves which signatures were found good, authenticated by the node key in use.
func (d *Dir) SaveChecked(node key.NodePrivate, good []cert.Signature) error {
	payload := make([]byte, sha256.Size, sha256.Size*(1+len(good)))
	for _, s := range good {
		payload = append(payload, s[:]...)
	}
	mac, err := checkedMAC(node, payload[sha256.Size:])
	if err != nil {
		return err
	}
	copy(payload, mac)
	return d.write(fileChecked, payload)
}

func checkedMAC(node key.NodePrivate, list []byte) ([]byte, error) {
	k, err := node.Derive(checkedPurpose)
	if err != nil {
		return nil, err
	}
	h := hmac.New(sha256.New, k[:])
	h.Write(list)
	return h.Sum(nil), nil
}

// loadChecked reads what SaveChecked wrote. Losing it costs only time, so an unusable file counts as none.
func (d *Dir) loadChecked(s *State) error {
	if s.Self == nil {
		return nil
	}
	i := slices.IndexFunc(s.Nodes, func(k key.NodePrivate) bool { return k.Public() == s.Self.Key })
	if i < 0 {
		return nil
	}
	if b, err := d.read(fileChecked, limitChecked); err == nil {
		s.Checked = parseChecked(s.Nodes[i], b)
	}
	return nil
}

// parseChecked returns nil for anything that SaveChecked did not write under the same key.
func parseChecked(node key.NodePrivate, b []byte) map[cert.Signature]struct{} {
	const size = sha256.Size
	if len(b) < size || len(b)%size != 0 || len(b)/size-1 > proto.MaxPeers {
		return nil
	}
	mac, list := b[:size], b[size:]
	if want, err := checkedMAC(node, list); err != nil || !hmac.Equal(mac, want) {
		return nil
	}
	good := make(map[cert.Signature]struct{}, len(list)/size)
	for s := range slices.Chunk(list, size) {
		good[cert.Signature(s)] = struct{}{}
	}
	return good
}
