package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Skew is how far clocks may be apart: validity is stretched by it at both ends.
const Skew = 60 * time.Second

const (
	maxRoots         = 8
	maxIntermediates = 128 // those that were verified; the ones that end first are forgotten first
	maxChain         = 5
)

// Verifier judges certificates by the roots of one mesh. It may be used by several goroutines.
type Verifier struct {
	mesh  proto.MeshID
	roots []anchor

	mu            sync.RWMutex
	successors    []anchor                   // roots that one of roots vouches for
	intermediates map[[32]byte]*intermediate // by SHA-256 of the certificate
	presumed      map[Signature]struct{}
}

// anchor is a root under which intermediates are trusted, with what must be valid for that.
type anchor struct {
	cert  *x509.Certificate // as it signed itself, or as the root before it signed it
	above []*x509.Certificate
	pool  *x509.CertPool // holds cert alone
}

func newAnchor(c *x509.Certificate, above ...*x509.Certificate) anchor {
	return anchor{cert: c, above: append([]*x509.Certificate{c}, above...), pool: poolOf(c)}
}

func poolOf(c *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return pool
}

// intermediate is one whose signature by a root was checked. Its validity is asked anew each time.
type intermediate struct {
	sum   [32]byte // SHA-256 of the certificate
	cert  *x509.Certificate
	above []*x509.Certificate
	pool  *x509.CertPool // holds cert alone
}

// NewVerifier trusts the given roots, each of which must be a root of the mesh. It wants at least one.
func NewVerifier(mesh proto.MeshID, roots []*x509.Certificate) (*Verifier, error) {
	if len(roots) == 0 || len(roots) > maxRoots {
		return nil, fmt.Errorf("%w: %d roots, want 1 to %d", ErrChain, len(roots), maxRoots)
	}
	v := &Verifier{mesh: mesh, intermediates: map[[32]byte]*intermediate{}}
	for _, r := range roots {
		_, m, err := ParseRoot(r.Raw)
		if err != nil {
			return nil, fmt.Errorf("root %x: %w", Fingerprint(r), err)
		}
		if m != mesh {
			return nil, fmt.Errorf("root %x: %w: %s, not %s", Fingerprint(r), ErrMesh, m, mesh)
		}
		v.roots = append(v.roots, newAnchor(r))
	}
	return v, nil
}

// ParseRoot reads the certificate of a mesh's root, signed by itself, and says which mesh that is. Whether to trust it is
// another question.
func ParseRoot(b []byte) (*x509.Certificate, proto.MeshID, error) {
	c, mesh, err := parseAuthorityCertificate(b)
	if err != nil {
		return nil, "", err
	}
	if !isRoot(c) || !selfIssued(c) {
		return nil, "", fmt.Errorf("%w: not a root", ErrRole)
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return nil, "", fmt.Errorf("%w: not signed by itself", ErrChain)
	}
	return c, mesh, nil
}

// Mesh is the mesh whose certificates are verified.
func (v *Verifier) Mesh() proto.MeshID { return v.mesh }

// Roots are the roots that are trusted by themselves.
func (v *Verifier) Roots() []*x509.Certificate {
	roots := make([]*x509.Certificate, len(v.roots))
	for i, a := range v.roots {
		roots[i] = a.cert
	}
	return roots
}

// Trusts says whether a root is one that is trusted, or that one of those vouches for as far as is known.
func (v *Verifier) Trusts(root *x509.Certificate) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return among(v.roots, root) || among(v.successors, root)
}

// among says whether one of the anchors is the same root: the same key under the same name, whoever signed it.
func among(anchors []anchor, root *x509.Certificate) bool {
	return slices.ContainsFunc(anchors, func(a anchor) bool {
		return bytes.Equal(a.cert.RawSubjectPublicKeyInfo, root.RawSubjectPublicKeyInfo) && bytes.Equal(a.cert.RawSubject, root.RawSubject)
	})
}

// AddIntermediates checks who signed the intermediates and keeps them, so that leaves under them can be verified. Roots that a
// trusted one has cross-signed may be among them, in any order. Either all are good or none is kept.
func (v *Verifier) AddIntermediates(ders [][]byte) error {
	if len(ders) > proto.MaxAuthorities {
		return fmt.Errorf("%w: %d intermediates, at most %d", ErrMalformed, len(ders), proto.MaxAuthorities)
	}
	var certs []*x509.Certificate
	for _, b := range ders {
		if v.known(b) {
			continue
		}
		c, err := v.parseAuthority(b)
		if err != nil {
			return fmt.Errorf("intermediate: %w", err)
		}
		certs = append(certs, c)
	}
	successors, fresh, err := v.check(certs)
	if err != nil {
		return fmt.Errorf("intermediate: %w", err)
	}
	v.keep(successors, fresh)
	return nil
}

func (v *Verifier) known(b []byte) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.intermediates[sha256.Sum256(b)] != nil
}

// Knows says whether one of the intermediates has a key.
func (v *Verifier) Knows(public *ecdsa.PublicKey) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, i := range v.intermediates {
		if public.Equal(i.cert.PublicKey) {
			return true
		}
	}
	return false
}

func (v *Verifier) keep(successors []anchor, fresh []*intermediate) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, a := range successors {
		if !among(v.successors, a.cert) && len(v.successors) < maxRoots {
			v.successors = append(v.successors, a)
		}
	}
	for _, i := range fresh {
		v.intermediates[i.sum] = i
	}
	for len(v.intermediates) > maxIntermediates {
		var first [32]byte
		var end time.Time
		for k, i := range v.intermediates {
			if end.IsZero() || i.cert.NotAfter.Before(end) {
				first, end = k, i.cert.NotAfter
			}
		}
		delete(v.intermediates, first)
	}
}

// parseAuthority asks for profile and mesh.
func (v *Verifier) parseAuthority(b []byte) (*x509.Certificate, error) {
	c, mesh, err := parseAuthorityCertificate(b)
	if err != nil {
		return nil, err
	}
	if mesh != v.mesh {
		return nil, fmt.Errorf("%w: %s, not %s", ErrMesh, mesh, v.mesh)
	}
	if isRoot(c) && selfIssued(c) {
		return nil, fmt.Errorf("%w: not an intermediate", ErrRole)
	}
	return c, nil
}

// check finds the signer of each certificate: of a cross-signed root one of the roots that are trusted by themselves, of an
// intermediate one of those, or a root that they vouch for.
func (v *Verifier) check(certs []*x509.Certificate) (successors []anchor, fresh []*intermediate, err error) {
	v.mu.RLock()
	anchors := slices.Concat(v.roots, v.successors)
	v.mu.RUnlock()
	for _, c := range certs {
		if !isRoot(c) || among(anchors, c) {
			continue
		}
		by, ok := signer(v.roots, c)
		if !ok {
			return nil, nil, ErrChain
		}
		successors = append(successors, newAnchor(c, by.cert))
		anchors = append(anchors, successors[len(successors)-1])
	}
	for _, c := range certs {
		if isRoot(c) {
			continue
		}
		by, ok := signer(anchors, c)
		if !ok {
			return nil, nil, ErrChain
		}
		fresh = append(fresh, &intermediate{sum: sha256.Sum256(c.Raw), cert: c, above: by.above, pool: poolOf(c)})
	}
	return successors, fresh, nil
}

// signer finds the anchor that signed an authority.
func signer(anchors []anchor, c *x509.Certificate) (anchor, bool) {
	for _, a := range anchors {
		if signedBy(c, a.cert, a.pool, c.NotBefore) == nil {
			return a, true
		}
	}
	return anchor{}, false
}

// signedBy says whether issuer, the only member of pool, signed c as an authority may. The moment that x509 is asked about
// is the one closest to at when both were valid: skew is not something that it knows, so validity is judged by within.
func signedBy(c, issuer *x509.Certificate, pool *x509.CertPool, at time.Time) error {
	from, to := c.NotBefore, c.NotAfter
	if issuer.NotBefore.After(from) {
		from = issuer.NotBefore
	}
	if issuer.NotAfter.Before(to) {
		to = issuer.NotAfter
	}
	if from.After(to) {
		return fmt.Errorf("%w: never valid together with its issuer", ErrChain)
	}
	if at.Before(from) {
		at = from
	}
	if at.After(to) {
		at = to
	}
	_, err := c.Verify(x509.VerifyOptions{
		Roots:         pool, // never nil: nil would mean the system's
		Intermediates: x509.NewCertPool(),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChain, err)
	}
	return nil
}

// within judges a time by a validity stretched by the skew.
func within(from, to, at time.Time) error {
	switch {
	case at.Before(from.Add(-Skew)):
		return fmt.Errorf("%w: begins %s, it is %s", ErrNotYetValid, stamp(from), stamp(at))
	case at.After(to.Add(Skew)):
		return fmt.Errorf("%w: ended %s, it is %s", ErrExpired, stamp(to), stamp(at))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// leaf checks everything that certificates of all roles have in common.
func (v *Verifier) leaf(b []byte, role Role, at func(*x509.Certificate) time.Time) (leaf, error) {
	c, err := parseCertificate(b)
	if err != nil {
		return leaf{}, err
	}
	s, err := checkLeaf(c, v.mesh, role)
	if err != nil {
		return leaf{}, err
	}
	signed, err := v.chain(c, at(c))
	return leaf{c, s, signed}, err
}

// leaf is a certificate of a role that holds.
type leaf struct {
	cert   *x509.Certificate
	spiffe spiffe
	signed Signature
}

// chain finds the issuer of a leaf among the verified intermediates and judges the validity of all three. It says whose signature
// it relied on.
func (v *Verifier) chain(c *x509.Certificate, at time.Time) (Signature, error) {
	refused := ErrChain
	for _, i := range v.issuers(c) {
		signed := signatureOf(c, i)
		if err := v.signed(signed, c, i, at); err != nil {
			continue
		}
		err := within(c.NotBefore, c.NotAfter, at)
		for _, above := range append([]*x509.Certificate{i.cert}, i.above...) {
			if e := within(above.NotBefore, above.NotAfter, at); err == nil && e != nil {
				err = fmt.Errorf("its issuer: %w", e)
			}
		}
		if err == nil {
			return signed, nil
		}
		refused = err
	}
	return Signature{}, refused
}

func (v *Verifier) issuers(c *x509.Certificate) []*intermediate {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var out []*intermediate
	for _, i := range v.intermediates {
		if len(c.AuthorityKeyId) != 0 && bytes.Equal(i.cert.SubjectKeyId, c.AuthorityKeyId) {
			out = append(out, i)
		}
	}
	return out
}

// Node verifies a node certificate under one of the intermediates that were added.
func (v *Verifier) Node(b []byte, at time.Time) (*Node, error) {
	return v.node(b, RoleNode, func(*x509.Certificate) time.Time { return at })
}

// NodeOutOfTime is Node, but a certificate whose time is over, or has not come, is judged as of the moment of it that is
// nearest. It is for coordinators, which let such a node renew and do nothing else.
func (v *Verifier) NodeOutOfTime(b []byte, at time.Time) (*Node, error) {
	return v.node(b, RoleNode, outOfTime(at))
}

// Member is NodeOutOfTime for certificates of nodes and of relays: for who holds one, and for coordinators.
func (v *Verifier) Member(b []byte, at time.Time) (*Node, error) {
	return v.member(b, outOfTime(at))
}

func outOfTime(at time.Time) func(c *x509.Certificate) time.Time {
	return func(c *x509.Certificate) time.Time {
		switch {
		case at.Before(c.NotBefore):
			return c.NotBefore
		case at.After(c.NotAfter):
			return c.NotAfter
		}
		return at
	}
}

func (v *Verifier) member(b []byte, at func(*x509.Certificate) time.Time) (*Node, error) {
	c, err := parseCertificate(b)
	if err != nil {
		return nil, err
	}
	return v.node(b, memberRole(c), at)
}

func (v *Verifier) node(b []byte, role Role, at func(*x509.Certificate) time.Time) (*Node, error) {
	l, err := v.leaf(b, role, at)
	if err != nil {
		return nil, err
	}
	n, err := nodeOf(l.cert, l.spiffe)
	if err != nil {
		return nil, err
	}
	n.Signed = l.signed
	return n, nil
}

// PeerNode verifies the chain that a node or a relay presents to a coordinator in a TLS handshake, leaf first.
func (v *Verifier) PeerNode(chain [][]byte, at time.Time) (*Node, error) {
	if err := v.learn(chain); err != nil {
		return nil, err
	}
	return v.member(chain[0], func(*x509.Certificate) time.Time { return at })
}

// PeerNodeOutOfTime is PeerNode as NodeOutOfTime is Node.
func (v *Verifier) PeerNodeOutOfTime(chain [][]byte, at time.Time) (*Node, error) {
	if err := v.learn(chain); err != nil {
		return nil, err
	}
	return v.Member(chain[0], at)
}

// Relay verifies the chain that a relay presents in a TLS handshake, leaf first: one with this id, or a coordinator, which may
// have a relay in it.
func (v *Verifier) Relay(chain [][]byte, id proto.NodeID, at time.Time) error {
	if err := v.learn(chain); err != nil {
		return err
	}
	now := func(*x509.Certificate) time.Time { return at }
	l, err := v.leaf(chain[0], RoleRelay, now)
	switch {
	case errors.Is(err, ErrRole):
		_, err = v.leaf(chain[0], RoleCoordinator, now)
		return err
	case err == nil && l.spiffe.ID != id.String():
		return fmt.Errorf("%w: relay %s, not %s", ErrRole, l.spiffe.ID, id)
	}
	return err
}

// Coordinator verifies the chain that a coordinator presents in a TLS handshake, leaf first, and gives its id.
func (v *Verifier) Coordinator(chain [][]byte, at time.Time) (id string, err error) {
	if err := v.learn(chain); err != nil {
		return "", err
	}
	l, err := v.leaf(chain[0], RoleCoordinator, func(*x509.Certificate) time.Time { return at })
	return l.spiffe.ID, err
}

// learn keeps the good intermediates of a presented chain, and the roots in it that a trusted one has cross-signed. What else is
// in it (a root, or something that is no use) does not matter: without its intermediate the leaf will be refused.
func (v *Verifier) learn(chain [][]byte) error {
	if len(chain) == 0 || len(chain) > maxChain {
		return fmt.Errorf("%w: a chain of %d certificates, want 1 to %d", ErrMalformed, len(chain), maxChain)
	}
	var certs []*x509.Certificate
	for _, b := range chain[1:] {
		if v.known(b) {
			continue
		}
		if c, err := v.parseAuthority(b); err == nil {
			certs = append(certs, c)
		}
	}
	// Roots first: what follows may be under them.
	slices.SortStableFunc(certs, func(a, b *x509.Certificate) int { return b.MaxPathLen - a.MaxPathLen })
	for _, c := range certs {
		if successors, fresh, err := v.check([]*x509.Certificate{c}); err == nil {
			v.keep(successors, fresh)
		}
	}
	return nil
}

// PinnedRoot finds the root with a fingerprint in the chain that a coordinator presents to a machine that joins.
func PinnedRoot(chain [][]byte, fingerprint [32]byte) (*x509.Certificate, error) {
	if len(chain) > maxChain {
		return nil, fmt.Errorf("%w: a chain of %d certificates, at most %d", ErrMalformed, len(chain), maxChain)
	}
	for _, b := range chain {
		c, err := parseCertificate(b)
		if err != nil {
			return nil, err
		}
		if Fingerprint(c) != fingerprint || isRoot(c) && !selfIssued(c) {
			continue // or the same root as another has signed it
		}
		root, _, err := ParseRoot(b)
		return root, err
	}
	return nil, ErrPin
}

// JoinCoordinator verifies what a coordinator presents to a machine that knows nothing of the mesh but its root's
// fingerprint. It gives a Verifier for that root, and with it the mesh's id.
func JoinCoordinator(chain [][]byte, fingerprint [32]byte, at time.Time) (*Verifier, error) {
	root, err := PinnedRoot(chain, fingerprint)
	if err != nil {
		return nil, err
	}
	s, err := spiffeOf(root)
	if err != nil {
		return nil, err
	}
	v, err := NewVerifier(s.Mesh, []*x509.Certificate{root})
	if err != nil {
		return nil, err
	}
	if _, err := v.Coordinator(chain, at); err != nil {
		return nil, err
	}
	return v, nil
}
