package device

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"
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

func TestLost(t *testing.T) {
	const parameter1 = 0x1C0 // the bits by which a TPM says that it means its first parameter
	for name, c := range map[string]struct {
		err  error
		lost bool
	}{
		"none":                             {nil, false},
		"not ours":                         {fmt.Errorf("key 1: %w", ErrWrapped), true},
		"sealed by another TPM":            {fmt.Errorf("load: %w", tpm2.TPMRCIntegrity|parameter1), true},
		"a key that the TPM cannot use":    {tpm2.TPMRCSensitive, true},
		"busy":                             {fmt.Errorf("load: %w", tpm2.TPMRCRetry), false},
		"locked out":                       {tpm2.TPMRCLockout, false},
		"no answer":                        {errors.New("read /dev/tpmrm0: input/output error"), false},
		"both storage roots refuse":        {errors.Join(tpm2.TPMRCIntegrity|parameter1, tpm2.TPMRCValue|parameter1), true},
		"one refuses, one does not answer": {fmt.Errorf("load: %w", errors.Join(tpm2.TPMRCIntegrity|parameter1, tpm2.TPMRCRetry)), false},
	} {
		if got := Lost(c.err); got != c.lost {
			t.Errorf("%s: %t, want %t (%v)", name, got, c.lost, c.err)
		}
	}
}
