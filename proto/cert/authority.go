package cert

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Authority is a root or an intermediate together with its private key, which is of the same kind as a device key.
type Authority struct {
	mesh   proto.MeshID
	cert   *x509.Certificate
	signer key.DevicePrivate
}

// NewRoot creates the root of a mesh. A root signs only intermediates and other roots.
func NewRoot(rand io.Reader, mesh proto.MeshID, now time.Time, lifetime time.Duration) (*Authority, error) {
	if err := mesh.Validate(); err != nil {
		return nil, err
	}
	signer, err := key.NewDevice(rand)
	if err != nil {
		return nil, err
	}
	t, err := authorityTemplate(rand, mesh, "root", now, now.Add(lifetime))
	if err != nil {
		return nil, err
	}
	t.MaxPathLen = 1
	distinguish(t)
	b, err := x509.CreateCertificate(rand, t, t, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign the mesh root: %w", err)
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("sign the mesh root: %w", err)
	}
	return &Authority{mesh: mesh, cert: c, signer: signer}, nil
}

// NewIntermediate creates an authority that signs leaves. It must not outlive the root.
func (a *Authority) NewIntermediate(rand io.Reader, now time.Time, lifetime time.Duration) (*Authority, error) {
	signer, err := key.NewDevice(rand)
	if err != nil {
		return nil, fmt.Errorf("sign an intermediate: %w", err)
	}
	c, err := a.SignIntermediate(rand, signer.Public(), now, lifetime)
	if err != nil {
		return nil, err
	}
	return &Authority{mesh: a.mesh, cert: c, signer: signer}, nil
}

// SignIntermediate is like NewIntermediate, for a private key that somebody else holds.
func (a *Authority) SignIntermediate(rand io.Reader, pub crypto.PublicKey, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	if !a.isRoot() {
		return nil, errors.New("sign an intermediate: only a root may")
	}
	if _, err := key.DeviceFromPublic(pub); err != nil {
		return nil, fmt.Errorf("sign an intermediate: %w", err)
	}
	t, err := authorityTemplate(rand, a.mesh, "intermediate", now, now.Add(lifetime))
	if err != nil {
		return nil, fmt.Errorf("sign an intermediate: %w", err)
	}
	t.MaxPathLenZero = true
	distinguish(t)
	c, err := a.sign(rand, t, pub)
	if err != nil {
		return nil, fmt.Errorf("sign an intermediate: %w", err)
	}
	return c, nil
}

// distinguish gives t a subject that no other authority has: in a handshake, a server lists by subject the authorities that
// clients need not send, and a certificate names its issuer by subject.
func distinguish(t *x509.Certificate) {
	t.Subject.CommonName += " " + numbered(t)
}

// numbered returns the start of a serial number. That of a certificate from elsewhere may be short.
func numbered(c *x509.Certificate) string {
	b := c.SerialNumber.Bytes()
	return fmt.Sprintf("%x", b[:min(8, len(b))])
}

func authorityTemplate(rand io.Reader, mesh proto.MeshID, what string, from, to time.Time) (*x509.Certificate, error) {
	t, err := template(rand, "Redoubt mesh "+what, spiffe{Mesh: mesh}, from, to)
	if err != nil {
		return nil, err
	}
	t.IsCA = true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	t.BasicConstraintsValid = true
	return t, nil
}

// template returns what all certificates have in common.
func template(rand io.Reader, commonName string, id spiffe, from, to time.Time) (*x509.Certificate, error) {
	from, to = from.UTC().Truncate(time.Second), to.UTC().Truncate(time.Second)
	if !from.Before(to) {
		return nil, fmt.Errorf("a certificate from %s to %s", from, to)
	}
	var serial [16]byte
	if _, err := io.ReadFull(rand, serial[:]); err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and always of the same length
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    from,
		NotAfter:     to,
		URIs:         []*url.URL{id.url()},
	}, nil
}

func (a *Authority) isRoot() bool { return a.cert.MaxPathLen == 1 }

// sign refuses to sign what no verifier would accept: a certificate whose validity is not within its issuer's.
func (a *Authority) sign(rand io.Reader, t *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	if t.NotBefore.Before(a.cert.NotBefore.Add(-Skew)) || t.NotAfter.After(a.cert.NotAfter) {
		return nil, fmt.Errorf("from %s to %s is not within the issuer's time, %s to %s",
			t.NotBefore, t.NotAfter, a.cert.NotBefore, a.cert.NotAfter)
	}
	b, err := x509.CreateCertificate(rand, t, a.cert, pub, a.signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(b)
}

// Mesh returns the mesh that the authority belongs to.
func (a *Authority) Mesh() proto.MeshID { return a.mesh }

// Certificate returns the authority's own certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// IssueNode signs a node certificate with the contents of n, except for Raw, Serial and Signed, and returns it as parsed from the
// signed bytes. A Verifier accepts what it returns.
func (a *Authority) IssueNode(rand io.Reader, n Node) (*Node, error) {
	if err := a.checkIssue(n); err != nil {
		return nil, fmt.Errorf("issue a certificate to node %s: %w", n.ID, err)
	}
	role, usage := RoleNode, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if n.Relay {
		role, usage = RoleRelay, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	t, err := template(rand, n.ID.String(), spiffe{Mesh: n.Mesh, Role: role, ID: n.ID.String()}, n.NotBefore, n.NotAfter)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate to node %s: %w", n.ID, err)
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = usage
	t.DNSNames = []string{n.DNSName}
	t.IPAddresses = []net.IP{n.Addrs.V4.AsSlice(), n.Addrs.V6.AsSlice()}
	ext, err := extension{Sequence: n.Sequence, Level: n.Level, Keys: n.Keys, Tags: n.Tags, User: n.User}.marshal()
	if err != nil {
		return nil, fmt.Errorf("issue a certificate to node %s: %w", n.ID, err)
	}
	t.ExtraExtensions = []pkix.Extension{{Id: oidNode, Value: ext}}
	c, err := a.sign(rand, t, n.Device.ECDSA())
	if err != nil {
		return nil, fmt.Errorf("issue a certificate to node %s: %w", n.ID, err)
	}
	if err := cmp.Or(checkSize(c.Raw), checkProfile(c)); err != nil {
		return nil, fmt.Errorf("issue a certificate to node %s: %w", n.ID, err)
	}
	issued, err := nodeFrom(c)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate to node %s: %w", n.ID, err)
	}
	return issued, nil
}

func (a *Authority) checkIssue(n Node) error {
	switch {
	case a.isRoot():
		return errors.New("a root signs intermediates only")
	case n.Mesh != a.mesh:
		return fmt.Errorf("mesh %q, not %s", n.Mesh, a.mesh)
	case n.Device.IsZero():
		return errors.New("no device key")
	case !n.Level.Valid():
		return fmt.Errorf("attestation %s", n.Level)
	case len(n.DNSName) <= len(n.Name)+1 || n.DNSName[:len(n.Name)+1] != n.Name+".":
		return fmt.Errorf("DNS name %q is not that of %q in a domain", n.DNSName, n.Name)
	}
	if err := n.Validate(); err != nil {
		return err
	}
	return checkKeys(n.Keys)
}

// IssueCoordinator signs the certificate that a coordinator presents in TLS handshakes.
func (a *Authority) IssueCoordinator(rand io.Reader, mesh proto.MeshID, id string, pub crypto.PublicKey, now time.Time, lifetime time.Duration) ([]byte, error) {
	if a.isRoot() || mesh != a.mesh || !validID(id) {
		return nil, fmt.Errorf("issue a certificate to coordinator %q of mesh %s: an intermediate of that mesh does, for an id of a-z, 0-9 and -", id, mesh)
	}
	if _, err := key.DeviceFromPublic(pub); err != nil {
		return nil, fmt.Errorf("issue a certificate to coordinator %s: %w", id, err)
	}
	t, err := template(rand, "coordinator", spiffe{Mesh: mesh, Role: RoleCoordinator, ID: id}, now, now.Add(lifetime))
	if err != nil {
		return nil, fmt.Errorf("issue a certificate to coordinator %s: %w", id, err)
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c, err := a.sign(rand, t, pub)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate to coordinator %s: %w", id, err)
	}
	return c.Raw, nil
}

// certificateType is the type of PEM blocks with certificates.
const certificateType = "CERTIFICATE"

// MarshalPEM encodes the authority's private key and certificate, for a file of mode 0600.
func (a *Authority) MarshalPEM() ([]byte, error) {
	b, err := a.signer.MarshalPEM()
	if err != nil {
		return nil, err
	}
	return append(b, pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: a.cert.Raw})...), nil
}

// ParseAuthority parses the output of MarshalPEM.
func ParseAuthority(b []byte) (*Authority, error) {
	_, rest := pem.Decode(b)
	block, tail := pem.Decode(rest)
	if block == nil || block.Type != certificateType || len(bytes.TrimSpace(tail)) != 0 {
		return nil, errors.New("authority: want a key and a certificate in PEM, and nothing else")
	}
	signer, err := key.ParseDevicePEM(b[:len(b)-len(rest)])
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return NewAuthority(signer, block.Bytes)
}

// NewAuthority combines a private key and its certificate.
func NewAuthority(signer key.DevicePrivate, der []byte) (*Authority, error) {
	c, mesh, err := parseAuthorityCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	if pub, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(signer.Public()) {
		return nil, errors.New("authority: key and certificate do not belong together")
	}
	return &Authority{mesh: mesh, cert: c, signer: signer}, nil
}

// parseAuthorityCertificate parses a certificate and checks that it has the profile of a root or an intermediate.
func parseAuthorityCertificate(b []byte) (*x509.Certificate, proto.MeshID, error) {
	c, err := parseCertificate(b)
	if err != nil {
		return nil, "", err
	}
	s, err := spiffeOf(c)
	if err != nil {
		return nil, "", err
	}
	if s.Role != "" {
		return nil, "", fmt.Errorf("%w: %s, not authority", ErrRole, s.Role)
	}
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 || len(c.SubjectKeyId) == 0 ||
		c.MaxPathLen < 0 || c.MaxPathLen > 1 {
		return nil, "", fmt.Errorf("%w: not the profile of an authority", ErrMalformed)
	}
	return c, s.Mesh, nil
}

// Fingerprint returns the SHA-256 of the certificate's SubjectPublicKeyInfo, by which join codes identify a root.
func Fingerprint(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
