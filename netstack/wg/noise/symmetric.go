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

// zeroNonce is the nonce of handshake messages: each of their keys is used only once.
var zeroNonce [chacha20poly1305.NonceSize]byte

// symmetric is Noise's symmetric state: the chaining key and the transcript hash.
type symmetric struct{ chain, hash [blake2s.Size]byte }

// begin returns the state before the first message to the holder of the static key to.
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

// mixCipher mixes data in, and returns the AEAD for what follows.
func (s *symmetric) mixCipher(data []byte) cipher.AEAD {
	var k [keySize]byte
	defer clear(k[:])
	derive(s.chain[:], data, &s.chain, &k)
	return aead(&k)
}

// mixPSK does the same with a pre-shared key, which is also mixed into the hash.
func (s *symmetric) mixPSK(psk *[keySize]byte) cipher.AEAD {
	var t, k [keySize]byte
	defer clear(k[:])
	derive(s.chain[:], psk[:], &s.chain, &t, &k)
	s.mixHash(t[:])
	return aead(&k)
}

// seal encrypts plain and appends the result to dst.
func (s *symmetric) seal(dst []byte, c cipher.AEAD, plain []byte) []byte {
	n := len(dst)
	dst = c.Seal(dst, zeroNonce[:], plain, s.hash[:])
	s.mixHash(dst[n:])
	return dst
}

// open decrypts sealed and appends the result to dst.
func (s *symmetric) open(dst []byte, c cipher.AEAD, sealed []byte) ([]byte, error) {
	dst, err := c.Open(dst, zeroNonce[:], sealed, s.hash[:])
	if err != nil {
		return nil, ErrInvalid
	}
	s.mixHash(sealed)
	return dst, nil
}

// split returns the keys of the session, the initiator's sending key first, and erases the state.
func (s *symmetric) split() (first, second [keySize]byte) {
	derive(s.chain[:], nil, &first, &second)
	*s = symmetric{}
	return first, second
}

// derive is HKDF with HMAC-BLAKE2s and one to three outputs, of which the first may alias secret.
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

// aead returns ChaCha20-Poly1305, whose only error is a wrong key length.
func aead(k *[keySize]byte) cipher.AEAD {
	c, err := chacha20poly1305.New(k[:])
	if err != nil {
		panic("noise: ChaCha20-Poly1305: " + err.Error())
	}
	return c
}
