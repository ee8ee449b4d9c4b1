package noise

import (
	"crypto/cipher"
	"crypto/hmac"
	"hash"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
)

const (
	keySize = 32
	tagSize = chacha20poly1305.Overhead
)

// zeroNonce is the nonce of handshake messages: each of their keys seals once.
var zeroNonce [chacha20poly1305.NonceSize]byte

// symmetric is Noise's symmetric state: the chaining key, and the hash of all that was said.
type symmetric struct{ chain, hash [blake2s.Size]byte }

// begin is the state before the first message to the holder of the static key to.
func begin(prologue []byte, to *[keySize]byte) (s symmetric) {
	s.chain = blake2s.Sum256([]byte(construction))
	s.hash = s.chain
	s.mixHash(prologue)
	s.mixHash(to[:])
	return s
}

func (s *symmetric) mixHash(data []byte) {
	h := newHash()
	h.Write(s.hash[:])
	h.Write(data)
	h.Sum(s.hash[:0])
}

func (s *symmetric) mixKey(data []byte) { derive(s.chain[:], data, &s.chain) }

// mixCipher mixes data in, and gives the AEAD for what follows.
func (s *symmetric) mixCipher(data []byte) cipher.AEAD {
	var k [keySize]byte
	defer clear(k[:])
	derive(s.chain[:], data, &s.chain, &k)
	return aead(&k)
}

// mixPSK does so with a pre-shared key, which goes into the hash as well.
func (s *symmetric) mixPSK(psk *[keySize]byte) cipher.AEAD {
	var t, k [keySize]byte
	defer clear(k[:])
	derive(s.chain[:], psk[:], &s.chain, &t, &k)
	s.mixHash(t[:])
	return aead(&k)
}

// seal appends plain, sealed, to dst.
func (s *symmetric) seal(dst []byte, c cipher.AEAD, plain []byte) []byte {
	n := len(dst)
	dst = c.Seal(dst, zeroNonce[:], plain, s.hash[:])
	s.mixHash(dst[n:])
	return dst
}

// open appends what is in sealed to dst.
func (s *symmetric) open(dst []byte, c cipher.AEAD, sealed []byte) ([]byte, error) {
	dst, err := c.Open(dst, zeroNonce[:], sealed, s.hash[:])
	if err != nil {
		return nil, ErrInvalid
	}
	s.mixHash(sealed)
	return dst, nil
}

// split gives the keys of the session, the initiator's sending one first, and forgets the rest.
func (s *symmetric) split() (first, second [keySize]byte) {
	derive(s.chain[:], nil, &first, &second)
	*s = symmetric{}
	return first, second
}

// derive is HKDF with HMAC-BLAKE2s and one to three outputs, of which the first may be where secret stands.
func derive(secret, input []byte, out ...*[keySize]byte) {
	var prk [keySize]byte
	defer clear(prk[:])
	m := hmac.New(newHash, secret)
	m.Write(input)
	m.Sum(prk[:0])
	m = hmac.New(newHash, prk[:])
	var before []byte
	for i, o := range out {
		m.Reset()
		m.Write(before)
		m.Write([]byte{byte(i + 1)})
		m.Sum(o[:0])
		before = o[:]
	}
}

func newHash() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic("noise: BLAKE2s without a key: " + err.Error())
	}
	return h
}

// aead is ChaCha20-Poly1305, whose only error is a key of another length.
func aead(k *[keySize]byte) cipher.AEAD {
	c, err := chacha20poly1305.New(k[:])
	if err != nil {
		panic("noise: ChaCha20-Poly1305: " + err.Error())
	}
	return c
}
