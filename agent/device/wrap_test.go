package device

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"
)

// FuzzParseWrapped parses wrapped node keys, which somebody may have changed on the disk.
func FuzzParseWrapped(f *testing.F) {
	good, err := asn1.Marshal(wrapRecord{[]byte("public"), []byte("private"), make([]byte, chacha20poly1305.NonceSizeX), []byte("sealed")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseWrapped(b)
		if err != nil {
			if !errors.Is(err, ErrWrapped) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if again, err := asn1.Marshal(r); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is read as %x", b, again)
		}
	})
}
