package noise

import (
	"crypto/ecdh"
	"errors"
	"fmt"

	"golang.org/x/crypto/blake2s"
)

// ErrInvalid means that a message is damaged, forged, or for another node. It gives no further details, so that nobody can
// learn them.
var ErrInvalid = errors.New("not a valid handshake message")

// Local is a static key of this node.
type Local struct {
	private *ecdh.PrivateKey
	labels
}

// Remote is a static key of a peer.
type Remote struct {
	key *ecdh.PublicKey
	labels
}

// labels is a public key, and the keys derived from it that authenticate messages to its holder.
type labels struct {
	public [keySize]byte
	mac1   [keySize]byte // key of mac1
	cookie [keySize]byte // key that seals cookie replies
}

func newLabels(public []byte) (l labels) {
	l.public = [keySize]byte(public)
	l.mac1 = blake2s.Sum256(append([]byte("mac1----"), public...))
	l.cookie = blake2s.Sum256(append([]byte("cookie--"), public...))
	return l
}

// Public returns the public key.
func (l *labels) Public() [keySize]byte { return l.public }

// NewLocal returns the Local of an X25519 private key.
func NewLocal(private [keySize]byte) (*Local, error) {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return &Local{private: k, labels: newLabels(k.PublicKey().Bytes())}, nil
}

// NewRemote returns the Remote of an X25519 public key.
func NewRemote(public [keySize]byte) (*Remote, error) {
	k, err := ecdh.X25519().NewPublicKey(public[:])
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return &Remote{key: k, labels: newLabels(public[:])}, nil
}

// Pair is a key of ours and one of a peer.
type Pair struct {
	Local  *Local
	Remote *Remote
	shared [keySize]byte
}

// NewPair computes the shared secret of both keys. It fails for an unusable public key: a point of low order.
func NewPair(l *Local, r *Remote) (*Pair, error) {
	p := &Pair{Local: l, Remote: r}
	if err := agree(&p.shared, l.private, r.key); err != nil {
		return nil, fmt.Errorf("public key of low order: %w", err)
	}
	return p, nil
}

// agree computes the Diffie-Hellman shared secret; it fails for points of low order.
func agree(out *[keySize]byte, private *ecdh.PrivateKey, public *ecdh.PublicKey) error {
	b, err := private.ECDH(public)
	if err != nil {
		return ErrInvalid
	}
	copy(out[:], b)
	clear(b)
	return nil
}

// mixDH mixes the shared secret of two keys into the state.
func mixDH(s *symmetric, private *ecdh.PrivateKey, public *ecdh.PublicKey) error {
	var shared [keySize]byte
	defer clear(shared[:])
	if err := agree(&shared, private, public); err != nil {
		return err
	}
	s.mixKey(shared[:])
	return nil
}

// Keys are the keys of a session.
type Keys struct{ Send, Receive [keySize]byte }

// Clear erases the keys.
func (k *Keys) Clear() { *k = Keys{} }
