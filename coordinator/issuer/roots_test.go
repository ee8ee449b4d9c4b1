package issuer

import (
	"bytes"
	"crypto/x509"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// trusting returns a verifier that trusts some roots and has the current Authorities.
func (r *rig) trusting(roots ...*x509.Certificate) *cert.Verifier {
	r.t.Helper()
	v, err := cert.NewVerifier(r.config.Mesh, roots)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := v.AddIntermediates(r.Authorities()); err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r *rig) rotate() {
	r.t.Helper()
	if err := r.Rotate(); err != nil {
		r.t.Fatal(err)
	}
}

// verifies checks that verifiers with each of the roots accept all certificates, and the coordinator.
func (r *rig) verifies(when string, roots map[string]*x509.Certificate, nodes map[string]cert.Node) {
	r.t.Helper()
	leaf, err := r.GetCertificate(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for who, root := range roots {
		v := r.trusting(root)
		for what, n := range nodes {
			if _, err := v.Node(n.Raw, n.NotBefore.Add(time.Minute)); err != nil {
				r.t.Errorf("%s: whoever trusts the %s root does not take the certificate from %s: %v", when, who, what, err)
			}
			if _, err := r.Verifier().Node(n.Raw, n.NotBefore.Add(time.Minute)); err != nil {
				r.t.Errorf("%s: the coordinator does not take the certificate from %s: %v", when, what, err)
			}
		}
		fresh, err := cert.NewVerifier(r.config.Mesh, []*x509.Certificate{root})
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := fresh.Coordinator(leaf.Certificate, r.clock()); err != nil {
			r.t.Errorf("%s: whoever trusts the %s root does not take the coordinator: %v", when, who, err)
		}
	}
}

func TestRotate(t *testing.T) {
	r := newRig(t)
	r.at(16 * day)
	r.maintain(true) // two intermediates exist
	r.at(17 * day)
	before, a := r.issue(), r.trusted().newest
	r.rotate()
	after, b := r.issue(), r.trusted().newest
	if a.Equal(b) || r.Fingerprint() != cert.Fingerprint(b) || len(r.Roots()) != 2 {
		t.Fatal("no other root")
	}
	if r.Newest(before.Raw) || !r.Newest(after.Raw) {
		t.Errorf("under the newest root: the certificate from before %v, from after %v", r.Newest(before.Raw), r.Newest(after.Raw))
	}
	nodes := map[string]cert.Node{"before": before, "after": after}
	check := func(when string) {
		t.Helper()
		r.verifies(when, map[string]*x509.Certificate{"old": a, "new": b}, nodes)
	}
	check("rotated")
	r.open()
	check("after a restart")
	leaf, err := r.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, root := range map[string]*x509.Certificate{"old": a, "new": b} {
		if _, err := cert.JoinCoordinator(leaf.Certificate, cert.Fingerprint(root), r.clock()); err != nil {
			t.Errorf("a join code that names the %s root: %v", name, err)
		}
	}
	if err := r.Rotate(); !errors.Is(err, ErrTwoRoots) {
		t.Errorf("rotated while two roots are trusted: %v", err)
	}
	if b, err := os.ReadFile(r.path(rootKeyFile)); err != nil || bytes.Contains(b, pemOf(a)) {
		t.Errorf("the old root's key is still there: %v", err)
	}

	if err := r.Retire(); err != nil {
		t.Fatal(err)
	}
	check("retired") // a node that trusts the old root may still renew
	if leaf, err = r.GetCertificate(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := cert.JoinCoordinator(leaf.Certificate, cert.Fingerprint(a), r.clock()); !errors.Is(err, cert.ErrPin) {
		t.Errorf("a join code that names the retired root: %v", err)
	}
	if err := r.Retire(); !errors.Is(err, ErrOneRoot) {
		t.Errorf("retired twice: %v", err)
	}
	r.open()
	check("retired, after a restart")
	r.at(17*day + 15*day) // an intermediate of the new root replaces another
	r.maintain(true)
	nodes["later"] = r.issue()
	check("maintained")

	r.at(40 * day)
	r.rotate() // and once more
	nodes = map[string]cert.Node{"later": nodes["later"], "the third root": r.issue()}
	r.verifies("rotated again", map[string]*x509.Certificate{"second": b, "third": r.trusted().newest}, nodes)
	for d := 41 * day; d <= 100*day; d += day {
		r.at(d)
		if _, err := r.Maintain(); err != nil {
			t.Fatal(err)
		}
		if n := len(r.Authorities()); n > 5 {
			t.Fatalf("%d authorities on day %d", n, d/day)
		}
	}
}

func pemOf(c *x509.Certificate) []byte { return certificatesPEM([]*x509.Certificate{c}) }

// contents returns the key files.
func (r *rig) contents() map[string][]byte {
	r.t.Helper()
	all := map[string][]byte{}
	entries, err := os.ReadDir(r.config.Dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		all[e.Name()] = must(os.ReadFile(r.path(e.Name())))
	}
	return all
}

// in returns a rig on a copy of the files.
func (r *rig) in(files map[string][]byte) *rig {
	r.t.Helper()
	c := &rig{t: r.t, now: r.clock(), config: r.config}
	c.config.Dir, c.config.Clock = filepath.Join(r.t.TempDir(), "pki"), c.clock
	if err := os.Mkdir(c.config.Dir, 0o700); err != nil {
		r.t.Fatal(err)
	}
	for name, b := range files {
		if b == nil {
			continue
		}
		if err := os.WriteFile(c.path(name), b, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	return c
}

// TestRotateIsStoppedAnywhere opens the keys as they are after each write of a rotation: before root.crt is written nothing has
// taken effect, afterwards everything has.
func TestRotateIsStoppedAnywhere(t *testing.T) {
	r := newRig(t)
	r.at(day)
	node, a := r.issue(), r.trusted().newest
	files := r.contents()
	r.rotate()
	done := r.contents()
	type write struct {
		name string
		b    []byte
	}
	crossed := append(slices.Clone(files[intermediatesFile]), done[intermediatesFile]...)
	for n, w := range []write{
		{rootNextFile, done[rootKeyFile]},
		{intermediatesFile, crossed},
		{rootFile, done[rootFile]},
		{rootNextFile, nil}, // renamed
		{intermediatesFile, done[intermediatesFile]},
		{intermediateFile, done[intermediateFile]},
	} {
		if files[w.name] = w.b; w.b == nil {
			files[rootKeyFile] = done[rootKeyFile]
		}
		torn := maps.Clone(files)
		torn[w.name+".tmp"] = []byte("-----BEGIN")
		for _, state := range []map[string][]byte{files, torn} {
			c := r.in(state)
			c.open()
			rotated := n >= 2
			if got := len(c.Roots()) == 2; got != rotated {
				t.Fatalf("after write %d, %s: two roots are trusted: %v", n, w.name, got)
			}
			roots := map[string]*x509.Certificate{"old": a}
			if rotated {
				roots["new"] = r.trusted().newest
			}
			c.verifies(w.name, roots, map[string]cert.Node{"before": node, "after": c.issue()})
			if left := c.contents(); left[rootNextFile] != nil {
				t.Errorf("after write %d, %s: %s was left", n, w.name, rootNextFile)
			}
			if !rotated {
				c.rotate() // it can be retried
			}
			if !c.Newest(c.issue().Raw) {
				t.Errorf("after write %d, %s: certificates are not issued under the new root", n, w.name)
			}
		}
	}
}

func TestRotateWithoutTheKey(t *testing.T) {
	r := newRig(t)
	putBack := r.takeAway()
	if err := r.Rotate(); !errors.Is(err, ErrRootAway) {
		t.Errorf("rotated without the key: %v", err)
	}
	putBack()
	r.rotate()
}

func TestRootsThatDoNotBelongTogether(t *testing.T) {
	r, twin := newRig(t), newRig(t)
	twin.config.Mesh = r.config.Mesh
	twin.config.Dir, twin.config.Fresh = filepath.Join(t.TempDir(), "pki"), true
	twin.open()
	other := twin.trusted().newest
	r.rotate()
	files := r.contents()
	roots := r.trusted()
	for name, list := range map[string][]*x509.Certificate{
		"another root before":    {roots.newest, roots.cross, other},
		"nobody vouches":         {roots.newest, roots.before},
		"the wrong way round":    {roots.before, roots.cross, roots.newest},
		"the cross-signed first": {roots.cross, roots.newest, roots.before},
		"three roots":            {roots.newest, roots.cross, roots.before, other},
		"two words":              {roots.newest, roots.cross, roots.cross},
		"an intermediate":        {roots.newest, r.authority().Certificate(), roots.before},
	} {
		files[rootFile] = certificatesPEM(list)
		if _, err := Open(r.in(files).config); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

func init() { sealWork = 10 }

const passphrase = "correct horse battery"

func TestTheRootsKeyGoesOffline(t *testing.T) {
	r := newRig(t)
	root, digest, err := ReadRoot(r.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forget([32]byte{}); err == nil || !strings.Contains(err.Error(), "not the key that was exported") {
		t.Errorf("removed on the word of somebody who had not read it: %v", err)
	}
	sealed, err := Seal(root, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Seal(root, passphrase)
	if err != nil || bytes.Equal(sealed, again) {
		t.Error("sealed twice to the same")
	}
	if plain, _ := root.MarshalPEM(); bytes.Contains(sealed, plain[40:80]) {
		t.Error("the key is in the sealed file")
	}
	opened, err := Unseal(sealed, passphrase)
	if err != nil || !opened.Certificate().Equal(root.Certificate()) {
		t.Fatalf("opened %v", err)
	}
	if _, err := Unseal(sealed, passphrase+"!"); !errors.Is(err, ErrPassphrase) {
		t.Errorf("another passphrase: %v", err)
	}
	if _, err := Unseal(sealed[:len(sealed)-40], passphrase); err == nil {
		t.Error("a file that was cut was opened")
	}
	if _, err := Seal(root, "short"); err == nil {
		t.Error("a short passphrase was taken")
	}
	if err := r.Forget(digest); err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(digest); !errors.Is(err, ErrRootAway) {
		t.Errorf("removed twice: %v", err)
	}
	if _, _, err := ReadRoot(r.config.Dir); !errors.Is(err, ErrRootAway) {
		t.Errorf("read after it was removed: %v", err)
	}
	r.open()

	r.at(16 * day)
	r.maintain(false)
	if w := r.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "root request") {
		t.Errorf("warnings: %q", w)
	}
	before := r.issue()
	r.answer(opened, false)
	if w := r.Status(); len(w.Warnings) != 0 || w.RootHere || w.Requested {
		t.Errorf("after the next intermediate was installed: %+v", w)
	}
	r.verifies("installed", map[string]*x509.Certificate{"only": root.Certificate()}, map[string]cert.Node{"before": before, "after": r.issue()})
}

// answer has a request signed with the root's key, and installs the answer; if rotate is set, it returns the new root.
func (r *rig) answer(root *cert.Authority, rotate bool) *cert.Authority {
	r.t.Helper()
	b, err := r.Request()
	if err != nil {
		r.t.Fatal(err)
	}
	asked, err := ParseRequest(b)
	if err != nil {
		r.t.Fatal(err)
	}
	offline := Config{Clock: r.clock, Rand: r.config.Rand, IntermediateLifetime: IntermediateLifetime}
	var answer []byte
	next := root
	if rotate {
		var s Succession
		s, answer, err = asked.Succeed(root, offline)
		next = s.Root
	} else {
		answer, err = asked.Sign(root, offline)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if rotated, err := r.Install(answer); err != nil || rotated != rotate {
		r.t.Fatalf("installed: %v, %v", rotated, err)
	}
	return next
}

// TestAnOfflineRootIsReplaced checks that the new root's key is never on the coordinator's machine.
func TestAnOfflineRootIsReplaced(t *testing.T) {
	r := newRig(t)
	a, digest, err := ReadRoot(r.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(digest); err != nil {
		t.Fatal(err)
	}
	r.at(day)
	before := r.issue()
	b := r.answer(a, true)
	roots := map[string]*x509.Certificate{"old": a.Certificate(), "new": b.Certificate()}
	nodes := map[string]cert.Node{"before": before, "after": r.issue()}
	r.verifies("installed", roots, nodes)
	r.open()
	r.verifies("after a restart", roots, nodes)
	if r.Status().RootHere {
		t.Error("the root's key is here")
	}
	if r.Fingerprint() != cert.Fingerprint(b.Certificate()) {
		t.Error("join codes do not name the new root")
	}
	r.at(2 * day)
	r.answer(b, false)
	r.verifies("renewed", roots, nodes)
}

// TestInstallIsStoppedAnywhere checks that an interrupted installation can be repeated, and that until then the previous keys
// still work.
func TestInstallIsStoppedAnywhere(t *testing.T) {
	r := newRig(t)
	a, digest, err := ReadRoot(r.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(digest); err != nil {
		t.Fatal(err)
	}
	node := r.issue()
	request, err := r.Request()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Request(); err != nil || len(again) != len(request) {
		t.Errorf("asked twice: %v", err)
	}
	asked, err := ParseRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	s, answer, err := asked.Succeed(a, Config{Clock: r.clock, Rand: r.config.Rand, IntermediateLifetime: IntermediateLifetime})
	if err != nil {
		t.Fatal(err)
	}
	files := r.contents()
	if _, err := r.Install(answer); err != nil {
		t.Fatal(err)
	}
	done := r.contents()
	roots := map[string]*x509.Certificate{"old": a.Certificate()}
	for n, name := range []string{"", intermediatesFile, rootFile, intermediateFile, requestedFile} {
		if name != "" {
			files[name] = done[name]
		}
		c := r.in(files)
		c.open()
		if n >= 2 {
			roots["new"] = s.Root.Certificate()
		}
		if n < 2 {
			c.verifies(name, roots, map[string]cert.Node{"before": node, "after": c.issue()})
		}
		if _, err := c.Install(answer); (err == nil) != (n < 3) {
			t.Errorf("installed again after the write of %q: %v", name, err)
		}
		c.verifies(name, map[string]*x509.Certificate{"old": a.Certificate(), "new": s.Root.Certificate()}, map[string]cert.Node{"before": node, "after": c.issue()})
		if c.Status().Requested {
			t.Errorf("after the write of %q: the request is still there", name)
		}
	}
}

func TestAnswersThatAreRefused(t *testing.T) {
	r := newRig(t)
	a, _, err := ReadRoot(r.config.Dir)
	if err != nil {
		t.Fatal(err)
	}
	offline := Config{Clock: r.clock, Rand: r.config.Rand, IntermediateLifetime: IntermediateLifetime}
	if _, err := r.Install(nil); !errors.Is(err, ErrAnswer) {
		t.Errorf("nobody asked: %v", err)
	}
	request, err := r.Request()
	if err != nil {
		t.Fatal(err)
	}
	asked, err := ParseRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	_, good, err := asked.Succeed(a, offline)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := parseCertificates(good)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := cert.NewRoot(r.config.Rand, r.config.Mesh, start.Add(-day), RootLifetime)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Sign(stranger, offline); err == nil {
		t.Error("a key of another root signed")
	}
	byStranger, err := Asked{Mesh: asked.Mesh, csr: asked.csr}.sign(stranger, offline)
	if err != nil {
		t.Fatal(err)
	}
	other := newRig(t)
	theirs, err := other.Request()
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]*x509.Certificate{
		"nothing":                           nil,
		"by another root":                   {byStranger},
		"under a root without a word":       {parts[0], parts[1]},
		"a word for another root":           {byStranger, stranger.Certificate(), parts[2], parts[3]},
		"without what is in use":            parts[:3],
		"for another key":                   {r.authority().Certificate()},
		"the new root first":                {parts[1], parts[0], parts[2], parts[3]},
		"the word alone":                    {parts[0], parts[2], parts[2], parts[3]},
		"signed by the old, not by the new": {parts[0], parts[1], parts[2], r.authority().Certificate()},
	} {
		if _, err := r.Install(certificatesPEM(list)); !errors.Is(err, ErrAnswer) {
			t.Errorf("%s: %v, want ErrAnswer", name, err)
		}
	}
	for _, b := range [][]byte{theirs, []byte("x"), append(slices.Clone(good), 'x'), make([]byte, maxFile+1)} {
		if _, err := r.Install(b); !errors.Is(err, ErrAnswer) {
			t.Errorf("%.20q: %v, want ErrAnswer", b, err)
		}
	}
	r.at(40 * day)
	if _, err := r.Install(good); !errors.Is(err, ErrAnswer) || !strings.Contains(err.Error(), "clocks") {
		t.Errorf("an answer whose time is over: %v", err)
	}
	r.at(0)
	if _, err := r.Install(good); err != nil {
		t.Error(err)
	}
}

// FuzzParseRequest parses what is brought to the machine with the root's key.
func FuzzParseRequest(f *testing.F) {
	r := newRig(f)
	b, err := r.Request()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		asked, err := ParseRequest(b)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		if asked.Root == nil || asked.Mesh.Validate() != nil {
			t.Errorf("incomplete: %+v", asked)
		}
	})
}

// FuzzInstall parses what is brought back from the machine with the root's key.
func FuzzInstall(f *testing.F) {
	r := newRig(f)
	a, _, err := ReadRoot(r.config.Dir)
	if err != nil {
		f.Fatal(err)
	}
	request, err := r.Request()
	if err != nil {
		f.Fatal(err)
	}
	asked, err := ParseRequest(request)
	if err != nil {
		f.Fatal(err)
	}
	offline := Config{Clock: r.clock, Rand: r.config.Rand, IntermediateLifetime: IntermediateLifetime}
	s, answer, err := asked.Succeed(a, offline)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(answer)
	f.Add(answer[:len(answer)/2])
	signer, err := r.files.readRequested()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		next, err := r.parseAnswer(b, signer)
		if err == nil && (next.intermediate == nil || next.root != nil && !next.root.Equal(s.Root.Certificate())) {
			t.Errorf("took %+v", next)
		}
	})
}
