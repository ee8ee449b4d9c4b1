package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/redoubt-mesh/redoubt/proto/eventlog"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
	"github.com/redoubt-mesh/redoubt/scripts/swtpm"
)

// chips makes TPMs of one maker.
type chips struct {
	r     *rig
	dir   string
	maker *swtpm.Maker
	roots string
}

// newChips creates a maker whose CA is in a directory for --tpm-roots. It uses a short directory because socket paths must be
// short.
func newChips(r *rig) *chips {
	r.Helper()
	labtest.Installed(r, swtpm.Missing())
	dir, err := os.MkdirTemp("", "chips")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { os.RemoveAll(dir) })
	c := &chips{r: r, dir: dir, roots: filepath.Join(dir, "roots")}
	if c.maker, err = swtpm.NewMaker(filepath.Join(dir, "maker")); err != nil {
		r.Fatal(err)
	}
	return c
}

// chip creates a TPM and starts it.
func (c *chips) chip(name string) *swtpm.TPM {
	c.r.Helper()
	t, err := swtpm.New(c.r.ctx, filepath.Join(c.dir, name), c.maker)
	if err != nil {
		c.r.Fatal(err)
	}
	c.r.Cleanup(func() {
		if err := t.Close(); err != nil {
			c.r.Error(err)
		}
	})
	if err := c.maker.Roots(c.roots); err != nil {
		c.r.Fatal(err)
	}
	return t
}

// place returns the value of --tpm for a TPM.
func place(t *swtpm.TPM) string { return "unix:" + t.Socket }

// attested checks that a node has a level in all places that show it.
func (r *rig) attested(node, level string) shown {
	r.Helper()
	s := r.show(node)
	fact := slices.ContainsFunc(s.Facts, func(f struct{ Name, Value string }) bool { return f.Name == "device:attestation" && f.Value == level })
	if s.Attestation != level || s.Attested.Level != level || !fact {
		r.Fatalf("%s is attested otherwise than by %s: %+v", node, level, s)
	}
	return s
}

// refused checks that a machine may not join and is told why.
func (r *rig) refused(m *member, code string, words ...string) {
	r.Helper()
	r.contains(m.fails(exitFalse, "up", code), words...)
}

// TestTPM checks that machines with TPMs can join, and that machines with less than required cannot.
func TestTPM(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	c := newChips(r)
	chip, other := c.chip("a"), c.chip("b")
	r.startCoordinator("--tpm-roots", c.roots)
	r.apply(`{
	  "postures": {"posture:genuine": ["device:attestation >= 'tpm'"]},
	  "tagOwners": {"tag:web": []},
	  "grants": [{"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["icmp:*"], "srcPosture": ["posture:genuine"]}],
	}`)
	web := r.join("web", "--tag", "tag:web")
	r.attested("web", "token")
	a := r.machine("a", "--tpm", place(chip))
	a.join(r.token("--user", "ann@example.com"))
	s := r.attested("a", "tpm")
	if s.Attested.Kind != "tpm" || !strings.HasPrefix(s.Attested.Device, "tpm:") || s.Attested.Checked == "" {
		t.Errorf("%+v", s.Attested)
	}
	r.contains(strings.Join(s.Attested.Selectors, "\n"), "tpm:vendor=id:00001014", "tpm:model=swtpm", "pcr:7=")
	r.contains(r.admin("node", "show", "a"), "fresh quote of PCR 0, 2, 4, 7", "not measured: the machine has no event log")
	r.contains(a.do("status"), "attestation tpm, device key in the TPM")
	r.settle()
	if _, err := a.Host.Ping(r.ctx, web.v4); err != nil {
		t.Errorf("a posture that the TPM fulfils: %v", err)
	}
	key, err := os.ReadFile(filepath.Join(a.State(), "device.key"))
	if err != nil || !strings.Contains(string(key), "REDOUBT TPM KEY") {
		t.Errorf("the device key on the disk: %v\n%s", err, key)
	}

	// Restart the machine, and the TPM with it.
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	if err := chip.Close(); err != nil {
		t.Fatal(err)
	}
	if err := chip.Start(r.ctx); err != nil {
		t.Fatal(err)
	}
	a.start("--tpm", place(chip))
	a.awaitState("running")
	if _, err := a.Host.Ping(r.ctx, web.v4); err != nil {
		t.Errorf("after the restart: %v", err)
	}

	// Use its disk in another machine, which also has a TPM.
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	a.start("--tpm", place(other))
	a.awaitStatus("cannot sign", func(st mesh.Status) bool {
		return !st.Coordinator.Connected && strings.Contains(strings.Join(st.Problems, " "), "belongs to another TPM")
	})
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}

	// The same TPM as another node is refused, unless the code allows the replacement.
	again := r.machine("again", "--tpm", place(chip))
	r.refused(again, r.token("--user", "ann@example.com"), "is node a", "--replace a")
	r.refusedInLog("is node a")
	again.join(r.token("--replace", "a"))
	n := r.attested("a", "tpm")
	if n.ID != s.ID || n.DevicePublic == s.DevicePublic || again.id != a.id || again.v4 != a.v4 {
		t.Errorf("replaced: %+v, was %+v", n, s)
	}
	if _, err := again.Host.Ping(r.ctx, web.v4); err != nil {
		t.Errorf("from the machine that took its place: %v", err)
	}

	// A machine without a TPM must not replace one that has one.
	less := r.machine("less")
	code := r.token("--replace", "a")
	r.refused(less, code, "was attested by tpm", "node reset a")
	r.refusedInLog("was attested by tpm")
	r.admin("node", "reset", "a")
	less.join(code)
	r.attested("a", "token")
	again.awaitStatus("is out", func(st mesh.Status) bool { return st.State == "revoked" })
	if _, err := less.Host.Ping(r.ctx, web.v4); err == nil {
		t.Error("the posture holds without a TPM")
	}
}

// refusedInLog checks that the coordinator's log says why.
func (r *rig) refusedInLog(words ...string) {
	r.Helper()
	r.contains(r.Serve.Output(), words...)
}

// TestUnverifiedTPM joins with TPMs of makers that nobody trusts.
func TestUnverifiedTPM(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	c := newChips(r)
	chip := c.chip("a")
	bare, err := swtpm.New(r.ctx, filepath.Join(c.dir, "bare"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	r.startCoordinator()
	r.machine("a", "--tpm", place(chip)).join(r.token("--tag", "tag:a"))
	r.attested("a", "tpm-unverified")

	// Once makers are trusted, a TPM of another maker is refused; a TPM without a certificate stays unverified.
	foreign := newChips(r)
	foreign.chip("x")
	if err := r.Serve.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.startCoordinator("--tpm-roots", foreign.roots)
	b := r.machine("b", "--tpm", place(c.chip("b")))
	r.refused(b, r.token("--tag", "tag:b"), "not trusted here", "--tpm off")
	r.machine("bare", "--tpm", place(bare)).join(r.token("--tag", "tag:b"))
	r.attested("bare", "tpm-unverified")
}

// TestMeasured joins with a machine whose event log leads to its PCRs, and one whose log does not.
func TestMeasured(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	c := newChips(r)
	chip := c.chip("a")
	log := filepath.Join(c.dir, "log")
	if err := os.WriteFile(log, boots(t, chip), 0o600); err != nil {
		t.Fatal(err)
	}
	r.startCoordinator("--tpm-roots", c.roots)
	a := r.machine("a", "--tpm", place(chip), "--event-log", log)
	a.join(r.token("--tag", "tag:a"))
	s := r.attested("a", "measured")
	r.contains(strings.Join(s.Attested.Selectors, "\n"), "secureboot=on")
	r.contains(r.admin("node", "show", "a"), "secure boot on")
	r.machine("b", "--tpm", place(c.chip("b")), "--event-log", log).join(r.token("--tag", "tag:a"))
	r.attested("b", "tpm")
	r.contains(r.admin("node", "show", "b"), "not measured: PCR 0: the log does not lead to the PCRs")
}

// boots extends the PCRs of a TPM as firmware does with secure boot on, and returns the matching log.
func boots(t *testing.T, c *swtpm.TPM) []byte {
	t.Helper()
	tpm, err := linuxudstpm.Open(c.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	variable := []byte("\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c\x0a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" +
		"S\x00e\x00c\x00u\x00r\x00e\x00B\x00o\x00o\x00t\x00\x01")
	events := []eventlog.Event{{PCR: 0, Type: 8, Data: []byte("firmware")}, {PCR: 7, Type: 0x80000001, Data: variable}}
	for pcr := range uint32(8) {
		events = append(events, eventlog.Event{PCR: pcr, Type: 4, Data: make([]byte, 4)})
	}
	for i := range events {
		e := &events[i]
		e.Digest = sha256.Sum256(e.Data)
		if _, err := (tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(e.PCR), Auth: tpm2.PasswordAuth(nil)},
			Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: e.Digest[:]}}},
		}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
	}
	return eventlog.Append(nil, events)
}

// TestCompanyCertificate joins with a certificate of the company's CA.
func TestCompanyCertificate(t *testing.T) {
	t.Parallel()
	r := emptyRig(t)
	dir := filepath.Join(r.World.Dir, "company")
	roots := filepath.Join(dir, "roots")
	if err := os.MkdirAll(roots, 0o755); err != nil {
		t.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Company CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	write := func(path, kind string, der []byte, err error) {
		t.Helper()
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, ca.Public(), ca)
	write(filepath.Join(roots, "ca.pem"), "CERTIFICATE", der, err)
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "laptop-7"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, root, k.Public(), ca)
	certificate, file := filepath.Join(dir, "laptop.pem"), filepath.Join(dir, "laptop-key.pem")
	write(certificate, "CERTIFICATE", der, err)
	der, err = x509.MarshalPKCS8PrivateKey(k)
	write(file, "PRIVATE KEY", der, err)

	r.startCoordinator("--x509-roots", roots)
	r.machine("a", "--x509-cert", certificate, "--x509-key", file).join(r.token("--tag", "tag:a"))
	s := r.attested("a", "x509")
	r.contains(strings.Join(s.Attested.Selectors, "\n"), "x509:subject=CN=laptop-7", "x509:issuer=CN=Company CA")
	again := r.machine("again", "--x509-cert", certificate, "--x509-key", file)
	r.refused(again, r.token("--tag", "tag:a"), "is node a")
	r.machine("b").join(r.token("--tag", "tag:a"))
	r.attested("b", "token")
}
