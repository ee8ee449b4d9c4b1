package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// X509 is the attestor for machines with a certificate of the company's own CA, for example from an MDM. It proves that the
// machine holds that certificate's key.
type X509 struct{ authorities *Authorities }

// NewX509 returns an attestor that trusts the company's CAs.
func NewX509(authorities *Authorities) X509 { return X509{authorities} }

// Limits on what a machine may send.
const (
	maxChain       = 5
	maxCertificate = 8 << 10
	minRSA         = 2048
	maxRSA         = 8192 // the time to verify grows with the key
)

// Kind implements Attestor.
func (X509) Kind() string { return wire.EvidenceX509 }

// x509State marks an exchange that this attestor began.
type x509State struct{}

// Begin implements Attestor.
func (X509) Begin(time.Time, io.Reader, Claim, []byte) ([]byte, State, error) {
	return nil, x509State{}, nil
}

// Again implements Attestor. The certificate may be the machine's next one: the device key is the same.
func (X509) Again(time.Time, Claim, []byte) ([]byte, State, error) { return nil, x509State{}, nil }

// Finish implements Attestor.
func (x X509) Finish(now time.Time, s State, evidence []byte, binding [32]byte) (Attributes, error) {
	if _, ok := s.(x509State); !ok {
		return Attributes{}, errState
	}
	var m redoubtv1.X509Evidence
	if err := pb.Unmarshal(evidence, &m); err != nil {
		return Attributes{}, errors.New("not a message of this kind")
	}
	if len(m.GetChain()) == 0 {
		return Attributes{}, &UnableError{"it shows no certificate of the company"}
	}
	if len(m.GetChain()) > maxChain {
		return Attributes{}, fmt.Errorf("%d certificates, at most %d", len(m.GetChain()), maxChain)
	}
	var chain []*x509.Certificate
	for _, der := range m.GetChain() {
		if len(der) > maxCertificate {
			return Attributes{}, fmt.Errorf("a certificate of %d bytes, at most %d", len(der), maxCertificate)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return Attributes{}, errors.New("a certificate cannot be read")
		}
		if k, ok := c.PublicKey.(*rsa.PublicKey); ok && (k.N.BitLen() < minRSA || k.N.BitLen() > maxRSA) {
			return Attributes{}, fmt.Errorf("an RSA key of %d bits", k.N.BitLen())
		}
		chain = append(chain, c)
	}
	leaf := chain[0]
	if err := x.authorities.verify(leaf, chain[1:], now, x509.ExtKeyUsageClientAuth); err != nil {
		return Attributes{}, fmt.Errorf("the certificate of %.80q is not one of a trusted CA (--x509-roots): %w", leaf.Subject.String(), err)
	}
	if err := possesses(leaf, m.GetSignature(), binding); err != nil {
		return Attributes{}, err
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	a := Attributes{
		DeviceID: "x509:" + hex.EncodeToString(sum[:16]), Level: cert.LevelX509, CanReattest: true,
		Checks: []string{"join token", "certificate of a trusted CA, valid now", "its key is held"},
	}
	a.Selectors = selectors(a.Selectors, "x509:subject", leaf.Subject.String())
	a.Selectors = selectors(a.Selectors, "x509:issuer", leaf.Issuer.String())
	a.Selectors = selectors(a.Selectors, "x509:serial", leaf.SerialNumber.Text(16))
	a.Selectors = selectors(a.Selectors, "x509:until", leaf.NotAfter.UTC().Format(time.RFC3339))
	return a, nil
}

// possesses checks that the key of a certificate signed the binding.
func possesses(c *x509.Certificate, signature []byte, binding [32]byte) error {
	digest := wire.PossessionDigest(binding)
	var ok bool
	switch k := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(k, digest[:], signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPSS(k, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(k, digest[:], signature)
	default:
		return fmt.Errorf("a certificate with a %T, want ECDSA, RSA or Ed25519", k)
	}
	if !ok {
		return errors.New("the key of the certificate did not sign this exchange")
	}
	return nil
}
