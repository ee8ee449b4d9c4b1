package device

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

// kept returns a blob that a TPM made.
func kept(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "blob.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBlob(t *testing.T) {
	text := kept(t)
	b, err := ParseBlob(text)
	if err != nil || b.IsZero() || b.Device().IsZero() {
		t.Fatalf("%v, %v", b, err)
	}
	again, err := b.MarshalPEM()
	if err != nil || !bytes.Equal(again, text) {
		t.Errorf("%s, %v", again, err)
	}
	block, _ := pem.Decode(text)
	for what, bad := range map[string][]byte{
		"nothing": nil, "two": append(bytes.Clone(text), text...), "cut": text[:len(text)/2],
		"another type": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: block.Bytes}),
		"more behind":  pem.EncodeToMemory(&pem.Block{Type: PEMType, Bytes: append(bytes.Clone(block.Bytes), 0)}),
		"less":         pem.EncodeToMemory(&pem.Block{Type: PEMType, Bytes: block.Bytes[:20]}),
	} {
		if b, err := ParseBlob(bad); err == nil || !b.IsZero() {
			t.Errorf("%s: %v", what, b)
		}
	}
}

func FuzzBlob(f *testing.F) {
	block, _ := pem.Decode(kept(f))
	f.Add(block.Bytes)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseBlob(pem.EncodeToMemory(&pem.Block{Type: PEMType, Bytes: b}))
		if (err == nil) == k.IsZero() || err == nil && k.Device().ECDSA() == nil {
			t.Errorf("%v, %v", k, err)
		}
	})
}
