package attest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// Authorities are the CAs trusted to say what a machine is: makers of TPMs, or the company's own CA.
type Authorities struct {
	roots, intermediates *x509.CertPool
	count                int
}

// Len returns the number of roots.
func (a *Authorities) Len() int {
	if a == nil {
		return 0
	}
	return a.count
}

// NewAuthorities returns an empty set, which trusts nobody.
func NewAuthorities() *Authorities {
	return &Authorities{roots: x509.NewCertPool(), intermediates: x509.NewCertPool()}
}

// Add adds the certificates of a PEM file. Self-issued ones become roots; the others only help to build chains and are not
// trusted by themselves.
func (a *Authorities) Add(file []byte) error {
	found := 0
	for rest := file; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("holds a PEM block of type %.40q: want certificates only", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate %d: %w", found+1, err)
		}
		if !c.IsCA {
			return fmt.Errorf("certificate %d, of %.80q: is of no authority", found+1, c.Subject.String())
		}
		found++
		if bytes.Equal(c.RawIssuer, c.RawSubject) {
			a.roots.AddCert(c)
			a.count++
		} else {
			a.intermediates.AddCert(c)
		}
	}
	if found == 0 {
		return errors.New("holds no certificate in PEM form")
	}
	return nil
}

// verify builds a chain from a leaf to a root, with the help of additional intermediates.
func (a *Authorities) verify(leaf *x509.Certificate, more []*x509.Certificate, now time.Time, usage x509.ExtKeyUsage) error {
	intermediates := a.intermediates
	if len(more) > 0 {
		intermediates = intermediates.Clone()
		for _, c := range more {
			intermediates.AddCert(c)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.roots, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}
