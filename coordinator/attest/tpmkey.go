package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// maxStructure bounds every TPM structure that is parsed: none that is used here is longer.
const maxStructure = 1024

// parse reads a TPM structure in its canonical form. The library uses reflection and is not written for untrusted input, so a
// panic becomes an error.
func parse[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](b []byte) (v *T, err error) {
	if len(b) == 0 || len(b) > maxStructure {
		return nil, fmt.Errorf("a structure of %d bytes, want 1 to %d", len(b), maxStructure)
	}
	defer func() {
		if recover() != nil {
			v, err = nil, errors.New("not a structure of a TPM")
		}
	}()
	if v, err = tpm2.Unmarshal[T, P](b); err != nil {
		return nil, errors.New("not a structure of a TPM")
	}
	if !bytes.Equal(tpm2.Marshal(*v), b) {
		return nil, errors.New("not the only form of a structure of a TPM")
	}
	return v, nil
}

// signer checks the public area of a signing key: P-256, created in the TPM that holds it, and never to leave it. A
// restricted key signs only statements of its TPM. It returns the public key and its name.
func signer(area []byte, restricted bool) (*ecdsa.PublicKey, []byte, error) {
	p, err := parse[tpm2.TPMTPublic](area)
	if err != nil {
		return nil, nil, err
	}
	a := p.ObjectAttributes
	switch {
	case p.Type != tpm2.TPMAlgECC || p.NameAlg != tpm2.TPMAlgSHA256:
		return nil, nil, errors.New("want an elliptic curve key with a SHA-256 name")
	case !a.FixedTPM || !a.FixedParent:
		return nil, nil, errors.New("the key may leave its TPM (fixedTPM, fixedParent)")
	case !a.SensitiveDataOrigin:
		return nil, nil, errors.New("the key was not made in its TPM (sensitiveDataOrigin)")
	case !a.SignEncrypt || a.Decrypt:
		return nil, nil, errors.New("the key is not one that only signs")
	case restricted && !a.Restricted:
		return nil, nil, errors.New("the key signs whatever it is given (it is not restricted)")
	case !restricted && a.Restricted:
		return nil, nil, errors.New("the key signs only what its TPM says (it is restricted)")
	}
	k, err := tpm2.Pub(*p)
	if err != nil {
		return nil, nil, errors.New("the public key cannot be read")
	}
	e, ok := k.(*ecdsa.PublicKey)
	if !ok || e.Curve != elliptic.P256() {
		return nil, nil, errors.New("want a key of curve P-256")
	}
	if _, err := e.ECDH(); err != nil {
		return nil, nil, errors.New("the public key is no point of P-256")
	}
	sum := sha256.Sum256(area)
	name := append([]byte{byte(tpm2.TPMAlgSHA256 >> 8), byte(tpm2.TPMAlgSHA256 & 0xff)}, sum[:]...)
	return e, name, nil
}

// endorsement is an EK after judgement.
type endorsement struct {
	id        string // of the piece of hardware
	key       tpm2.LabeledEncapsulationKey
	level     cert.Level
	selectors []string
	check     string
}

// judgeEK decides which level an endorsement key is worth.
func judgeEK(m *redoubtv1.TPMOpening, makers *Authorities, now time.Time) (*endorsement, error) {
	p, err := parse[tpm2.TPMTPublic](m.GetEkPublic())
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	public, err := endorsementKey(p)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	sum := sha256.Sum256(der)
	e := &endorsement{id: "tpm:" + hex.EncodeToString(sum[:16]), level: cert.LevelTPMUnverified}
	if e.key, err = tpm2.ImportEncapsulationKey(p); err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	if len(m.GetEkCertificate()) == 0 {
		e.check = "the TPM has no certificate of its maker"
		return e, nil
	}
	c, err := endorsementCertificate(m.GetEkCertificate())
	if err != nil {
		return nil, fmt.Errorf("certificate of the endorsement key: %w", err)
	}
	if own, err := x509.MarshalPKIXPublicKey(c.PublicKey); err != nil || !bytes.Equal(own, der) {
		return nil, errors.New("certificate of the endorsement key: it is of another TPM's")
	}
	e.selectors = tpmSelectors(c)
	if makers.Len() == 0 {
		e.check = "no maker of TPMs is trusted here (--tpm-roots)"
		return e, nil
	}
	if err := makers.verify(c, nil, now, x509.ExtKeyUsageAny); err != nil {
		return nil, fmt.Errorf("certificate of the endorsement key: its maker, %.80q, is not trusted here; put the maker's CA into --tpm-roots, "+
			"or join without the TPM (redoubt agent --tpm off): %w", c.Issuer.String(), err)
	}
	e.level, e.check = cert.LevelTPM, "the TPM's maker is "+printable(c.Issuer.CommonName)
	return e, nil
}

// endorsementKey returns the public key of an EK's public area: it decrypts only what is meant for the TPM, and never leaves
// it.
func endorsementKey(p *tpm2.TPMTPublic) (any, error) {
	a := p.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return nil, errors.New("its attributes are not those of an endorsement key")
	}
	if p.NameAlg != tpm2.TPMAlgSHA256 && p.NameAlg != tpm2.TPMAlgSHA384 {
		return nil, errors.New("its name is not made with SHA-256 or SHA-384")
	}
	var symmetric *tpm2.TPMTSymDefObject
	switch p.Type {
	case tpm2.TPMAlgRSA:
		d, err := p.Parameters.RSADetail()
		if err != nil {
			return nil, err
		}
		symmetric = &d.Symmetric
	case tpm2.TPMAlgECC:
		d, err := p.Parameters.ECCDetail()
		if err != nil {
			return nil, err
		}
		symmetric = &d.Symmetric
	default:
		return nil, errors.New("neither RSA nor elliptic curve")
	}
	if symmetric.Algorithm != tpm2.TPMAlgAES {
		return nil, errors.New("it does not protect with AES")
	}
	k, err := tpm2.Pub(*p)
	if err != nil {
		return nil, errors.New("the public key cannot be read")
	}
	switch k := k.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > 4096 || k.E < 3 || k.N.Bit(0) == 0 {
			return nil, fmt.Errorf("an RSA key of %d bits with exponent %d", bits, k.E)
		}
		return k, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return nil, errors.New("want a key of P-256 or P-384")
		}
		if _, err := k.ECDH(); err != nil {
			return nil, errors.New("the public key is no point of its curve")
		}
		return k, nil
	}
	return nil, errors.New("neither RSA nor elliptic curve")
}

var (
	oidEKCertificate = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidSubjectAlt    = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidManufacturer  = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel         = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion       = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// endorsementCertificate parses an EK certificate. Its subject is empty, and its name is in a critical subject alternative
// name of a form that the standard library does not support; that form is parsed here.
func endorsementCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, fmt.Errorf("%d bytes, at most %d", len(der), maxCertificate)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("it cannot be read")
	}
	c.UnhandledCriticalExtensions = slices.DeleteFunc(c.UnhandledCriticalExtensions, func(o asn1.ObjectIdentifier) bool { return o.Equal(oidSubjectAlt) })
	switch {
	case c.IsCA:
		return nil, errors.New("it is an authority's")
	case !slices.ContainsFunc(c.UnknownExtKeyUsage, oidEKCertificate.Equal):
		return nil, errors.New("it is not marked as one of an endorsement key")
	}
	return c, nil
}

// tpmSelectors describes the TPM, according to its maker's certificate.
func tpmSelectors(c *x509.Certificate) (list []string) {
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidSubjectAlt) {
			continue
		}
		for _, a := range directoryName(e.Value) {
			s, _ := a.Value.(string)
			switch {
			case a.Type.Equal(oidManufacturer):
				list = selectors(list, "tpm:vendor", vendor(s))
			case a.Type.Equal(oidModel):
				list = selectors(list, "tpm:model", s)
			case a.Type.Equal(oidVersion):
				list = selectors(list, "tpm:version", strings.TrimPrefix(s, "id:"))
			}
		}
	}
	return list
}

// directoryName extracts the directory name from a subject alternative name, as far as it is understood.
func directoryName(extension []byte) (out []pkix.AttributeTypeAndValue) {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(extension, &names); err != nil || len(rest) > 0 {
		return nil
	}
	for _, n := range names {
		if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
			continue
		}
		var rdns pkix.RDNSequence
		if rest, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil || len(rest) > 0 {
			continue
		}
		for _, set := range rdns {
			out = append(out, set...)
		}
	}
	return out
}

// vendor decodes a name such as "id:49465800", four letters in hexadecimal.
func vendor(s string) string {
	b, err := hex.DecodeString(strings.TrimPrefix(s, "id:"))
	if name := strings.TrimRight(string(b), "\x00 "); err == nil && proto.ValidText(name, 8) {
		return name
	}
	return s
}

// printable makes text from outside fit to be shown and stored.
func printable(s string) string {
	if !proto.ValidText(s, maxSelector) {
		return "not said in printable text"
	}
	return s
}
