package cert_test

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// succession is a world whose root is replaced: it has both old and new authorities.
type succession struct {
	*world
	next         *cert.Authority
	under        *cert.Authority   // issued by next
	cross, older *x509.Certificate // next, signed by the old root; the old intermediate, signed by next
}

func (w *world) succeed(t testing.TB) *succession {
	t.Helper()
	s := &succession{world: w}
	s.next = must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	s.under = must(s.next.NewIntermediate(rand.Reader, start, 30*day))(t)
	s.cross = must(w.root.CrossSign(rand.Reader, s.next.Certificate()))(t)
	s.older = must(s.next.CrossSign(rand.Reader, w.intermediate.Certificate()))(t)
	return s
}

func (s *succession) authorities() [][]byte {
	return [][]byte{s.under.Certificate().Raw, s.older.Raw, s.cross.Raw}
}

func verifierOf(t testing.TB, w *world, roots ...*x509.Certificate) *cert.Verifier {
	t.Helper()
	return must(cert.NewVerifier(w.mesh, roots))(t)
}

// TestOneRootLeadsToTheNext checks that while the root is being replaced, whoever trusts either root can verify what was issued
// before and after, with the authorities that the mesh distributes.
func TestOneRootLeadsToTheNext(t *testing.T) {
	w := newWorld(t)
	s := w.succeed(t)
	before := w.issue(t)
	after := must(s.under.IssueNode(rand.Reader, w.node))(t).Raw
	coordinator := must(s.under.IssueCoordinator(rand.Reader, w.mesh, "c1", w.coordinator.Public(), start, day))(t)
	shown := [][]byte{coordinator, s.under.Certificate().Raw, s.next.Certificate().Raw, s.cross.Raw, w.root.Certificate().Raw}
	for name, roots := range map[string][]*x509.Certificate{
		"the old root":  {w.root.Certificate()},
		"the new root":  {s.next.Certificate()},
		"both of them":  {s.next.Certificate(), w.root.Certificate()},
		"in that order": {w.root.Certificate(), s.next.Certificate()},
	} {
		list := s.authorities()
		for range 2 {
			v := verifierOf(t, w, roots...)
			if err := v.AddIntermediates(list); err != nil {
				t.Fatalf("trusting %s: %v", name, err)
			}
			for what, der := range map[string][]byte{"before": before, "after": after} {
				if _, err := v.Node(der, start); err != nil {
					t.Errorf("trusting %s, issued %s: %v", name, what, err)
				}
			}
			if !v.Trusts(s.next.Certificate()) {
				t.Errorf("trusting %s: the new root is not trusted", name)
			}
			slices.Reverse(list)
		}
		for range 2 {
			if _, err := verifierOf(t, w, roots...).Coordinator(shown, start); err != nil {
				t.Errorf("trusting %s, the coordinator: %v", name, err)
			}
			slices.Reverse(shown[1:])
		}
	}
	for name, root := range map[string]*x509.Certificate{"old": w.root.Certificate(), "new": s.next.Certificate()} {
		if _, err := cert.JoinCoordinator(shown, cert.Fingerprint(root), start); err != nil {
			t.Errorf("a join code that names the %s root: %v", name, err)
		}
	}
	if _, err := cert.JoinCoordinator(shown[:4], cert.Fingerprint(w.root.Certificate()), start); !errors.Is(err, cert.ErrPin) {
		t.Errorf("the old root is not shown any more: %v, want ErrPin", err)
	}
	for _, c := range []*x509.Certificate{s.cross, s.older} {
		if !cert.CrossSigned(c) {
			t.Errorf("%s is not known as cross-signed", c.Subject)
		}
	}
	for _, a := range []*cert.Authority{w.root, w.intermediate, s.next, s.under} {
		if cert.CrossSigned(a.Certificate()) {
			t.Errorf("%s is taken for cross-signed", a.Certificate().Subject)
		}
	}
	if v := verifierOf(t, w, s.next.Certificate()); v.Trusts(w.root.Certificate()) {
		t.Error("the new root vouches for the old one")
	}
}

// TestNobodyElseNamesARoot checks that only the holder of the old root's key can introduce a new root.
func TestNobodyElseNamesARoot(t *testing.T) {
	w := newWorld(t)
	s := w.succeed(t)
	foreign := newWorld(t)
	stranger := must(cert.NewRoot(rand.Reader, w.mesh, start, day))(t)
	byStranger := must(stranger.CrossSign(rand.Reader, s.next.Certificate()))(t)
	third := must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	thirdByNext := must(s.next.CrossSign(rand.Reader, third.Certificate()))(t)
	underThird := must(third.NewIntermediate(rand.Reader, start, day))(t)
	for name, list := range map[string][][]byte{
		"an intermediate of it alone":         {s.under.Certificate().Raw},
		"the root itself":                     {s.under.Certificate().Raw, s.next.Certificate().Raw},
		"a stranger's word":                   {s.under.Certificate().Raw, byStranger.Raw},
		"a stranger's intermediate":           {must(stranger.NewIntermediate(rand.Reader, start, day-1))(t).Certificate().Raw, s.cross.Raw},
		"one that is itself only vouched for": {underThird.Certificate().Raw, s.cross.Raw, thirdByNext.Raw},
		"an altered word":                     {s.under.Certificate().Raw, flip(s.cross.Raw, len(s.cross.Raw)-1)},
	} {
		v := w.verifier(t)
		if err := v.AddIntermediates(list); err == nil {
			t.Errorf("%s was taken", name)
		}
		if v.Trusts(stranger.Certificate()) || v.Trusts(third.Certificate()) {
			t.Errorf("%s: a root is trusted that nobody vouches for", name)
		}
	}
	if v := w.verifier(t); v.AddIntermediates(s.authorities()) != nil || v.Trusts(stranger.Certificate()) {
		t.Error("one root is vouched for, and another trusted")
	}
	if _, err := w.intermediate.CrossSign(rand.Reader, s.next.Certificate()); err == nil {
		t.Error("an intermediate vouched for a root")
	}
	if _, err := w.root.CrossSign(rand.Reader, foreign.root.Certificate()); !errors.Is(err, cert.ErrMesh) {
		t.Errorf("a root of another mesh: %v", err)
	}
	if _, err := w.root.CrossSign(rand.Reader, w.root.Certificate()); err == nil {
		t.Error("a root vouched for itself")
	}
	if _, err := w.root.CrossSign(rand.Reader, must(x509.ParseCertificate(w.issue(t)))(t)); !errors.Is(err, cert.ErrRole) {
		t.Errorf("a node: %v", err)
	}
}

// TestAWordLastsAsLongAsWhoGaveIt checks that trust in the new root by way of the old one ends when the old one expires.
func TestAWordLastsAsLongAsWhoGaveIt(t *testing.T) {
	w := newWorld(t)
	w.root = must(cert.NewRoot(rand.Reader, w.mesh, start, 10*day))(t)
	w.intermediate = must(w.root.NewIntermediate(rand.Reader, start, 9*day))(t)
	s := w.succeed(t)
	w.node.NotBefore, w.node.NotAfter = start.Add(20*day), start.Add(20*day+time.Hour)
	w.node.Keys[0].NotBefore, w.node.Keys[0].NotAfter = w.node.NotBefore, w.node.NotAfter
	late := must(s.under.IssueNode(rand.Reader, w.node))(t).Raw
	for name, test := range map[string]struct {
		root *x509.Certificate
		want error
	}{"old": {w.root.Certificate(), cert.ErrExpired}, "new": {s.next.Certificate(), nil}} {
		v := verifierOf(t, w, test.root)
		if err := v.AddIntermediates(s.authorities()); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Node(late, start.Add(20*day)); !errors.Is(err, test.want) {
			t.Errorf("trusting the %s root: %v, want %v", name, err, test.want)
		}
	}
}

// TestTheLongerWordCounts checks that if two trusted roots vouch for a new one, what is issued under it is trusted as long as the
// one that lasts longer, whichever of them comes first and whether or not its intermediate is known already.
func TestTheLongerWordCounts(t *testing.T) {
	w := newWorld(t)
	a := must(cert.NewRoot(rand.Reader, w.mesh, start, 10*day))(t)
	b := must(cert.NewRoot(rand.Reader, w.mesh, start, 20*day))(t)
	c := must(cert.NewRoot(rand.Reader, w.mesh, start, 3650*day))(t)
	under := must(c.NewIntermediate(rand.Reader, start, 30*day))(t)
	short, long := must(a.CrossSign(rand.Reader, c.Certificate()))(t).Raw, must(b.CrossSign(rand.Reader, c.Certificate()))(t).Raw
	issue := func(at time.Time) []byte {
		n := w.node
		n.NotBefore, n.NotAfter = at, at.Add(time.Hour)
		n.Keys = slices.Clone(n.Keys)
		n.Keys[0].NotBefore, n.Keys[0].NotAfter = n.NotBefore, n.NotAfter
		return must(under.IssueNode(rand.Reader, n))(t).Raw
	}
	between, after := issue(start.Add(15*day)), issue(start.Add(25*day))
	i := under.Certificate().Raw
	for name, steps := range map[string][][][]byte{
		"later":            {{i, short}, {i, long}},
		"earlier":          {{i, long}, {i, short}},
		"later, alone":     {{i, short}, {long}},
		"before all":       {{short}, {long}, {i}},
		"together, second": {{i, short, long}},
		"together, first":  {{i, long, short}},
	} {
		v := verifierOf(t, w, a.Certificate(), b.Certificate())
		for _, list := range steps {
			if err := v.AddIntermediates(list); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if _, err := v.Node(between, start.Add(15*day)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := v.Node(after, start.Add(25*day)); !errors.Is(err, cert.ErrExpired) {
			t.Errorf("%s: %v after both have ended, want ErrExpired", name, err)
		}
	}
	// Whoever trusts only the root that ends first gains nothing by the word of the other.
	v := verifierOf(t, w, a.Certificate())
	for _, list := range [][][]byte{{i, short}, {i, long}} {
		if err := v.AddIntermediates(list); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := v.Node(between, start.Add(15*day)); !errors.Is(err, cert.ErrExpired) {
		t.Errorf("by the word of a stranger: %v, want ErrExpired", err)
	}
}

// TestShortSerialNumbers checks that certificates are judged whose serial numbers are shorter than those that this program makes.
func TestShortSerialNumbers(t *testing.T) {
	for _, serial := range []int64{1, 1 << 40} {
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), RawIssuer: []byte("a"), RawSubject: []byte("b")}
		c.Subject.CommonName = "root 0123456789abcdef"
		if !cert.CrossSigned(c) {
			t.Errorf("serial number %d: not known as cross-signed", serial)
		}
	}
}
