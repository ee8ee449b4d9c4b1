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

// How a root is replaced: The old root A signs the certificate of the new root B ("new with old" of RFC 4210), so whoever trusts
// A also trusts what B issues, and may accept B as a root of its own. B signs the intermediates of A, so whoever trusts only B
// can still verify what was issued before. Only the holder of A's key can introduce B.
//
//	     A ──────► B (cross-signed)       trusts A:  leaf ◄ intermediate of B ◄ B, signed by A ◄ A
//	     │         │                                 leaf ◄ intermediate of A ◄ A
//	     ▼         ▼                      trusts B:  leaf ◄ intermediate of B ◄ B
//	intermediate  intermediate                       leaf ◄ intermediate of A, signed by B ◄ B
//
// Cross-signing extends trust by one root only: a root that is trusted because another one signed it cannot introduce a third.

func isRoot(c *x509.Certificate) bool { return c.MaxPathLen == 1 }

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }

// CrossSigned reports whether an authority's certificate was made by CrossSign: it keeps the subject of the original certificate,
// which contains another serial number.
func CrossSigned(c *x509.Certificate) bool {
	return !selfIssued(c) && !strings.HasSuffix(c.Subject.CommonName, " "+numbered(c))
}

// CrossSign signs the key and the subject of another root or intermediate of the mesh, for the time in which both are valid.
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
