package issuer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Lifetimes of certificates, and the bounds on what an administrator may choose.
const (
	RootLifetime = 10 * 366 * 24 * time.Hour

	IntermediateLifetime    = 30 * 24 * time.Hour
	MinIntermediateLifetime = 2 * 24 * time.Hour
	MaxIntermediateLifetime = 366 * 24 * time.Hour

	NodeLifetime    = time.Hour
	MaxNodeLifetime = 24 * time.Hour

	leafLifetime = 24 * time.Hour
	// rootAge is how far a new root is backdated: nothing can be signed before the root's validity begins, and the clock of a
	// machine on its first start may be hours ahead.
	rootAge = 2 * 24 * time.Hour
	// rootWarning is how long before the root expires warnings begin.
	rootWarning = 366 * 24 * time.Hour
)

// ErrNoIssuer means that the intermediate has expired, or is about to, and the root is not available to sign another.
var ErrNoIssuer = errors.New("the intermediate certificate has ended and the root's key is not here")

// Config holds an issuer's settings.
type Config struct {
	Dir  string // such as DATA/pki
	Mesh proto.MeshID
	ID   string // this coordinator's id in the mesh; empty: c1
	// Fresh means that no node has a certificate of this mesh yet, so that a missing root may be created. Otherwise a missing
	// root is an error: no node would recognize this coordinator under a different one.
	Fresh                bool
	NodeLifetime         time.Duration // 0: NodeLifetime
	IntermediateLifetime time.Duration // 0: IntermediateLifetime
	Clock                func() time.Time
	Rand                 io.Reader // cryptographically random
}

// Issuer signs certificates. All methods are safe for concurrent use.
type Issuer struct {
	config Config
	files  files

	maintaining sync.Mutex // held while files change

	mu       sync.Mutex
	roots    trust
	verifier *cert.Verifier
	current  *cert.Authority
	older    []*x509.Certificate // earlier intermediates that have not expired
	leaf     *tls.Certificate    // signed by current
	known    *x509.CertPool      // current and older
}

// Open loads the keys, creating what a first start needs.
func Open(c Config) (*Issuer, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	i := &Issuer{config: c, files: files{dir: c.Dir, mesh: c.Mesh}}
	if err := i.load(); err != nil {
		return nil, fmt.Errorf("issuer: %w", err)
	}
	return i, nil
}

func (c *Config) complete() error {
	if c.ID == "" {
		c.ID = "c1"
	}
	if c.NodeLifetime == 0 {
		c.NodeLifetime = NodeLifetime
	}
	if c.IntermediateLifetime == 0 {
		c.IntermediateLifetime = IntermediateLifetime
	}
	switch {
	case c.Clock == nil || c.Rand == nil:
		return errors.New("clock and randomness are required")
	case c.NodeLifetime < MinNodeLifetime || c.NodeLifetime > MaxNodeLifetime:
		return fmt.Errorf("node certificates of %v: want %v to %v", c.NodeLifetime, MinNodeLifetime, MaxNodeLifetime)
	case c.IntermediateLifetime < MinIntermediateLifetime || c.IntermediateLifetime > MaxIntermediateLifetime:
		return fmt.Errorf("intermediate certificates of %v: want %v to %v", c.IntermediateLifetime, MinIntermediateLifetime, MaxIntermediateLifetime)
	}
	return c.Mesh.Validate()
}

func (i *Issuer) load() error {
	if err := i.files.prepare(); err != nil {
		return err
	}
	roots, err := i.loadRoot()
	if err != nil {
		return err
	}
	current, err := i.files.readAuthority(intermediateFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	older, err := i.files.readCertificates(intermediatesFile)
	if err != nil {
		return err
	}
	if err := i.use(roots, current, i.useful(older, current)); err != nil {
		return err
	}
	if err := i.finishRequest(); err != nil {
		return err
	}
	if _, err = i.Maintain(); err != nil && (current == nil || !errors.Is(err, ErrNoIssuer)) {
		return err
	}
	return nil
}

// useful drops certificates that have expired, and the current one.
func (i *Issuer) useful(list []*x509.Certificate, current *cert.Authority) []*x509.Certificate {
	now := i.config.Clock()
	return slices.DeleteFunc(slices.Clone(list), func(c *x509.Certificate) bool {
		return now.After(c.NotAfter.Add(cert.Skew)) || current != nil && c.Equal(current.Certificate())
	})
}

// Maintain replaces the intermediate once half of its lifetime is over or if it is under a root about to be retired, provided
// that the root's key is present. It reports whether Authorities changed; if so, every netmap must be rebuilt. The coordinator
// calls it about once a minute. ErrNoIssuer means that nothing can be issued; until then a missing root is not an error.
func (i *Issuer) Maintain() (changed bool, err error) {
	i.maintaining.Lock()
	defer i.maintaining.Unlock()
	now := i.config.Clock()
	old := i.authority()
	if old != nil && (i.early(now) || young(old.Certificate(), now) && i.upToDate()) {
		return false, nil
	}
	root, err := i.rootKey()
	switch {
	case errors.Is(err, os.ErrNotExist) && old != nil && now.Before(old.Certificate().NotAfter.Add(-MinNodeLifetime)):
		return false, nil
	case errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("%w: %s", ErrNoIssuer, howToSign)
	case err != nil:
		return false, err
	}
	return true, i.replace(root, now)
}

// howToSign explains how to create an intermediate if the root's key is elsewhere.
const howToSign = "run `redoubt-coordinator root request FILE` here, `root sign FILE` where the key is, and `root install` here with the answer"

// upToDate reports whether the intermediate is under the newest root.
func (i *Issuer) upToDate() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.roots.under(i.current.Certificate()) == i.roots.newest
}

// replace creates the next intermediate.
func (i *Issuer) replace(root *cert.Authority, now time.Time) error {
	lifetime := min(i.config.IntermediateLifetime, root.Certificate().NotAfter.Sub(now))
	next, err := root.NewIntermediate(i.config.Rand, now, lifetime)
	if err != nil {
		return err
	}
	return i.install(next)
}

// install makes next the issuing intermediate. Its predecessor's certificate is written to its file first: nodes with
// certificates from it must remain verifiable whatever happens. If the predecessor is under an older root, its cross-signed
// certificate is there already.
func (i *Issuer) install(next *cert.Authority) error {
	t, old := i.trusted(), i.authority()
	older := i.useful(i.older, old)
	if old != nil && t.under(old.Certificate()) == t.newest {
		older = append(older, old.Certificate())
	}
	older = slices.DeleteFunc(older, func(c *x509.Certificate) bool { return t.under(c) != t.newest })
	if err := i.files.writeCertificates(intermediatesFile, older); err != nil {
		return err
	}
	if err := i.files.writeAuthority(intermediateFile, next); err != nil {
		return err
	}
	return i.use(t, next, older)
}

// early reports that the clock is wrong: it is before the mesh was created.
func (i *Issuer) early(now time.Time) bool { return now.Before(i.trusted().newest.NotBefore) }

// young reports whether a certificate is valid and in the first half of its lifetime. One created while the clock was wrong may
// start later: nobody would accept it.
func young(c *x509.Certificate, now time.Time) bool {
	return !now.Before(c.NotBefore) && now.Before(middle(c))
}

func middle(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2)
}

func (i *Issuer) authority() *cert.Authority {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current
}

// IssueNode signs a certificate for n, valid from now until n.NotAfter if set, else for the configured node lifetime, but no
// longer than the intermediate. Node keys without their own validity get the certificate's; the second of two takes over after
// a quarter of that, when all peers know it, and long before the renewal. It returns n with the fields it filled in.
func (i *Issuer) IssueNode(n cert.Node, now time.Time) (cert.Node, error) {
	a := i.authority()
	end := now.Add(i.config.NodeLifetime)
	if !n.NotAfter.IsZero() {
		end = n.NotAfter
	}
	if last := a.Certificate().NotAfter; end.After(last) {
		end = last
	}
	if end.Sub(now) < MinNodeLifetime {
		return cert.Node{}, fmt.Errorf("%w: %s", ErrNoIssuer, howToSign)
	}
	n.NotBefore, n.NotAfter = now.UTC().Truncate(time.Second), end.UTC().Truncate(time.Second)
	n.Keys = slices.Clone(n.Keys)
	for k := range n.Keys {
		if n.Keys[k].NotAfter.IsZero() {
			n.Keys[k].NotBefore, n.Keys[k].NotAfter = n.NotBefore, n.NotAfter
			if k > 0 {
				n.Keys[k].NotBefore = n.NotBefore.Add(n.NotAfter.Sub(n.NotBefore) / 4).Truncate(time.Second)
			}
		}
	}
	issued, err := a.IssueNode(i.config.Rand, n)
	if err != nil {
		return cert.Node{}, err
	}
	return *issued, nil
}

// GetCertificate is the hook for a tls.Config: it returns the coordinator's leaf with the chains to the roots. The leaf and its
// key are replaced at half of the leaf's lifetime.
func (i *Issuer) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.config.Clock() // read under the lock: the intermediate may be newer than an earlier reading
	if i.leaf != nil && young(i.leaf.Leaf, now) {
		return i.leaf, nil
	}
	next, err := i.makeLeaf(i.current, now)
	if err == nil {
		i.leaf = next
	} else if i.leaf == nil || now.After(i.leaf.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate of this coordinator: %w", err)
	}
	return i.leaf, nil
}

func (i *Issuer) makeLeaf(a *cert.Authority, now time.Time) (*tls.Certificate, error) {
	signer, err := key.NewDevice(i.config.Rand)
	if err != nil {
		return nil, err
	}
	lifetime := min(leafLifetime, a.Certificate().NotAfter.Sub(now))
	der, err := a.IssueCoordinator(i.config.Rand, i.config.Mesh, i.config.ID, signer.Public(), now, lifetime)
	if err != nil {
		return nil, err
	}
	above := []*x509.Certificate{a.Certificate(), i.roots.newest}
	above = append(above, i.roots.vouching(now)...)
	if i.roots.before != nil {
		above = append(above, i.roots.before)
	}
	chain := make([][]byte, len(above))
	for n, c := range above {
		chain[n] = c.Raw
	}
	leaf, err := cert.TLSCertificate(signer, der, chain...)
	return &leaf, err
}

// Authorities returns the intermediates (DER) that node certificates may have been issued under, newest first, preceded by the
// newest root's cross-signature by an earlier root, if there is one.
func (i *Issuer) Authorities() [][]byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	var list [][]byte
	for _, c := range i.roots.vouching(i.config.Clock()) {
		list = append(list, c.Raw)
	}
	list = append(list, i.current.Certificate().Raw)
	for _, c := range slices.Backward(i.older) {
		list = append(list, c.Raw)
	}
	return list
}

// Known returns the intermediates of Authorities as a pool, for handshakes.
func (i *Issuer) Known() *x509.CertPool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.known == nil {
		i.known = x509.NewCertPool()
		for _, c := range append([]*x509.Certificate{i.current.Certificate()}, i.older...) {
			i.known.AddCert(c)
		}
	}
	return i.known
}

// Verifier returns a verifier that trusts this mesh's roots and knows its intermediates. When those change, a different
// verifier is returned.
func (i *Issuer) Verifier() *cert.Verifier {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.verifier
}
