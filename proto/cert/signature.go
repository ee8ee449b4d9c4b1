package cert

import (
	"crypto/sha256"
	"crypto/x509"
	"time"
)

// Signature names a signature by what it is of: the SHA-256 of the issuer's SHA-256 and the certificate, both whole. Whether it is
// good never changes, so who found it good once need not ask again; whether the certificate holds does change.
type Signature [sha256.Size]byte

func signatureOf(c *x509.Certificate, by *intermediate) Signature {
	return sha256.Sum256(append(by.sum[:], c.Raw...))
}

// Presume takes signatures for good that a Verifier has found good before, in place of those that were presumed so far. Of their
// certificates all else is judged as of any other: that the issuer is known and under a root that is trusted now, the role, the
// mesh, and the time. The caller vouches for the list as for a root: whoever can add to it can make nodes.
func (v *Verifier) Presume(good map[Signature]struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.presumed = good
}

// signed says whether an intermediate signed a leaf as it may.
func (v *Verifier) signed(s Signature, c *x509.Certificate, by *intermediate, at time.Time) error {
	v.mu.RLock()
	_, presumed := v.presumed[s]
	v.mu.RUnlock()
	if presumed {
		return nil
	}
	return signedBy(c, by.cert, by.pool, at)
}
