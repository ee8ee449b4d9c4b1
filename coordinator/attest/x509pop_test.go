package attest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// company is a CA.
type company struct {
	testing.TB
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newCompany(t testing.TB) *company {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &company{TB: t, key: k}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Company CA"}, NotBefore: then.Add(-time.Hour), NotAfter: then.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	c.root = c.sign(template, template, k.Public())
	return c
}

func (c *company) sign(template, parent *x509.Certificate, public any) *x509.Certificate {
	c.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, c.key)
	if err != nil {
		c.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		c.Fatal(err)
	}
	return out
}

// machine returns a machine's certificate, modified by change.
func (c *company) machine(public any, change func(*x509.Certificate)) *x509.Certificate {
	c.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(255), Subject: pkix.Name{CommonName: "laptop-7"}, NotBefore: then.Add(-time.Hour), NotAfter: then.Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if change != nil {
		change(template)
	}
	return c.sign(template, c.root, public)
}

func (c *company) attestor() X509 {
	c.Helper()
	a := NewAuthorities()
	if err := a.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.root.Raw})); err != nil {
		c.Fatal(err)
	}
	return NewX509(a)
}

// possession signs a binding as agents do.
func possession(t testing.TB, k crypto.Signer, binding [32]byte) []byte {
	t.Helper()
	digest := wire.PossessionDigest(binding)
	var opts crypto.SignerOpts = crypto.SHA256
	switch k.(type) {
	case *rsa.PrivateKey:
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	case ed25519.PrivateKey:
		opts = crypto.Hash(0)
	}
	s, err := k.Sign(rand.Reader, digest[:], opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestX509(t *testing.T) {
	c, other := newCompany(t), newCompany(t)
	a := c.attestor()
	ec, err1 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rs, err2 := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, err3 := ed25519.GenerateKey(rand.Reader)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	finish := func(m *redoubtv1.X509Evidence, binding [32]byte) (Attributes, error) {
		t.Helper()
		parameters, state, err := a.Begin(then, rand.Reader, claim(t), nil)
		if err != nil || len(parameters) != 0 {
			t.Fatalf("%x, %v", parameters, err)
		}
		return a.Finish(then, state, encoded(t, m), binding)
	}
	for _, k := range []crypto.Signer{ec, rs, ed} {
		leaf := c.machine(k.Public(), nil)
		got, err := finish(&redoubtv1.X509Evidence{Chain: [][]byte{leaf.Raw}, Signature: possession(t, k, thisExchange)}, thisExchange)
		if err != nil || got.Level != cert.LevelX509 || !strings.HasPrefix(got.DeviceID, "x509:") || !got.CanReattest ||
			!strings.Contains(strings.Join(got.Selectors, "\n"), "x509:subject=CN=laptop-7") {
			t.Errorf("%T: %+v, %v", k, got, err)
		}
		_, state, err := a.Again(then, claim(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		again, err := a.Finish(then, state, encoded(t, &redoubtv1.X509Evidence{Chain: [][]byte{leaf.Raw}, Signature: possession(t, k, thisExchange)}), thisExchange)
		if err != nil || again.DeviceID != got.DeviceID {
			t.Errorf("%T again: %+v, %v", k, again, err)
		}
	}
	good := c.machine(ec.Public(), nil)
	signed := possession(t, ec, thisExchange)
	for name, lie := range map[string]struct {
		leaf      *x509.Certificate
		signature []byte
		binding   [32]byte
		why       string
	}{
		"another company's": {other.machine(ec.Public(), nil), signed, thisExchange, "not one of a trusted CA"},
		"over":              {c.machine(ec.Public(), func(x *x509.Certificate) { x.NotAfter = then.Add(-time.Minute) }), signed, thisExchange, "expired"},
		"a server's": {
			c.machine(ec.Public(), func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), signed, thisExchange,
			"incompatible key usage",
		},
		"another key's":    {good, possession(t, ed, thisExchange), thisExchange, "did not sign"},
		"not signed":       {good, nil, thisExchange, "did not sign"},
		"replayed":         {good, signed, sha256.Sum256([]byte("later")), "did not sign"},
		"an authority's":   {c.root, possession(t, c.key, sha256.Sum256([]byte("other"))), thisExchange, "did not sign"},
		"no certificate":   {&x509.Certificate{Raw: []byte("what?")}, signed, thisExchange, "cannot be read"},
		"long certificate": {&x509.Certificate{Raw: make([]byte, maxCertificate+1)}, signed, thisExchange, "bytes, at most"},
	} {
		_, err := finish(&redoubtv1.X509Evidence{Chain: [][]byte{lie.leaf.Raw}, Signature: lie.signature}, lie.binding)
		if err == nil || !strings.Contains(err.Error(), lie.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := finish(&redoubtv1.X509Evidence{Chain: make([][]byte, maxChain+1), Signature: signed}, thisExchange); err == nil {
		t.Error("a long chain")
	}
	var unable *UnableError
	if _, err := finish(&redoubtv1.X509Evidence{}, thisExchange); !errors.As(err, &unable) {
		t.Errorf("nothing shown: %v", err)
	}
	if _, err := a.Finish(then, Claim{}, nil, thisExchange); err == nil {
		t.Error("finished what was not begun")
	}
}

func TestAuthorities(t *testing.T) {
	c := newCompany(t)
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	for what, file := range map[string][]byte{
		"nothing": nil, "no PEM": []byte("certificate"), "a key": block("PRIVATE KEY", []byte{1}), "damaged": block("CERTIFICATE", []byte{1}),
		"no authority": block("CERTIFICATE", c.machine(k.Public(), nil).Raw),
	} {
		if err := NewAuthorities().Add(file); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
}

// FuzzX509 gives the attestor arbitrary bytes.
func FuzzX509(f *testing.F) {
	c := newCompany(f)
	a := c.attestor()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encoded(f, &redoubtv1.X509Evidence{Chain: [][]byte{c.machine(k.Public(), nil).Raw, c.root.Raw}, Signature: possession(f, k, thisExchange)}))
	f.Add([]byte{})
	other := sha256.Sum256([]byte("another exchange"))
	f.Fuzz(func(t *testing.T, evidence []byte) {
		if got, err := a.Finish(then, x509State{}, evidence, other); err == nil || got.Level != cert.LevelNone {
			t.Fatalf("attested: %+v", got)
		}
	})
}
