package cert_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

func isKind(err error) bool {
	for _, kind := range []error{
		cert.ErrMalformed, cert.ErrExtension, cert.ErrRole, cert.ErrMesh, cert.ErrChain, cert.ErrExpired, cert.ErrNotYetValid, cert.ErrPin,
	} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// FuzzParseNode parses certificates from outside. Whatever is not a node certificate yields an error of a known kind; a node
// certificate is complete, and no verifier accepts it unless it was signed.
func FuzzParseNode(f *testing.F) {
	w := newWorld(f)
	f.Add(w.issue(f))
	f.Add(w.issueCoordinator(f))
	f.Add(w.root.Certificate().Raw)
	v := w.verifier(f)
	if err := v.AddIntermediates([][]byte{w.intermediate.Certificate().Raw}); err != nil {
		f.Fatal(err)
	}
	genuine := w.issue(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := cert.ParseNode(b)
		if err != nil {
			if !isKind(err) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if err := n.Validate(); err != nil || len(n.Keys) == 0 || n.Device.IsZero() || !bytes.Equal(n.Raw, b) {
			t.Fatalf("incomplete: %+v, %v", n, err)
		}
		if got, err := v.Node(b, start); err == nil && !bytes.Equal(b, genuine) && got.Mesh == w.mesh && got.Device != w.device.Device() {
			t.Fatalf("verified, and never signed: %+v", got)
		}
	})
}

// TestGolden checks that certificates issued long ago can still be read.
func TestGolden(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		if block == nil {
			t.Fatalf("%s is no PEM", name)
		}
		return block.Bytes
	}
	chain := [][]byte{read("node.pem"), read("intermediate.pem"), read("root.pem")}
	root, mesh, err := cert.ParseRoot(chain[2])
	if err != nil {
		t.Fatal(err)
	}
	v := must(cert.NewVerifier(mesh, []*x509.Certificate{root}))(t)
	n, err := v.PeerNode(chain, start)
	if err != nil {
		t.Fatal(err)
	}
	if n.Name != "web-1" || n.ID != 42 || n.Sequence != 9 || n.Level != cert.LevelToken || len(n.Keys) != 1 || len(n.Tags) != 2 {
		t.Errorf("got %+v", n)
	}
}
