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

// Skew is the tolerance for clock differences: it extends validity at both ends.
const Skew = 60 * time.Second

const (
	maxRoots         = 8
	maxIntermediates = 128 // verified ones; those that expire first are evicted first
	maxChain         = 5
)

// Verifier verifies certificates by the roots of one mesh. It is safe for concurrent use.
type Verifier struct {
	mesh  proto.MeshID
	roots []anchor

	mu            sync.RWMutex
	successors    []anchor                   // roots that one of roots has cross-signed, each once
	intermediates map[[32]byte]*intermediate // by SHA-256 of the certificate
	presumed      map[Signature]struct{}
}

// anchor is a root under which intermediates are trusted, and the certificates that must be valid for that.
type anchor struct {
	cert  *x509.Certificate // self-signed, or signed by the root before it
	above []*x509.Certificate
	pool  *x509.CertPool // contains only cert
}

func newAnchor(c *x509.Certificate, above ...*x509.Certificate) anchor {
	return anchor{cert: c, above: append([]*x509.Certificate{c}, above...), pool: poolOf(c)}
}

// valid returns the time in which all the certificates that the anchor relies on are valid.
func (a anchor) valid() (from, to time.Time) {
	for i, c := range a.above {
		if i == 0 || c.NotBefore.After(from) {
			from = c.NotBefore
		}
		if i == 0 || c.NotAfter.Before(to) {
			to = c.NotAfter
		}
	}
	return from, to
}

// outlasts reports whether a is valid longer than b, and begins no later.
func (a anchor) outlasts(b anchor) bool {
	from, to := a.valid()
	begin, end := b.valid()
	return to.After(end) && !from.After(begin)
}

func poolOf(c *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c)
	return pool
}

// intermediate is an intermediate whose signature by a root was verified. Its validity is checked at each use.
type intermediate struct {
	sum   [32]byte // SHA-256 of the certificate
	cert  *x509.Certificate
	above []*x509.Certificate
	pool  *x509.CertPool // contains only cert
}

// NewVerifier returns a Verifier that trusts the given roots. There must be at least one, and all must be roots of the mesh.
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

// ParseRoot parses the self-signed certificate of a mesh's root, and returns which mesh that is. It does not decide whether to
// trust it.
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

// Mesh returns the mesh whose certificates are verified.
func (v *Verifier) Mesh() proto.MeshID { return v.mesh }

// Roots returns the roots that the Verifier was created with.
func (v *Verifier) Roots() []*x509.Certificate {
	roots := make([]*x509.Certificate, len(v.roots))
	for i, a := range v.roots {
		roots[i] = a.cert
	}
	return roots
}

// Trusts reports whether root is a trusted root, or is known to be cross-signed by one.
func (v *Verifier) Trusts(root *x509.Certificate) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return among(v.roots, root) || among(v.successors, root)
}

// among reports whether one of the anchors is the same root: the same key and subject, whoever signed it.
func among(anchors []anchor, root *x509.Certificate) bool { return find(anchors, root) >= 0 }

// find returns the index of the anchor that is the same root, or -1.
func find(anchors []anchor, root *x509.Certificate) int {
	return slices.IndexFunc(anchors, func(a anchor) bool { return sameRoot(a.cert, root) })
}

func sameRoot(a, b *x509.Certificate) bool {
	return bytes.Equal(a.RawSubjectPublicKeyInfo, b.RawSubjectPublicKeyInfo) && bytes.Equal(a.RawSubject, b.RawSubject)
}

// AddIntermediates verifies the signatures of the intermediates and keeps them, so that leaves under them can be verified. Roots
// that a trusted root has cross-signed may be among them, in any order. If any is bad, none is kept.
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

// Knows reports whether one of the intermediates has this key.
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
		v.succeed(a)
	}
	for _, i := range fresh {
		if at := find(v.successors, i.above[0]); at >= 0 {
			i.above = v.successors[at].above
		}
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

// succeed adds a cross-signed root. One that is known already is trusted for as long as the longest of its cross-signatures, and
// so is what was learned under it. The caller holds v.mu.
func (v *Verifier) succeed(a anchor) {
	at := find(v.successors, a.cert)
	switch {
	case at < 0:
		if len(v.successors) < maxRoots {
			v.successors = append(v.successors, a)
		}
		return
	case !a.outlasts(v.successors[at]):
		return
	}
	v.successors[at] = a
	for sum, i := range v.intermediates {
		if sameRoot(i.above[0], a.cert) {
			longer := *i // the other may be in use
			longer.above = a.above
			v.intermediates[sum] = &longer
		}
	}
}

// parseAuthority parses an intermediate or a cross-signed root of the mesh.
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

// check finds the signer of each certificate: for a cross-signed root, one of v.roots; for an intermediate, one of those or a
// root that one of them has cross-signed.
func (v *Verifier) check(certs []*x509.Certificate) (successors []anchor, fresh []*intermediate, err error) {
	v.mu.RLock()
	anchors := slices.Concat(v.roots, v.successors)
	v.mu.RUnlock()
	for _, c := range certs {
		if !isRoot(c) || among(v.roots, c) {
			continue
		}
		at := find(anchors, c)
		if at >= 0 && bytes.Equal(anchors[at].cert.Raw, c.Raw) {
			continue
		}
		by, ok := signer(v.roots, c)
		switch {
		case !ok && at >= 0: // somebody who is trusted has signed it as well
			continue
		case !ok:
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

// signer returns the anchor that signed an authority's certificate.
func signer(anchors []anchor, c *x509.Certificate) (anchor, bool) {
	for _, a := range anchors {
		if signedBy(c, a.cert, a.pool, c.NotBefore) == nil {
			return a, true
		}
	}
	return anchor{}, false
}

// signedBy returns an error unless issuer, the only member of pool, signed c as an authority may. x509 knows no skew, so it is
// asked about the moment closest to at when both were valid; within judges the validity.
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
		Roots:         pool, // never nil, which would mean the system's
		Intermediates: x509.NewCertPool(),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrChain, err)
	}
	return nil
}

// within checks that at is within a validity extended by Skew.
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

// leaf checks everything that certificates of all roles have in common. at chooses the time at which to judge the certificate.
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

// leaf is a verified certificate of some role.
type leaf struct {
	cert   *x509.Certificate
	spiffe spiffe
	signed Signature
}

// chain finds the issuer of a leaf among the verified intermediates and checks the validity of the whole chain. It returns the
// signature that it relied on.
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

// Node verifies a node certificate issued by one of the known intermediates.
func (v *Verifier) Node(b []byte, at time.Time) (*Node, error) {
	return v.node(b, RoleNode, func(*x509.Certificate) time.Time { return at })
}

// NodeOutOfTime is like Node, but a certificate that has expired, or is not valid yet, is judged at the nearest moment of its
// validity. It is for coordinators, which let such a node renew and nothing else.
func (v *Verifier) NodeOutOfTime(b []byte, at time.Time) (*Node, error) {
	return v.node(b, RoleNode, outOfTime(at))
}

// Member is like NodeOutOfTime, for certificates of nodes and of relays: for the holder of one, and for coordinators.
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

// PeerNodeOutOfTime is to PeerNode as NodeOutOfTime is to Node.
func (v *Verifier) PeerNodeOutOfTime(chain [][]byte, at time.Time) (*Node, error) {
	if err := v.learn(chain); err != nil {
		return nil, err
	}
	return v.Member(chain[0], at)
}

// Relay verifies the chain that a relay presents in a TLS handshake, leaf first: it must be the relay with this id, or any
// coordinator of the mesh, since coordinators may have an embedded relay.
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

// Coordinator verifies the chain that a coordinator presents in a TLS handshake, leaf first, and returns its id.
func (v *Verifier) Coordinator(chain [][]byte, at time.Time) (id string, err error) {
	if err := v.learn(chain); err != nil {
		return "", err
	}
	l, err := v.leaf(chain[0], RoleCoordinator, func(*x509.Certificate) time.Time { return at })
	return l.spiffe.ID, err
}

// learn keeps the good intermediates of a presented chain, and any root in it that a trusted root has cross-signed. It ignores
// everything else in the chain (a root, or certificates of no use): without its intermediate, the leaf will be refused.
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
	// Roots first: the others may be signed by them.
	slices.SortStableFunc(certs, func(a, b *x509.Certificate) int { return b.MaxPathLen - a.MaxPathLen })
	for _, c := range certs {
		if successors, fresh, err := v.check([]*x509.Certificate{c}); err == nil {
			v.keep(successors, fresh)
		}
	}
	return nil
}

// PinnedRoot finds the root with a fingerprint in the chain that a coordinator presents to a joining machine.
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
			continue // the same root, but signed by another one
		}
		root, _, err := ParseRoot(b)
		return root, err
	}
	return nil, ErrPin
}

// JoinCoordinator verifies what a coordinator presents to a machine that knows nothing about the mesh but its root's fingerprint.
// It returns a Verifier for that root, and thereby the mesh's id.
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
