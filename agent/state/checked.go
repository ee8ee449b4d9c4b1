package state

import (
	"crypto/hmac"
	"crypto/sha256"
	"slices"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// The file checked spares a start the signatures of all peers' certificates, which are most of what a large netmap costs:
//
//	HMAC-SHA-256 of what follows, 32 bytes | names of signatures that were found good, 32 bytes each
//
// The key is made of the node key that the node's certificate names. The file vouches for signatures alone. Whether a certificate is
// under a trusted root, in its time, not revoked and not older than one that was seen is judged at every start, file or no file; what
// it does not list, or lists under another key, is verified as ever.
//
// What it takes to plant a peer here is the node key. Where a TPM wraps that, whoever writes to the disk, or swaps or clones it,
// does not have it; where it is a file, who reads it is this node already, to everybody. It is no cheaper than what the directory
// permits without this file: who can write identity can add a root of their own to those that it names.
const checkedPurpose = "checked signatures"

// SaveChecked makes last which signatures were found good, under the node key in use.
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

// loadChecked reads what SaveChecked wrote. Nothing is lost with it but time, so a file that is no good is none.
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

// parseChecked gives nil for anything that SaveChecked did not write under the same key.
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
