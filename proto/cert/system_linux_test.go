package cert_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// TestSystemRoots checks that the system's trusted roots have no effect, with an impostor's root among them.
func TestSystemRoots(t *testing.T) {
	w := newWorld(t)
	impostor := newWorld(t)
	impostor.mesh = w.mesh
	impostor.root = must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	impostor.intermediate = must(impostor.root.NewIntermediate(rand.Reader, start, 30*day))(t)
	impostor.node.Mesh = w.mesh
	file := filepath.Join(t.TempDir(), "roots.pem")
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: impostor.root.Certificate().Raw})
	if err := os.WriteFile(file, root, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", file)

	leaf := impostor.issue(t)
	pool := x509.NewCertPool()
	pool.AddCert(impostor.intermediate.Certificate())
	_, err := must(x509.ParseCertificate(leaf))(t).Verify(x509.VerifyOptions{
		Intermediates: pool, CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		t.Fatalf("the system does not trust the impostor, so this test tests nothing: %v", err)
	}
	if _, err := w.verifier(t).PeerNode(impostor.chain(leaf), start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("a node under the system's root: %v", err)
	}
	if _, err := w.verifier(t).Coordinator(impostor.chain(impostor.issueCoordinator(t)), start); !errors.Is(err, cert.ErrChain) {
		t.Errorf("a coordinator under the system's root: %v", err)
	}
}
