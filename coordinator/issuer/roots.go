package issuer

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/durable"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// trust holds the roots of the mesh, as in root.crt.
type trust struct {
	newest *x509.Certificate
	before *x509.Certificate // also trusted; nil: retired, or there was none
	cross  *x509.Certificate // newest, signed by before; it stays when before is retired
}

func (t trust) roots() []*x509.Certificate {
	if t.before == nil {
		return []*x509.Certificate{t.newest}
	}
	return []*x509.Certificate{t.newest, t.before}
}

// under returns the root that signed an intermediate; nil for none.
func (t trust) under(c *x509.Certificate) *x509.Certificate {
	for _, root := range t.roots() {
		if bytes.Equal(c.AuthorityKeyId, root.SubjectKeyId) && bytes.Equal(c.RawIssuer, root.RawSubject) {
			return root
		}
	}
	return nil
}

func (f files) writeTrust(t trust) error {
	list := []*x509.Certificate{t.newest}
	for _, c := range []*x509.Certificate{t.cross, t.before} {
		if c != nil {
			list = append(list, c)
		}
	}
	return f.writeCertificates(rootFile, list)
}

// readTrust reads root.crt; if the file does not exist or is empty, newest is nil.
func (f files) readTrust() (trust, error) {
	list, err := f.readCertificates(rootFile)
	if err != nil || len(list) == 0 {
		return trust{}, err
	}
	var t trust
	for i, c := range list {
		root, mesh, err := cert.ParseRoot(c.Raw)
		switch {
		case err == nil && mesh != f.mesh:
			return trust{}, fmt.Errorf("%s belongs to mesh %s, the data to mesh %s: restore the keys that belong to the data", f.path(rootFile), mesh, f.mesh)
		case err == nil && i == 0:
			t.newest = root
		case err == nil && t.before == nil && !root.Equal(t.newest):
			t.before = root
		case errors.Is(err, cert.ErrRole) && i > 0 && t.cross == nil:
			t.cross = c
		default:
			return trust{}, fmt.Errorf("%s: certificate %d is not one of a mesh root, or one too many: restore the right file", f.path(rootFile), i+1)
		}
	}
	return t, t.check(f)
}

// check checks that the roots belong together.
func (t trust) check(f files) error {
	if t.before == nil {
		return nil // then cross is not accepted by itself
	}
	v, err := cert.NewVerifier(f.mesh, []*x509.Certificate{t.before})
	if err == nil && t.cross != nil {
		err = v.AddIntermediates([][]byte{t.cross.Raw})
	}
	if err != nil || !v.Trusts(t.newest) {
		return fmt.Errorf("%s: the older root does not vouch for the newer one: restore the right file", f.path(rootFile))
	}
	return nil
}

// loadRoot reads the roots. If there are none, they are taken from the root's key, which is what a first start creates first;
// if there is no key either, this is a first start.
func (i *Issuer) loadRoot() (trust, error) {
	t, err := i.files.readTrust()
	if err != nil {
		return trust{}, err
	}
	if t.newest == nil {
		return i.makeRoot()
	}
	return t, i.finishRotation(t)
}

func (i *Issuer) makeRoot() (trust, error) {
	a, err := i.files.readAuthority(rootKeyFile)
	if errors.Is(err, os.ErrNotExist) {
		if !i.config.Fresh {
			return trust{}, fmt.Errorf("%s is missing, and nodes of this mesh know its root: restore the directory %s from your copy",
				i.files.path(rootFile), i.config.Dir)
		}
		if a, err = cert.NewRoot(i.config.Rand, i.config.Mesh, i.config.Clock().Add(-rootAge), RootLifetime); err == nil {
			err = i.files.writeAuthority(rootKeyFile, a)
		}
	}
	if err != nil {
		return trust{}, err
	}
	t := trust{newest: a.Certificate()}
	return t, i.files.writeTrust(t)
}

// rootKey reads the key of the newest root, for immediate use. If the key is not present, the error is os.ErrNotExist.
func (i *Issuer) rootKey() (*cert.Authority, error) {
	root, err := i.files.readAuthority(rootKeyFile)
	if err != nil {
		return nil, err
	}
	if t := i.trusted(); cert.Fingerprint(root.Certificate()) != cert.Fingerprint(t.newest) {
		return nil, fmt.Errorf("%s is not the key of the newest root in %s: restore the right one", i.files.path(rootKeyFile), i.files.path(rootFile))
	}
	return root, nil
}

func (i *Issuer) trusted() trust {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.roots
}

// Rotation.

// Errors of rotations, and of operations that require the root's key.
var (
	ErrRootAway = errors.New("the key of the mesh root is not on this machine")
	ErrTwoRoots = errors.New("the root before this one is still trusted")
	ErrOneRoot  = errors.New("there is one root, and none before it to retire")
)

// Succession is a new root with everything needed to replace another one without an outage.
type Succession struct {
	Root          *cert.Authority
	Cross         *x509.Certificate   // the new root, signed by the old one
	Intermediates []*x509.Certificate // of the old root, signed by the new one
}

// Succeed creates a successor to the root old. intermediates are those that node certificates may have been issued under.
func Succeed(old *cert.Authority, intermediates []*x509.Certificate, c Config) (Succession, error) {
	from := c.Clock().Add(-rootAge)
	for _, older := range intermediates {
		if older.NotBefore.Before(from) {
			from = older.NotBefore // the cross-signed certificate has the same validity
		}
	}
	if from.Before(old.Certificate().NotBefore) {
		from = old.Certificate().NotBefore
	}
	root, err := cert.NewRoot(c.Rand, old.Mesh(), from, RootLifetime)
	if err != nil {
		return Succession{}, err
	}
	s := Succession{Root: root}
	if s.Cross, err = old.CrossSign(c.Rand, root.Certificate()); err != nil {
		return Succession{}, err
	}
	for _, older := range intermediates {
		signed, err := root.CrossSign(c.Rand, older)
		if err != nil {
			return Succession{}, err
		}
		s.Intermediates = append(s.Intermediates, signed)
	}
	return s, nil
}

// Rotate creates a new root, which signs from then on in place of the old one; the old one stays trusted until it is retired,
// but its key is gone. Writing root.crt commits the rotation: if the program stops after that, the next Open completes the
// rest; if it stops before, nothing of the rotation takes effect.
//
// 1. root.next           key and certificate of the new root
// 2. intermediates.crt   the intermediates, cross-signed by the new root; of no use without trust in it
// 3. root.crt            the new root, its cross-signature by the old root, the old root
// 4. root.key            root.next is renamed to this
// 5. the intermediate is replaced, as in Maintain
func (i *Issuer) Rotate() error {
	i.maintaining.Lock()
	defer i.maintaining.Unlock()
	if i.trusted().before != nil {
		return ErrTwoRoots
	}
	root, err := i.rootKey()
	if errors.Is(err, os.ErrNotExist) {
		return ErrRootAway
	}
	if err != nil {
		return err
	}
	s, err := Succeed(root, i.intermediates(), i.config)
	if err != nil {
		return err
	}
	if err := i.files.writeAuthority(rootNextFile, s.Root); err != nil {
		return err
	}
	next := trust{newest: s.Root.Certificate(), before: root.Certificate(), cross: s.Cross}
	if err := i.succeed(next, s.Intermediates); err != nil {
		return err
	}
	if err := i.finishRotation(next); err != nil {
		return err
	}
	return i.replace(s.Root, i.config.Clock())
}

// succeed installs the new roots. The cross-signed intermediates are written to disk first.
func (i *Issuer) succeed(next trust, crossed []*x509.Certificate) error {
	older := append(i.useful(i.older, i.authority()), crossed...)
	if err := i.files.writeCertificates(intermediatesFile, older); err != nil {
		return err
	}
	if err := i.files.writeTrust(next); err != nil {
		return err
	}
	return i.use(next, i.authority(), older)
}

// finishRotation renames the new root's key into place, or removes the leftovers of a rotation that did not happen.
func (i *Issuer) finishRotation(t trust) error {
	next, err := i.files.readAuthority(rootNextFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case next.Certificate().Equal(t.newest):
		return durable.Rename(i.files.path(rootNextFile), i.files.path(rootKeyFile))
	}
	return i.files.remove(rootNextFile)
}

// Retire ends the trust in the root before the newest. Nodes stop trusting it when they renew; join codes that name it are void
// at once.
func (i *Issuer) Retire() error {
	i.maintaining.Lock()
	defer i.maintaining.Unlock()
	t := i.trusted()
	current := i.authority()
	switch {
	case t.before == nil:
		return ErrOneRoot
	case t.under(current.Certificate()) != t.newest:
		return fmt.Errorf("%w: the intermediate is under it; replace that first", ErrTwoRoots)
	}
	next := trust{newest: t.newest, cross: t.cross}
	if err := i.files.writeTrust(next); err != nil {
		return err
	}
	return i.use(next, current, i.older)
}

// use puts roots and intermediates into effect. Of the older intermediates, those under a trusted root are kept.
func (i *Issuer) use(t trust, current *cert.Authority, older []*x509.Certificate) error {
	v, err := cert.NewVerifier(i.config.Mesh, t.roots())
	if err != nil {
		return err
	}
	var good []*x509.Certificate
	for _, c := range older {
		if v.AddIntermediates([][]byte{c.Raw}) == nil {
			good = append(good, c)
		}
	}
	if current != nil {
		// The verifier must know it before anyone can have a certificate issued by it.
		if err := v.AddIntermediates([][]byte{current.Certificate().Raw}); err != nil {
			return err
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.roots, i.verifier, i.current, i.older = t, v, current, good
	i.leaf, i.known = nil, nil
	return nil
}

// intermediates returns those first signed by the newest root that may still be needed.
func (i *Issuer) intermediates() []*x509.Certificate {
	current := i.authority()
	list := []*x509.Certificate{current.Certificate()}
	for _, c := range i.useful(i.older, current) {
		if !cert.CrossSigned(c) {
			list = append(list, c)
		}
	}
	return list
}

// Newest reports whether a certificate of a node, or of this coordinator, was issued under the newest root.
func (i *Issuer) Newest(der []byte) bool {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, c := range append([]*x509.Certificate{i.current.Certificate()}, i.older...) {
		if bytes.Equal(c.SubjectKeyId, leaf.AuthorityKeyId) {
			return !cert.CrossSigned(c) && i.roots.under(c) == i.roots.newest
		}
	}
	return false
}

// Roots returns the trusted root certificates (DER), newest first.
func (i *Issuer) Roots() [][]byte {
	var list [][]byte
	for _, c := range i.trusted().roots() {
		list = append(list, c.Raw)
	}
	return list
}

// Fingerprint returns the fingerprint, for join codes, of the root that this coordinator's certificate is under.
func (i *Issuer) Fingerprint() [32]byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return cert.Fingerprint(i.roots.under(i.current.Certificate()))
}

// vouching returns the cross-signature of the newest root, as long as it may be accepted.
func (t trust) vouching(now time.Time) []*x509.Certificate {
	if t.cross == nil || now.After(t.cross.NotAfter.Add(cert.Skew)) {
		return nil
	}
	return []*x509.Certificate{t.cross}
}
