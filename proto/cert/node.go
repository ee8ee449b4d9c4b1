package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// NodeKey is a WireGuard key and the time in which it may be used.
type NodeKey struct {
	Public              key.NodePublic
	NotBefore, NotAfter time.Time
}

// Node is the content of a node certificate.
type Node struct {
	Mesh proto.MeshID
	proto.Identity
	DNSName string // Name, a dot, and the mesh's domain
	Device  key.DevicePublic
	// Relay is set if the certificate is a relay's: it has the role of a relay, and is never accepted as a node's.
	Relay               bool
	Keys                []NodeKey // one, or the current and the next
	Level               Level
	Sequence            uint64 // increases with every certificate of the node
	NotBefore, NotAfter time.Time

	// Raw and Serial (in hex) are set for existing certificates; IssueNode ignores them.
	Raw    []byte
	Serial string
	// Signed is the signature that a Verifier relied on; zero if none was checked.
	Signed Signature
}

// HasKey reports whether the certificate lists p as valid at the given time, with Skew as tolerance.
func (n *Node) HasKey(p key.NodePublic, at time.Time) bool {
	return slices.ContainsFunc(n.Keys, func(k NodeKey) bool {
		return k.Public == p && within(k.NotBefore, k.NotAfter, at) == nil
	})
}

// Role is the role of a certificate's holder, as in its SPIFFE id.
type Role string

// The roles.
const (
	RoleNode        Role = "node"
	RoleCoordinator Role = "coordinator"
	RoleRelay       Role = "relay"
)

// maxID limits the length of an id in a SPIFFE id.
const maxID = 64

// spiffe is the content of a certificate's URI; for an authority, the mesh alone.
type spiffe struct {
	Mesh proto.MeshID
	Role Role
	ID   string
}

func (s spiffe) url() *url.URL {
	u := &url.URL{Scheme: "spiffe", Host: string(s.Mesh)}
	if s.Role != "" {
		u.Path = "/" + string(s.Role) + "/" + s.ID
	}
	return u
}

// spiffeOf parses the certificate's only URI.
func spiffeOf(c *x509.Certificate) (spiffe, error) {
	if len(c.URIs) != 1 {
		return spiffe{}, fmt.Errorf("%w: %d URIs, want one", ErrMalformed, len(c.URIs))
	}
	u := c.URIs[0]
	s := spiffe{Mesh: proto.MeshID(u.Host)}
	if u.Path != "" {
		parts := strings.Split(u.Path, "/")
		if len(parts) != 3 || parts[0] != "" || parts[1] == "" || !validID(parts[2]) {
			return spiffe{}, fmt.Errorf("%w: its URI is no SPIFFE id of a mesh", ErrMalformed)
		}
		s.Role, s.ID = Role(parts[1]), parts[2]
	}
	// This comparison rejects everything else that a URI can contain.
	if s.Mesh.Validate() != nil || u.String() != s.url().String() {
		return spiffe{}, fmt.Errorf("%w: its URI is no SPIFFE id of a mesh", ErrMalformed)
	}
	return s, nil
}

func validID(s string) bool {
	return s != "" && len(s) <= maxID && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// parseCertificate parses a certificate of limited size and checks what all certificates of a mesh have in common.
func parseCertificate(b []byte) (*x509.Certificate, error) {
	if err := checkSize(b); err != nil {
		return nil, err
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := checkProfile(c); err != nil {
		return nil, err
	}
	return c, nil
}

func checkSize(b []byte) error {
	if len(b) > proto.MaxCertificate {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrMalformed, len(b), proto.MaxCertificate)
	}
	return nil
}

// checkProfile checks what all certificates of a mesh have in common.
func checkProfile(c *x509.Certificate) error {
	pub, ok := c.PublicKey.(*ecdsa.PublicKey)
	switch {
	case !ok || pub.Curve != elliptic.P256() || c.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return fmt.Errorf("%w: not ECDSA with P-256 and SHA-256", ErrMalformed)
	case c.Version != 3 || c.SerialNumber.Sign() <= 0:
		return fmt.Errorf("%w: version or serial number", ErrMalformed)
	case len(c.UnhandledCriticalExtensions) != 0:
		return fmt.Errorf("%w: critical extension %s is not known", ErrMalformed, c.UnhandledCriticalExtensions[0])
	case !c.NotBefore.Before(c.NotAfter):
		return fmt.Errorf("%w: ends before it begins", ErrMalformed)
	}
	return nil
}

// checkLeaf checks what all leaves have in common, and that c has the given role. An empty mesh means any.
func checkLeaf(c *x509.Certificate, mesh proto.MeshID, role Role) (spiffe, error) {
	s, err := spiffeOf(c)
	if err != nil {
		return spiffe{}, err
	}
	if mesh != "" && s.Mesh != mesh {
		return spiffe{}, fmt.Errorf("%w: %s, not %s", ErrMesh, s.Mesh, mesh)
	}
	if s.Role != role {
		got := s.Role
		if got == "" {
			got = "authority"
		}
		return spiffe{}, fmt.Errorf("%w: %s, not %s", ErrRole, got, role)
	}
	wanted := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if role == RoleCoordinator || role == RoleRelay {
		wanted = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature || len(c.UnknownExtKeyUsage) != 0 || !slices.Equal(c.ExtKeyUsage, wanted) {
		return spiffe{}, fmt.Errorf("%w: key usage does not fit a %s", ErrMalformed, role)
	}
	return s, nil
}

// ParseNode parses a certificate of a node or a relay without verifying its signature: nothing in the result can be trusted. Use
// Verifier.Node for certificates from outside.
func ParseNode(b []byte) (*Node, error) {
	c, err := parseCertificate(b)
	if err != nil {
		return nil, err
	}
	return nodeFrom(c)
}

// nodeFrom is ParseNode for a parsed certificate.
func nodeFrom(c *x509.Certificate) (*Node, error) {
	s, err := checkLeaf(c, "", memberRole(c))
	if err != nil {
		return nil, err
	}
	return nodeOf(c, s)
}

// memberRole returns RoleRelay for the certificate of a relay, and RoleNode for all others.
func memberRole(c *x509.Certificate) Role {
	if s, err := spiffeOf(c); err == nil && s.Role == RoleRelay {
		return RoleRelay
	}
	return RoleNode
}

// nodeOf reads the contents that only certificates of nodes and relays have.
func nodeOf(c *x509.Certificate, s spiffe) (*Node, error) {
	id, err := proto.ParseNodeID(s.ID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	device, err := key.DeviceFromPublic(c.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	n := &Node{
		Mesh: s.Mesh, Device: device, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		Raw: bytes.Clone(c.Raw), Serial: c.SerialNumber.Text(16),
	}
	n.ID, n.Relay = id, s.Role == RoleRelay
	if err := n.readNames(c); err != nil {
		return nil, err
	}
	raw, ok := extensionOf(c)
	if !ok {
		return nil, fmt.Errorf("%w: it has none", ErrExtension)
	}
	e, err := parseExtension(raw)
	if err != nil {
		return nil, err
	}
	n.Keys, n.Level, n.Sequence, n.Tags, n.User = e.Keys, e.Level, e.Sequence, e.Tags, e.User
	if err := n.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return n, nil
}

// readNames reads the DNS name and the two addresses, and rejects any other names.
func (n *Node) readNames(c *x509.Certificate) error {
	if len(c.DNSNames) != 1 || len(c.IPAddresses) != 2 || len(c.EmailAddresses) != 0 {
		return fmt.Errorf("%w: want one DNS name and two addresses", ErrMalformed)
	}
	n.DNSName = c.DNSNames[0]
	name, domain, _ := strings.Cut(n.DNSName, ".")
	n.Name = name
	for l := range strings.SplitSeq(domain, ".") {
		if !proto.ValidName(l) {
			return fmt.Errorf("%w: its DNS name", ErrMalformed)
		}
	}
	v4, ok4 := netip.AddrFromSlice(c.IPAddresses[0])
	v6, ok6 := netip.AddrFromSlice(c.IPAddresses[1])
	if !ok4 || !ok6 {
		return fmt.Errorf("%w: its addresses", ErrMalformed)
	}
	n.Addrs = proto.Addrs{V4: v4, V6: v6}
	return nil
}

func extensionOf(c *x509.Certificate) ([]byte, bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oidNode) {
			return e.Value, true
		}
	}
	return nil, false
}
