package cert

import (
	"crypto/sha256"
	"crypto/x509"
	"time"
)

// Signature identifies a signature: the SHA-256 of the issuer's SHA-256 and the certificate, both in full. Whether a signature is
// good never changes, so a good one need not be verified again; whether the certificate is valid does change.
type Signature [sha256.Size]byte

func signatureOf(c *x509.Certificate, by *intermediate) Signature {
	return sha256.Sum256(append(by.sum[:], c.Raw...))
}

// Presume sets the signatures to accept without verifying them, because a Verifier has found them good before; it replaces any
// earlier set. All else about their certificates is checked as usual: that the issuer is known and under a root that is still
// trusted, the role, the mesh, and the time. The caller vouches for the set as for a root: whoever can add to it can make nodes.
func (v *Verifier) Presume(good map[Signature]struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.presumed = good
}

// signed returns an error unless the intermediate by signed the leaf c, as an authority may.
func (v *Verifier) signed(s Signature, c *x509.Certificate, by *intermediate, at time.Time) error {
	v.mu.RLock()
	_, presumed := v.presumed[s]
	v.mu.RUnlock()
	if presumed {
		return nil
	}
	return signedBy(c, by.cert, by.pool, at)
}
