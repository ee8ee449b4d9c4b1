package issuer

import (
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

var start = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

// rig is an issuer on a directory, with a clock.
type rig struct {
	*Issuer
	t      testing.TB
	config Config
	mu     sync.Mutex
	now    time.Time
}

func newMesh(t testing.TB) proto.MeshID {
	t.Helper()
	mesh, err := proto.NewMeshID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return mesh
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, now: start}
	r.config = Config{Dir: filepath.Join(t.TempDir(), "pki"), Mesh: newMesh(t), Fresh: true, Clock: r.clock, Rand: rand.Reader}
	r.open()
	r.config.Fresh = false
	return r
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) at(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = start.Add(d)
}

func (r *rig) open() {
	r.t.Helper()
	i, err := Open(r.config)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Issuer = i
}

func (r *rig) path(name string) string { return filepath.Join(r.config.Dir, name) }

// takeAway removes the root's key, and returns a function that puts it back.
func (r *rig) takeAway() (putBack func()) {
	r.t.Helper()
	away := filepath.Join(r.t.TempDir(), "root.key")
	if err := os.Rename(r.path(rootKeyFile), away); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		if err := os.Rename(away, r.path(rootKeyFile)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) maintain(want bool) {
	r.t.Helper()
	if changed, err := r.Maintain(); err != nil || changed != want {
		r.t.Errorf("maintained at %v: %v, %v; want %v", r.clock(), changed, err, want)
	}
}

// request returns a certificate to be issued to a new node.
func (r *rig) request() cert.Node {
	r.t.Helper()
	device, err1 := key.NewDevice(rand.Reader)
	node, err2 := key.NewNode(rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		r.t.Fatal(err)
	}
	return cert.Node{
		Mesh: r.config.Mesh, DNSName: "db.mesh.internal", Device: device.Device(), Level: cert.LevelToken, Sequence: 3,
		Keys: []cert.NodeKey{{Public: node.Public()}},
		Identity: proto.Identity{
			ID: 42, Name: "db", Tags: []string{"tag:db"},
			Addrs: proto.Addrs{V4: netip.MustParseAddr("100.87.0.20"), V6: netip.MustParseAddr("fd12::20")},
		},
	}
}

func (r *rig) issue() cert.Node {
	r.t.Helper()
	n, err := r.IssueNode(r.request(), r.clock())
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// stranger returns a verifier like a node's: it has the root, and what it is sent.
func (r *rig) stranger() *cert.Verifier {
	r.t.Helper()
	root, mesh, err := cert.ParseRoot(r.Roots()[0])
	if err != nil {
		r.t.Fatal(err)
	}
	v, err := cert.NewVerifier(mesh, append(r.Verifier().Roots()[:0:0], root))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := v.AddIntermediates(r.Authorities()); err != nil {
		r.t.Fatal(err)
	}
	return v
}

func TestIssueNode(t *testing.T) {
	r := newRig(t)
	want := r.request()
	got, err := r.IssueNode(want, start)
	if err != nil {
		t.Fatal(err)
	}
	if !got.NotBefore.Equal(start) || !got.NotAfter.Equal(start.Add(time.Hour)) || got.Serial == "" {
		t.Errorf("issued %+v", got)
	}
	for who, v := range map[string]*cert.Verifier{"a stranger": r.stranger(), "the coordinator": r.Verifier()} {
		n, err := v.Node(got.Raw, start.Add(59*time.Minute))
		if err != nil {
			t.Fatalf("%s: %v", who, err)
		}
		if n.ID != want.ID || n.Device != want.Device || n.Sequence != 3 || !n.HasKey(want.Keys[0].Public, start) ||
			!n.Keys[0].NotAfter.Equal(n.NotAfter) || n.Mesh != r.config.Mesh {
			t.Errorf("%s reads %+v", who, n)
		}
		if _, err := v.Node(got.Raw, start.Add(2*time.Hour)); !errors.Is(err, cert.ErrExpired) {
			t.Errorf("%s afterwards: %v, want ErrExpired", who, err)
		}
	}
	if want.Keys[0].NotAfter != (time.Time{}) {
		t.Error("the request was changed")
	}
	other := r.request()
	other.Mesh = newMesh(t)
	if _, err := r.IssueNode(other, start); err == nil {
		t.Error("issued for another mesh")
	}
}

func TestARestartGoesOn(t *testing.T) {
	r := newRig(t)
	old := r.issue()
	fingerprint, authorities := r.Fingerprint(), r.Authorities()
	r.open()
	if r.Fingerprint() != fingerprint || !slices.EqualFunc(authorities, r.Authorities(), slices.Equal) {
		t.Error("a restart made other keys")
	}
	if _, err := r.Verifier().Node(old.Raw, start); err != nil {
		t.Error(err)
	}
}

func TestFilesAreForTheirOwnerOnly(t *testing.T) {
	r := newRig(t)
	if info, err := os.Stat(r.config.Dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	for _, name := range []string{rootKeyFile, rootFile, intermediateFile} {
		info, err := os.Stat(r.path(name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("%s: %v, %v", name, info.Mode(), err)
		}
		if err := os.Chmod(r.path(name), 0o640); err != nil {
			t.Fatal(err)
		}
		_, err = Open(r.config)
		if name == rootKeyFile { // not read before it is needed
			r.at(16 * day)
			_, err = r.Maintain()
			r.at(0)
		}
		if err == nil || !strings.Contains(err.Error(), "chmod 600 "+r.path(name)) {
			t.Errorf("%s that the group can read: %v", name, err)
		}
		if err := os.Chmod(r.path(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(r.config.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r.config); err == nil || !strings.Contains(err.Error(), "chmod 700 "+r.config.Dir) {
		t.Errorf("a directory that others can look into: %v", err)
	}
}

func TestACrashInTheFirstStartIsCompleted(t *testing.T) {
	whole := newRig(t)
	for _, have := range [][]string{
		{}, {rootKeyFile}, {rootKeyFile, rootFile},
	} {
		for _, torn := range []string{rootKeyFile, rootFile, intermediateFile} {
			t.Run(fmt.Sprint(have, " and half of ", torn), func(t *testing.T) {
				r := &rig{t: t, now: start, config: whole.config}
				r.config.Dir, r.config.Fresh, r.config.Clock = filepath.Join(t.TempDir(), "pki"), true, r.clock
				if err := os.Mkdir(r.config.Dir, 0o700); err != nil {
					t.Fatal(err)
				}
				for _, name := range have {
					b, err := os.ReadFile(whole.path(name))
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(r.path(name), b, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(r.path(torn)+".tmp", []byte("-----BEGIN"), 0o600); err != nil {
					t.Fatal(err)
				}
				r.open()
				r.issue()
				if same := r.Fingerprint() == whole.Fingerprint(); same != (len(have) > 0) {
					t.Errorf("the root that was there is used: %v", same)
				}
			})
		}
	}
}

func TestAMissingRootIsNotReplacedWhereNodesKnowIt(t *testing.T) {
	r := newRig(t)
	if err := os.RemoveAll(r.config.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r.config); err == nil || !strings.Contains(err.Error(), "restore the directory") {
		t.Errorf("without its keys: %v", err)
	}
	if _, err := os.Stat(r.path(rootFile)); !errors.Is(err, os.ErrNotExist) {
		t.Error("another root was made")
	}
}

func TestKeysOfAnotherMeshAreRefused(t *testing.T) {
	r, other := newRig(t), newRig(t)
	for _, name := range []string{rootFile, intermediateFile} {
		mine, err := os.ReadFile(r.path(name))
		if err != nil {
			t.Fatal(err)
		}
		for what, b := range map[string][]byte{
			"of another mesh": must(os.ReadFile(other.path(name))), "empty": nil, "garbage": []byte("x"), "too long": make([]byte, maxFile+1),
			"cut short": mine[:len(mine)/2], "twice": append(slices.Clone(mine), mine...),
		} {
			if name == rootFile && what == "empty" {
				continue // recreated from the root's key
			}
			if err := os.WriteFile(r.path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(r.config); err == nil {
				t.Errorf("%s %s was taken", name, what)
			}
		}
		if err := os.WriteFile(r.path(name), mine, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.open()

	// An intermediate of the same mesh, but under a different root.
	twin := &rig{t: t, now: start, config: r.config}
	twin.config.Dir, twin.config.Fresh = filepath.Join(t.TempDir(), "pki"), true
	twin.open()
	if err := os.WriteFile(r.path(intermediateFile), must(os.ReadFile(twin.path(intermediateFile))), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(r.config); err == nil {
		t.Error("an intermediate under another root was taken")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestTheIntermediateIsReplacedAtHalfLife(t *testing.T) {
	r := newRig(t)
	first := r.Authorities()
	r.at(15*day - time.Second)
	r.maintain(false)
	last := r.issue()
	r.at(15 * day)
	r.maintain(true)
	r.maintain(false)
	got := r.Authorities()
	if len(got) != 2 || !slices.Equal(got[1], first[0]) || slices.Equal(got[0], first[0]) {
		t.Fatalf("%d authorities after the first half-life", len(got))
	}
	next := r.issue()
	check := func(when string) {
		t.Helper()
		for who, v := range map[string]*cert.Verifier{"a stranger": r.stranger(), "the coordinator": r.Verifier()} {
			for what, n := range map[string]cert.Node{"old": last, "new": next} {
				if _, err := v.Node(n.Raw, n.NotBefore.Add(30*time.Minute)); err != nil {
					t.Errorf("%s, %s, the %s certificate: %v", when, who, what, err)
				}
			}
		}
	}
	check("replaced")
	r.open()
	check("after a restart")

	for d := 16 * day; d <= 100*day; d += day { // the old ones are dropped when they expire
		r.at(d)
		if _, err := r.Maintain(); err != nil {
			t.Fatal(err)
		}
		if n := len(r.Authorities()); n > 3 {
			t.Fatalf("%d authorities on day %d", n, d/day)
		}
		r.issue()
	}
}

func TestARootThatIsOffline(t *testing.T) {
	r := newRig(t)
	putBack := r.takeAway()
	r.open()
	warnings := func(want int) {
		t.Helper()
		if s := r.Status(); s.RootHere || len(s.Warnings) != want || !s.Intermediate.NotAfter.Equal(start.Add(30*day)) {
			t.Errorf("at %v: %+v, want %d warnings", r.clock(), s, want)
		}
	}
	warnings(0)
	r.at(15*day + time.Second)
	r.maintain(false)
	warnings(1)
	r.issue()

	r.at(30*day - 30*time.Minute) // certificates are cut to what remains
	r.maintain(false)
	if n := r.issue(); !n.NotAfter.Equal(start.Add(30 * day)) {
		t.Errorf("a certificate until %v, the intermediate's end is %v", n.NotAfter, start.Add(30*day))
	}
	r.at(30*day - 5*time.Minute)
	if _, err := r.IssueNode(r.request(), r.clock()); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("at the intermediate's end: %v, want ErrNoIssuer", err)
	}
	if _, err := r.Maintain(); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("maintained: %v, want ErrNoIssuer", err)
	}
	r.at(31 * day)
	r.open() // it opens, so that someone can report this
	if _, err := r.GetCertificate(nil); err == nil {
		t.Error("a leaf under an intermediate that has ended")
	}
	putBack()
	r.maintain(true)
	r.issue()
	if s := r.Status(); !s.RootHere || len(s.Warnings) != 0 {
		t.Errorf("put back: %+v", s)
	}
	if _, err := r.GetCertificate(nil); err != nil {
		t.Error(err)
	}
}

func TestAnotherRootsKeyIsRefused(t *testing.T) {
	r := newRig(t)
	twin := &rig{t: t, now: start, config: r.config}
	twin.config.Dir, twin.config.Fresh = filepath.Join(t.TempDir(), "pki"), true
	twin.open()
	if err := os.WriteFile(r.path(rootKeyFile), must(os.ReadFile(twin.path(rootKeyFile))), 0o600); err != nil {
		t.Fatal(err)
	}
	r.at(16 * day)
	if _, err := r.Maintain(); err == nil {
		t.Error("an intermediate was made by another root")
	}
	r.issue()
}

func TestTheRootsEndIsSpokenOf(t *testing.T) {
	r := newRig(t)
	r.at(RootLifetime - 100*day)
	r.maintain(true)
	if s := r.Status(); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "mesh root ends") {
		t.Errorf("warnings: %q", s.Warnings)
	}
}

func TestCoordinatorsLeaf(t *testing.T) {
	r := newRig(t)
	get := func() *tls.Certificate {
		t.Helper()
		c, err := r.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := r.stranger().Coordinator(c.Certificate, r.clock()); err != nil || id != "c1" {
			t.Errorf("leaf of %q, %v", id, err)
		}
		if v, err := cert.JoinCoordinator(c.Certificate, r.Fingerprint(), r.clock()); err != nil || v.Mesh() != r.config.Mesh {
			t.Errorf("for a machine that joins: %v", err)
		}
		return c
	}
	first := get()
	r.at(12*time.Hour - time.Second)
	if get() != first {
		t.Error("the leaf was replaced early")
	}
	r.at(12 * time.Hour)
	if get() == first {
		t.Error("the leaf was not replaced at half-life")
	}
	r.at(15 * day)
	before := get()
	r.maintain(true)
	if get() == before {
		t.Error("the leaf was not replaced with the intermediate")
	}
}

// TestClockThatWasAhead checks that what was signed while the clock was wrong is replaced once it is right.
func TestClockThatWasAhead(t *testing.T) {
	r := newRig(t)
	r.at(40 * day) // past half of the intermediate's lifetime
	r.maintain(true)
	if _, err := r.GetCertificate(nil); err != nil {
		t.Fatal(err)
	}
	r.at(time.Hour)
	r.maintain(true)
	leaf, err := r.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := leaf.Certificate
	if _, err := r.stranger().Coordinator(chain, r.clock()); err != nil {
		t.Errorf("the coordinator's certificate: %v", err)
	}
	if n, err := r.IssueNode(r.request(), r.clock()); err != nil || n.NotBefore.After(r.clock()) {
		t.Errorf("a node's certificate: %v", err)
	}
}

// TestClockThatIsBehind checks that a coordinator started before its clock is right waits for that, with a warning.
func TestClockThatIsBehind(t *testing.T) {
	r := newRig(t)
	r.at(-1000 * day)
	r.open()
	r.maintain(false)
	if w := r.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "clock") {
		t.Errorf("warnings %q", w)
	}
	if _, err := r.IssueNode(r.request(), r.clock()); err == nil {
		t.Error("issued a certificate before the root's time")
	}
	r.at(time.Hour)
	r.maintain(false)
	if _, err := r.IssueNode(r.request(), r.clock()); err != nil {
		t.Errorf("after the clock is right: %v", err)
	}
}

func TestHandshake(t *testing.T) {
	r := newRig(t)
	config := cert.ServerConfig(tls.Certificate{}, nil, func([][]byte) error { return nil })
	config.Certificates, config.GetCertificate = nil, r.GetCertificate
	a, b := net.Pipe()
	server, client := tls.Server(a, config), tls.Client(b, cert.ClientConfig(nil, cert.ForJoining(r.Fingerprint(), r.clock)))
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.Close()
	b.Close()
}

func TestConfig(t *testing.T) {
	good := newRig(t).config
	for what, change := range map[string]func(*Config){
		"no clock":           func(c *Config) { c.Clock = nil },
		"no randomness":      func(c *Config) { c.Rand = nil },
		"no mesh":            func(c *Config) { c.Mesh = "" },
		"short nodes":        func(c *Config) { c.NodeLifetime = MinNodeLifetime - 1 },
		"long nodes":         func(c *Config) { c.NodeLifetime = MaxNodeLifetime + 1 },
		"short intermediate": func(c *Config) { c.IntermediateLifetime = time.Hour },
		"long intermediate":  func(c *Config) { c.IntermediateLifetime = 400 * day },
	} {
		c := good
		change(&c)
		if _, err := Open(c); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

// TestManyAtOnce issues certificates while intermediates are replaced. Days pass in no time here, but never between reading the
// clock and issuing a certificate for that time.
func TestManyAtOnce(t *testing.T) {
	r := newRig(t)
	var today sync.RWMutex // held while the day must not change
	issue := func() error {
		today.RLock()
		defer today.RUnlock()
		n, err := r.IssueNode(r.request(), r.clock())
		if err != nil {
			return err
		}
		_, err = r.Verifier().Node(n.Raw, n.NotBefore)
		return err
	}
	var wait sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wait.Go(func() {
			for range 20 {
				if err := issue(); err != nil {
					t.Error(err)
				}
				if _, err := r.GetCertificate(nil); err != nil {
					t.Error(err)
				}
				r.Status()
			}
		})
	}
	for d := range 10 {
		today.Lock()
		r.at(time.Duration(d) * 10 * day)
		today.Unlock()
		if _, err := r.Maintain(); err != nil {
			t.Error(err)
		}
	}
	wait.Wait()
}

func BenchmarkIssueNode(b *testing.B) {
	r := newRig(b)
	q := r.request()
	for b.Loop() {
		if _, err := r.IssueNode(q, start); err != nil {
			b.Fatal(err)
		}
	}
}
