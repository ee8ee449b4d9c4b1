package cert

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// How a root is replaced. The old root A signs the certificate of the new root B ("new with old" of RFC 4210): whoever trusts A
// then trusts what is under B, and may take B for a root of its own. B signs the intermediates of A: whoever trusts B
// alone can verify what was issued before. Nobody but the holder of A's key can name B.
//
//	     A ──────► B (cross-signed)       trusts A:  leaf ◄ intermediate of B ◄ B, signed by A ◄ A
//	     │         │                                 leaf ◄ intermediate of A ◄ A
//	     ▼         ▼                      trusts B:  leaf ◄ intermediate of B ◄ B
//	intermediate  intermediate                       leaf ◄ intermediate of A, signed by B ◄ B
//
// A cross-signed root carries trust from one root to the next, and only one step far: A root that is itself only vouched for
// vouches for none.

func isRoot(c *x509.Certificate) bool { return c.MaxPathLen == 1 }

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// CrossSigned says whether an authority's certificate is the work of CrossSign: its name is that of the certificate that it had
// first.
func CrossSigned(c *x509.Certificate) bool {
	return !selfIssued(c) && !strings.HasSuffix(c.Subject.CommonName, " "+numbered(c))
}

// CrossSign signs the key and the name of another authority of the mesh, a root or an intermediate, for as long as both may be
// trusted.
func (a *Authority) CrossSign(rand io.Reader, c *x509.Certificate) (*x509.Certificate, error) {
	other, mesh, err := parseAuthorityCertificate(c.Raw)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cross-sign: %w", err)
	case !a.isRoot():
		return nil, errors.New("cross-sign: only a root may")
	case mesh != a.mesh:
		return nil, fmt.Errorf("cross-sign: %w: %s, not %s", ErrMesh, mesh, a.mesh)
	case bytes.Equal(other.RawSubject, a.cert.RawSubject):
		return nil, fmt.Errorf("cross-sign: %w: it has the name of its signer", ErrRole)
	}
	from, to := latest(other.NotBefore, a.cert.NotBefore), other.NotAfter
	if a.cert.NotAfter.Before(to) {
		to = a.cert.NotAfter
	}
	t, err := authorityTemplate(rand, mesh, "", from, to)
	if err != nil {
		return nil, fmt.Errorf("cross-sign: %w", err)
	}
	t.RawSubject, t.SubjectKeyId = other.RawSubject, other.SubjectKeyId
	t.MaxPathLen, t.MaxPathLenZero = other.MaxPathLen, other.MaxPathLenZero
	signed, err := a.sign(rand, t, other.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("cross-sign: %w", err)
	}
	return signed, nil
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
