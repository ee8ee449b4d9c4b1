package device

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/coordinator/attest"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// record makes the test save a blob to testdata/blob.pem.
var record = flag.Bool("record", false, "keep a blob")

// software starts a software TPM with a manufacturer of its own.
func software(t testing.TB) *swtpm.TPM {
	t.Helper()
	labtest.Installed(t, swtpm.Missing())
	// A socket's path must be short.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m, err := swtpm.NewMaker(filepath.Join(dir, "maker"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := swtpm.New(t.Context(), filepath.Join(dir, "a"), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func open(t testing.TB, s *swtpm.TPM) *TPM {
	t.Helper()
	c, err := NewTPM("unix:"+s.Socket, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func signs(t *testing.T, k Key) {
	t.Helper()
	digest := sha256.Sum256([]byte("something"))
	signature, err := k.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || !k.Device().Verify(digest[:], signature) {
		t.Errorf("%x, %v", signature, err)
	}
}

func TestKeyInTPM(t *testing.T) {
	s := software(t)
	c := open(t, s)
	b, err := c.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	k := c.Key(b)
	signs(t, k)

	// As it comes back from the disk.
	text, err := b.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	if *record {
		if err := os.WriteFile(filepath.Join("testdata", "blob.pem"), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	again, err := ParseBlob(text)
	if err != nil || again.Device() != b.Device() {
		t.Fatalf("%v, %v", again.Device(), err)
	}
	// A second key takes the slot of the first.
	other, err := c.NewKey()
	if err != nil || other.Device() == b.Device() {
		t.Fatalf("%v", err)
	}
	for range 3 {
		signs(t, c.Key(other))
		signs(t, c.Key(again))
	}
	if _, err := k.Sign(rand.Reader, make([]byte, 31), crypto.SHA256); err == nil {
		t.Error("signs what is no digest")
	}

	// The TPM is reset while in use, as swtpm is when its machine restarts.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	signs(t, k)

	// A crash leaves keys loaded. They are flushed, as often as it happens: there are three slots.
	for range 5 {
		crashed := open(t, s)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := crashed.do(func() error { return crashed.load(again) }); err != nil {
			t.Fatal(err)
		}
		if err := crashed.t.Close(); err != nil {
			t.Fatal(err)
		}
		crashed.t, crashed.device = nil, nil
		c = open(t, s)
		signs(t, c.Key(again))
	}

	// The same blob is useless in another TPM, such as after copying the disk.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	elsewhere := open(t, software(t))
	digest := sha256.Sum256(nil)
	if _, err := elsewhere.Key(again).Sign(rand.Reader, digest[:], crypto.SHA256); err == nil {
		t.Error("another TPM signs with the key")
	}
}

func TestManyUseTheTPM(t *testing.T) {
	s := software(t)
	c := open(t, s)
	b, err := c.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				signs(t, c.Key(b))
				if _, err := c.Opening(); err != nil {
					t.Error(err)
				}
				if m, err := c.Evidence(b, nil, [32]byte{1}); err != nil || len(m) == 0 {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestPlaces(t *testing.T) {
	for _, bad := range []string{"", "unix:", "yes", "tpmrm0"} {
		if CheckPlace(bad) == nil {
			t.Errorf("%q is a place", bad)
		}
	}
	c, err := NewTPM("unix:/nowhere/at/all", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.NewKey(); err == nil {
		t.Error("a key from nowhere")
	}
	if _, err := NewTPM("/nowhere/at/all", ""); err == nil {
		t.Error("a device that is not there")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.NewKey(); err == nil {
		t.Error("a key after the end")
	}
}

// BenchmarkEnrolment measures what the agent does for an enrolment by TPM: a device key, a wrapped node key, the opening,
// the evidence. The CPU time is the agent's own; the TPM's is in the elapsed time.
func BenchmarkEnrolment(b *testing.B) {
	s := software(b)
	l := coordinator{attest.NewTPM(nil)}
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := NewTPM("unix:"+s.Socket, "")
		if err != nil {
			b.Fatal(err)
		}
		k, err := c.NewKey()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := c.Wrap(make([]byte, 32)); err != nil {
			b.Fatal(err)
		}
		opening, err := c.Opening()
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		challenge := l.challenge(b, k, opening)
		b.StartTimer()
		if _, err := c.Evidence(k, challenge, [32]byte{1}); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		b.Fatal(err)
	}
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// coordinator makes challenges.
type coordinator struct{ attestor attest.TPM }

func (c coordinator) challenge(t testing.TB, b Blob, opening []byte) []byte {
	t.Helper()
	challenge, _, err := c.attestor.Begin(time.Now(), rand.Reader, attest.Claim{Device: b.Device()}, opening)
	if err != nil {
		t.Fatal(err)
	}
	return challenge
}

// TestWrap checks that a TPM can unwrap what it wrapped, also after a reset, and that no other TPM can.
func TestWrap(t *testing.T) {
	s := software(t)
	c := open(t, s)
	secret := []byte("a node key")
	wrapped, err := c.Wrap(secret)
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.Wrap(secret)
	if err != nil || bytes.Equal(wrapped, again) || bytes.Contains(wrapped, secret) {
		t.Errorf("wrapped twice: the same %v, %v", bytes.Equal(wrapped, again), err)
	}
	reads := func(c *TPM) {
		t.Helper()
		for _, w := range [][]byte{wrapped, again} {
			if got, err := c.Unwrap(w); err != nil || !bytes.Equal(got, secret) {
				t.Errorf("%q, %v", got, err)
			}
		}
	}
	reads(c)
	// Wrapping takes a slot of the TPM only during a call, and works beside a device key.
	b, err := c.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	signs(t, c.Key(b))
	reads(c)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	c = open(t, s)
	reads(c)
	signs(t, c.Key(b))

	for _, i := range []int{0, 8, len(wrapped) / 2, len(wrapped) - 50, len(wrapped) - 1} {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if got, err := c.Unwrap(bad); err == nil {
			t.Fatalf("with byte %d changed it is %q", i, got)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := open(t, software(t)).Unwrap(wrapped); err == nil {
		t.Errorf("another TPM reads %q", got)
	}
}
