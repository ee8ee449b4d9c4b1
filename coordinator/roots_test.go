package coordinator

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAuthoritiesThatCannotBeUsed checks that an unusable directory of authorities prevents the start, and that the error says
// what is wrong.
func TestAuthoritiesThatCannotBeUsed(t *testing.T) {
	empty, damaged := t.TempDir(), t.TempDir()
	file := filepath.Join(damaged, "maker.pem")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, words := range map[string]string{empty: "no self-signed certificate", damaged: file, filepath.Join(empty, "none"): "no such file"} {
		for flag, c := range map[string]Config{"--tpm-roots": {TPMRoots: dir}, "--x509-roots": {X509Roots: dir}} {
			if _, err := openAttestors(c); err == nil || !strings.Contains(err.Error(), flag) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s %s: %v", flag, dir, err)
			}
		}
	}
	r, err := openAttestors(Config{})
	if err != nil || r.Of("tpm") == nil || r.Of("token") == nil || r.Of("x509pop") != nil {
		t.Errorf("%+v, %v", r, err)
	}
}
