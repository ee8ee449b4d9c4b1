package attest

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	pb "google.golang.org/protobuf/proto"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// record makes a test with a TPM store what that TPM says in testdata/tpm.
var record = flag.Bool("record", false, "keep what a TPM says")

// thisExchange is the Binding of the recorded exchange.
var thisExchange = sha256.Sum256([]byte("this exchange"))

func answer(secret []byte, binding [32]byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(binding[:])
	return h.Sum(nil)
}

func encoded(t testing.TB, m pb.Message) []byte {
	t.Helper()
	b, err := pb.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recorded is an enrolment with a software TPM.
type recorded struct {
	attestor TPM
	claim    Claim
	opening  []byte
	evidence []byte // without the activation
}

func readRecorded(t testing.TB) recorded {
	t.Helper()
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", "tpm", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := NewAuthorities()
	if err := a.Add(file("roots.pem")); err != nil {
		t.Fatal(err)
	}
	c := claim(t)
	var err error
	if c.Device, err = key.ParseDevicePublic(file("device")); err != nil {
		t.Fatal(err)
	}
	return recorded{NewTPM(a), c, file("opening"), file("evidence")}
}

// then is a time at which the recorded certificates are valid.
var then = time.Date(2027, 6, 1, 0, 0, 0, 0, time.UTC)

// begun starts the exchange and returns its state and the evidence with the right answer to the credential.
func (r recorded) begun(t testing.TB) (State, []byte) {
	t.Helper()
	_, state, err := r.attestor.Begin(then, rand.Reader, r.claim, r.opening)
	if err != nil {
		t.Fatal(err)
	}
	var m redoubtv1.TPMEvidence
	if err := pb.Unmarshal(r.evidence, &m); err != nil {
		t.Fatal(err)
	}
	m.Activation = answer(state.(*tpmState).secret, thisExchange)
	return state, encoded(t, &m)
}

func TestRecorded(t *testing.T) {
	r := readRecorded(t)
	state, evidence := r.begun(t)
	a, err := r.attestor.Finish(then, state, evidence, thisExchange)
	if err != nil || a.Level != cert.LevelTPM {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := r.attestor.Finish(then, Claim{}, evidence, thisExchange); err == nil {
		t.Error("finished what was not begun")
	}
	if _, _, err := r.attestor.Begin(then.AddDate(-50, 0, 0), rand.Reader, r.claim, r.opening); err == nil {
		t.Error("a certificate whose time has not come")
	}
}

// FuzzTPM gives the attestor arbitrary bytes. It checks that only the holder of the keys is attested, and only in the
// recorded exchange.
func FuzzTPM(f *testing.F) {
	r := readRecorded(f)
	state, evidence := r.begun(f)
	f.Add(r.opening, evidence)
	f.Add(r.opening, r.evidence)
	f.Add([]byte{}, []byte{})
	other := sha256.Sum256([]byte("another exchange"))
	f.Fuzz(func(t *testing.T, opening, evidence []byte) {
		for _, begin := range []func() (State, error){
			func() (State, error) { return state, nil },
			func() (State, error) {
				_, s, err := r.attestor.Begin(then, rand.Reader, r.claim, opening)
				return s, err
			},
			func() (State, error) {
				_, s, err := r.attestor.Again(then, r.claim, opening)
				return s, err
			},
		} {
			s, err := begin()
			if err != nil {
				continue
			}
			if a, err := r.attestor.Finish(then, s, evidence, other); err == nil || a.Level != cert.LevelNone {
				t.Fatalf("attested in another exchange: %+v", a)
			}
			if a, err := r.attestor.Finish(then, s, evidence, thisExchange); err == nil && a.DeviceID != state.(*tpmState).ek.id {
				t.Fatalf("attested as another machine: %+v", a)
			}
		}
	})
}

func BenchmarkTPMFinish(b *testing.B) {
	r := readRecorded(b)
	state, evidence := r.begun(b)
	for b.Loop() {
		if _, err := r.attestor.Finish(then, state, evidence, thisExchange); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTPMBegin(b *testing.B) {
	r := readRecorded(b)
	for b.Loop() {
		if _, _, err := r.attestor.Begin(then, rand.Reader, r.claim, r.opening); err != nil {
			b.Fatal(err)
		}
	}
}
