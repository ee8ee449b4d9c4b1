package device

import (
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-tpm/tpm2/transport"
	pb "google.golang.org/protobuf/proto"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestUnableWhateverTheError checks that a renewal says why the TPM cannot answer, whatever characters the reason has and
// wherever it is cut.
func TestUnableWhateverTheError(t *testing.T) {
	for name, why := range map[string]string{
		"short":              "no such device",
		"long":               strings.Repeat("x", 300),
		"not UTF-8":          "Ger\xe4t fehlt",
		"long and not UTF-8": strings.Repeat("\xff", 300),
		"cut within é":       strings.Repeat("é", 300),
		"cut within é, too":  "x" + strings.Repeat("é", 300),
	} {
		tpm := &TPM{place: "test", open: func() (transport.TPMCloser, error) { return nil, errors.New(why) }}
		b, err := tpm.Evidence(Blob{}, nil, [32]byte{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var m redoubtv1.TPMEvidence
		if err := pb.Unmarshal(b, &m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		says := m.GetUnable()
		if len(says) > maxUnable || !utf8.ValidString(says) || !strings.HasPrefix(says, "TPM (test): "+string([]rune(why)[0])) {
			t.Errorf("%s: it says %q", name, says)
		}
	}
}
