package redoubtv1_test

import (
	"regexp"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// secret matches the names of fields that would carry a key or key material.
var secret = regexp.MustCompile(`private|secret|seed|passphrase|password`)

// TestNoMessageCarriesAPrivateKey checks that keys stay where they were made. A field with a suspicious name must be listed here.
func TestNoMessageCarriesAPrivateKey(t *testing.T) {
	known := map[protoreflect.FullName]string{
		"redoubt.v1.TPMChallenge.secret": "encrypted for the TPM that is asked",
	}
	found := 0
	for _, file := range []protoreflect.FileDescriptor{
		redoubtv1.File_redoubt_v1_admin_proto, redoubtv1.File_redoubt_v1_control_proto, redoubtv1.File_redoubt_v1_local_proto,
		redoubtv1.File_redoubt_v1_netmap_proto, redoubtv1.File_redoubt_v1_attest_proto,
	} {
		messages := file.Messages()
		for i := range messages.Len() {
			fields := messages.Get(i).Fields()
			for k := range fields.Len() {
				found++
				if f := fields.Get(k); secret.MatchString(string(f.Name())) && known[f.FullName()] == "" {
					t.Errorf("%s carries what must not travel", f.FullName())
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("only %d fields were looked at", found)
	}
}
