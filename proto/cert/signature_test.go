package cert_test

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// presuming returns a verifier that presumes the given signatures and knows the intermediate.
func (w *world) presuming(t *testing.T, good ...cert.Signature) *cert.Verifier {
	t.Helper()
	v := w.verifier(t)
	if err := v.AddIntermediates([][]byte{w.intermediate.Certificate().Raw}); err != nil {
		t.Fatal(err)
	}
	set := map[cert.Signature]struct{}{}
	for _, s := range good {
		set[s] = struct{}{}
	}
	v.Presume(set)
	return v
}

// tampered returns a certificate with a bad signature, and the Signature that identifies it.
func (w *world) tampered(t *testing.T) (der []byte, name cert.Signature) {
	t.Helper()
	der = w.issue(t)
	der[len(der)-1] ^= 1
	by := sha256.Sum256(w.intermediate.Certificate().Raw)
	return der, sha256.Sum256(append(by[:], der...))
}

// TestPresume checks that a presumed signature applies to one certificate by one issuer only.
func TestPresume(t *testing.T) {
	w := newWorld(t)
	bad, name := w.tampered(t)
	if _, err := w.presuming(t).Node(bad, start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("nothing is presumed: %v", err)
	}
	if n, err := w.presuming(t, name).Node(bad, start); err != nil || n.Signed != name {
		t.Errorf("it is presumed: %v", err)
	}
	honest := w.issue(t)
	n, err := w.presuming(t).Node(honest, start)
	if err != nil || n.Signed == (cert.Signature{}) {
		t.Fatalf("a good one: %v", err)
	}
	if _, err := w.presuming(t, n.Signed).Node(bad, start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("another is presumed: %v", err)
	}
	v := w.presuming(t, name)
	v.Presume(nil)
	if _, err := v.Node(bad, start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("it is presumed no longer: %v", err)
	}
}

// TestPresumedIsJudged checks that all but the signature of a presumed certificate is verified as usual.
func TestPresumedIsJudged(t *testing.T) {
	w := newWorld(t)
	der := w.issue(t)
	n, err := w.presuming(t).Node(der, start)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.presuming(t, n.Signed).Node(der, start.Add(2*time.Hour)); !errors.Is(err, cert.ErrExpired) {
		t.Errorf("after its end: %v", err)
	}
	if err := w.presuming(t, n.Signed).Relay(w.chain(der), 42, start); !errors.Is(err, cert.ErrRole) {
		t.Errorf("as a relay's: %v", err)
	}
	// A verifier with another root of the same mesh, as after a root was retired, does not know the intermediate.
	root := must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	v := must(cert.NewVerifier(w.mesh, []*x509.Certificate{root.Certificate()}))(t)
	v.Presume(map[cert.Signature]struct{}{n.Signed: {}})
	if _, err := v.PeerNode(w.chain(der), start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("under a root that is not trusted: %v", err)
	}
	// The same certificate under another issuer is another signature.
	other := must(w.root.NewIntermediate(rand.Reader, start, 30*day))(t)
	v = w.verifier(t)
	if err := v.AddIntermediates([][]byte{other.Certificate().Raw}); err != nil {
		t.Fatal(err)
	}
	v.Presume(map[cert.Signature]struct{}{n.Signed: {}})
	if _, err := v.Node(der, start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("under another intermediate: %v", err)
	}
}
