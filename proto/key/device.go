package key

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// DeviceSize is the length of a public device key: an uncompressed P-256 point.
const DeviceSize = 65

// pemType is the PEM type of PKCS #8.
const pemType = "PRIVATE KEY"

// DevicePrivate is a device key held in software. It is a crypto.Signer, like a key in a TPM.
type DevicePrivate struct {
	sealed
	open func() *ecdsa.PrivateKey
}

// NewDevice generates a key from r, which must be cryptographically random.
func NewDevice(r io.Reader) (DevicePrivate, error) {
	var b [32]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return DevicePrivate{}, fmt.Errorf("draw a device key: %w", err)
		}
		// One draw in 2^32 is not a scalar of the curve.
		if k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), b[:]); err == nil {
			return sealDevice(k), nil
		}
	}
}

// ParseDevicePEM parses what MarshalPEM returns: one PKCS #8 block with a P-256 key, and nothing after it.
func ParseDevicePEM(b []byte) (DevicePrivate, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != pemType || len(bytes.TrimSpace(rest)) != 0 {
		return DevicePrivate{}, errors.New("device key: not a single PEM block of type " + pemType)
	}
	v, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return DevicePrivate{}, errors.New("device key: not PKCS #8")
	}
	k, ok := v.(*ecdsa.PrivateKey)
	if !ok || k.Curve != elliptic.P256() {
		return DevicePrivate{}, fmt.Errorf("device key: a %T, want ECDSA P-256", v)
	}
	return sealDevice(k), nil
}

func sealDevice(k *ecdsa.PrivateKey) DevicePrivate {
	return DevicePrivate{open: func() *ecdsa.PrivateKey { return k }}
}

// MarshalPEM encodes the key for a file of mode 0600. It must not be used for anything else.
func (k DevicePrivate) MarshalPEM() ([]byte, error) {
	if k.open == nil {
		return nil, errors.New("no device key")
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.open())
	if err != nil {
		return nil, fmt.Errorf("marshal a device key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), nil
}

// IsZero reports whether there is no key.
func (k DevicePrivate) IsZero() bool { return k.open == nil }

// Public implements crypto.Signer. It returns an *ecdsa.PublicKey.
func (k DevicePrivate) Public() crypto.PublicKey {
	if k.open == nil {
		return (*ecdsa.PublicKey)(nil)
	}
	return &k.open().PublicKey
}

// Device returns the public half.
func (k DevicePrivate) Device() DevicePublic {
	if k.open == nil {
		return DevicePublic{}
	}
	b, err := k.open().PublicKey.Bytes()
	if err != nil {
		return DevicePublic{}
	}
	return DevicePublic{[DeviceSize]byte(b)}
}

// Sign implements crypto.Signer over a SHA-256 digest. Signatures are deterministic (RFC 6979) and use the lower of the two
// possible values of s, so that a message has one signature.
func (k DevicePrivate) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if k.open == nil {
		return nil, errors.New("sign: no device key")
	}
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, errors.New("sign: a device key signs SHA-256 digests only")
	}
	sig, err := k.open().Sign(nil, digest, crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("sign with the device key: %w", err)
	}
	return lowerS(sig)
}

// DevicePublic is the public half of a device key. The zero value is no key.
type DevicePublic struct{ b [DeviceSize]byte }

// ParseDevicePublic parses an uncompressed point, and refuses one that is not on the curve.
func ParseDevicePublic(b []byte) (DevicePublic, error) {
	if len(b) != DeviceSize {
		return DevicePublic{}, fmt.Errorf("device key: %d bytes, want the %d of an uncompressed P-256 point", len(b), DeviceSize)
	}
	if _, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), b); err != nil {
		return DevicePublic{}, errors.New("device key: not a point of P-256")
	}
	return DevicePublic{[DeviceSize]byte(b)}, nil
}

// DeviceFromPublic converts the public key of a certificate or a crypto.Signer.
func DeviceFromPublic(pub crypto.PublicKey) (DevicePublic, error) {
	e, ok := pub.(*ecdsa.PublicKey)
	if !ok || e == nil || e.Curve != elliptic.P256() {
		return DevicePublic{}, fmt.Errorf("device key: a %T, want ECDSA P-256", pub)
	}
	b, err := e.Bytes()
	if err != nil {
		return DevicePublic{}, fmt.Errorf("device key: %w", err)
	}
	return ParseDevicePublic(b)
}

// Bytes returns the uncompressed point.
func (p DevicePublic) Bytes() []byte { return bytes.Clone(p.b[:]) }

// String returns a fingerprint: 16 bytes of the point's SHA-256, in hex.
func (p DevicePublic) String() string {
	h := sha256.Sum256(p.b[:])
	return hex.EncodeToString(h[:16])
}

// IsZero reports whether there is no key.
func (p DevicePublic) IsZero() bool { return p == DevicePublic{} }

// ECDSA returns the key in the form of the standard library; nil for the zero key.
func (p DevicePublic) ECDSA() *ecdsa.PublicKey {
	k, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), p.b[:])
	if err != nil {
		return nil
	}
	return k
}

// Verify checks a signature over a SHA-256 digest. It accepts only the one that a device key makes: canonical DER, low s.
func (p DevicePublic) Verify(digest, sig []byte) bool {
	if len(digest) != sha256.Size {
		return false
	}
	low, err := lowerS(sig)
	if err != nil || !bytes.Equal(low, sig) {
		return false
	}
	k := p.ECDSA()
	return k != nil && ecdsa.VerifyASN1(k, digest, sig)
}

// halfOrder is the greatest s that Verify accepts.
var halfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// lowerS returns the equivalent signature with s in the lower half, in canonical DER.
func lowerS(sig []byte) ([]byte, error) {
	var inner cryptobyte.String
	var r, s big.Int
	in := cryptobyte.String(sig)
	if !in.ReadASN1(&inner, asn1.SEQUENCE) || !in.Empty() ||
		!inner.ReadASN1Integer(&r) || !inner.ReadASN1Integer(&s) || !inner.Empty() {
		return nil, errors.New("not an ECDSA signature")
	}
	return DeviceSignature(&r, &s)
}

// DeviceSignature encodes r and s as the one signature that Verify accepts.
func DeviceSignature(r, s *big.Int) ([]byte, error) {
	order := elliptic.P256().Params().N
	if r.Sign() <= 0 || s.Sign() <= 0 || r.Cmp(order) >= 0 || s.Cmp(order) >= 0 {
		return nil, errors.New("not an ECDSA signature of P-256")
	}
	if s.Cmp(halfOrder) > 0 {
		s = new(big.Int).Sub(order, s)
	}
	var out cryptobyte.Builder
	out.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return out.Bytes()
}
