package roots_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/issuer"
	"github.com/redoubt-mesh/redoubt/coordinator/roots"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a keeper with everything that it acts on, at a time that the test sets.
type rig struct {
	*roots.Keeper
	t     *testing.T
	pki   string
	keys  *issuer.Issuer
	nodes *directory.Directory
	now   atomic.Int64 // in seconds
}

func (r *rig) clock() time.Time     { return time.Unix(r.now.Load(), 0).UTC() }
func (r *rig) pass(d time.Duration) { r.now.Add(int64(d / time.Second)) }

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, pki: filepath.Join(t.TempDir(), "pki")}
	r.now.Store(time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC).Unix())
	st := store.NewMemory()
	ctx := t.Context()
	mesh := must(directory.Ensure(ctx, st, directory.Plan{}, rand.Reader, r.clock()))(t)
	r.keys = must(issuer.Open(issuer.Config{Dir: r.pki, Mesh: mesh.ID, Fresh: true, Clock: r.clock, Rand: rand.Reader}))(t)
	signer := must(r.keys.AuditSigner())(t)
	r.nodes = must(directory.Open(ctx, st, directory.Config{
		Clock: r.clock, Rand: rand.Reader, Signer: signer,
		Issue: func(n cert.Node, now time.Time) (cert.Node, error) { return r.keys.IssueNode(n, now) },
	}))(t)
	t.Cleanup(func() { r.nodes.Close() })
	r.Keeper = roots.New(r.keys, r.nodes, r.clock, slog.New(slog.DiscardHandler))
	r.keep()
	return r
}

func (r *rig) keep() {
	r.t.Helper()
	if err := r.Keep(context.Background()); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) token(ttl time.Duration) *directory.Token {
	r.t.Helper()
	secret := must(key.NewToken(rand.Reader))(r.t)
	return must(r.nodes.CreateToken(context.Background(), directory.TokenSpec{
		Public: secret.Public(), Tags: []string{"tag:a"}, Reusable: true, TTL: ttl, By: "uid 0",
	}))(r.t)
}

func (r *rig) node(token *directory.Token, name string) *directory.Node {
	r.t.Helper()
	return must(r.nodes.Enroll(context.Background(), directory.EnrollRequest{
		Token: token.Public, Device: must(key.NewDevice(rand.Reader))(r.t).Device(), Key: must(key.NewNode(rand.Reader))(r.t).Public(),
		Hostname: name, Level: cert.LevelToken, Attested: directory.Attested{Kind: "token"},
	}))(r.t)
}

func (r *rig) renew(n *directory.Node) *directory.Node {
	r.t.Helper()
	return must(r.nodes.Renew(context.Background(), directory.Renewal{
		ID: n.ID, Key: must(key.NewNode(rand.Reader))(r.t).Public(), Ticket: n.NextTicket(),
	}))(r.t)
}

// told returns the audit records about keys and who caused them, oldest first.
func (r *rig) told() string {
	r.t.Helper()
	list := must(r.nodes.Audit(context.Background(), 0, 100, directory.AuditQuery{}))(r.t)
	var words []string
	for _, x := range slices.Backward(list) {
		if strings.HasPrefix(x.Action, "root.") || strings.HasPrefix(x.Action, "intermediate.") {
			words = append(words, fmt.Sprintf("%s by %s", x.Action, x.By))
		}
	}
	return strings.Join(words, ", ")
}

// TestWhoHangsOnTheOldRoot checks that nodes depend on the old root until they renew or are revoked, and join codes until
// they end.
func TestWhoHangsOnTheOldRoot(t *testing.T) {
	r := newRig(t)
	code := r.token(2 * time.Hour)
	a, b, c := r.node(code, "a"), r.node(code, "b"), r.node(code, "c")
	r.pass(30 * time.Minute)
	if err := r.Rotate(t.Context(), "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.token(time.Hour) // names the new root
	r.node(code, "d")  // and its certificate is under the new root
	wants := func(want ...string) {
		t.Helper()
		list, _, left := r.List()
		var names []string
		for _, n := range left.Nodes {
			names = append(names, n.Name)
		}
		for range left.Tokens {
			names = append(names, "code")
		}
		if slices.Sort(names); !slices.Equal(names, want) || len(list) != 2 {
			t.Errorf("%v hang on the old one of %d roots, want %v", names, len(list), want)
		}
		_, err := r.Retire(t.Context(), false, "uid 0")
		var bound *roots.BoundError
		if !errors.As(err, &bound) || bound.Len() != len(want) {
			t.Errorf("retired: %v", err)
		}
		for _, n := range left.Nodes {
			if err != nil && !strings.Contains(err.Error(), "node "+n.Name) {
				t.Errorf("%v does not name %s", err, n.Name)
			}
		}
		r.keep()
	}
	wants("a", "b", "c", "code")
	r.renew(a)
	wants("b", "c", "code")
	if _, err := r.nodes.RevokeNode(t.Context(), b.ID, "", "uid 0"); err != nil {
		t.Fatal(err)
	}
	wants("c", "code")
	r.pass(2 * time.Hour)
	wants("c")
	r.renew(c)
	r.keep()
	if list, _, left := r.List(); len(list) != 1 || left.Len() != 0 {
		t.Errorf("%d roots are trusted, and %d hang on the old one", len(list), left.Len())
	}
	if got := r.told(); got != "root.rotate by uid 0, intermediate.replace by uid 0, root.retire by coordinator" {
		t.Errorf("the book tells: %s", got)
	}
}

// TestJoinCodesAndAClockThatGoesBack checks that the old root is kept for a join code that names it, even if the clock was set
// back between the two.
func TestJoinCodesAndAClockThatGoesBack(t *testing.T) {
	for name, steps := range map[string]func(r *rig, rotate func()){
		"before the rotation": func(r *rig, rotate func()) {
			r.token(2 * time.Hour)
			r.pass(-time.Hour)
			rotate()
		},
		"after the one before it": func(r *rig, rotate func()) {
			rotate()
			r.keep()
			r.pass(-time.Hour)
			r.token(2 * time.Hour)
			rotate()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			steps(r, func() {
				if err := r.Rotate(t.Context(), "uid 0"); err != nil {
					t.Fatal(err)
				}
			})
			r.keep()
			if list, _, left := r.List(); len(list) != 2 || len(left.Tokens) != 1 {
				t.Errorf("%d roots are trusted, and %d join codes hang on the old one", len(list), len(left.Tokens))
			}
			r.pass(4 * time.Hour)
			r.token(time.Hour) // names the new root
			r.keep()
			if list, _, _ := r.List(); len(list) != 1 {
				t.Errorf("%d roots are trusted when nothing hangs on the old one", len(list))
			}
		})
	}
}

// TestTheBookTellsWhatOthersDid checks that the audit log also records a rotation after which the program crashed, and keys
// that somebody moved.
func TestTheBookTellsWhatOthersDid(t *testing.T) {
	r := newRig(t)
	if err := r.keys.Rotate(); err != nil { // crash before it is recorded
		t.Fatal(err)
	}
	r.keep()
	file, away := filepath.Join(r.pki, "root.key"), filepath.Join(t.TempDir(), "away")
	for _, step := range [][2]string{{file, away}, {away, file}} {
		if err := os.Rename(step[0], step[1]); err != nil {
			t.Fatal(err)
		}
		r.keep()
	}
	r.keep()
	want := "root.rotate by coordinator, intermediate.replace by coordinator, root.retire by coordinator, root.away by coordinator, root.return by coordinator"
	if got := r.told(); got != want {
		t.Errorf("the book tells: %s", got)
	}
}

// TestAnOfflineRootsRequest checks that such a request is also recorded, with who made it.
func TestAnOfflineRootsRequest(t *testing.T) {
	r := newRig(t)
	root, digest, err := issuer.ReadRoot(r.pki)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(t.Context(), digest, "uid 1"); err != nil {
		t.Fatal(err)
	}
	r.pass(16 * 24 * time.Hour)
	r.keep()
	if _, s, _ := r.List(); len(s.Warnings) != 1 || s.RootHere {
		t.Errorf("%+v", s)
	}
	asked := must(issuer.ParseRequest(must(r.Request(t.Context(), "uid 2"))(t)))(t)
	answer := must(asked.Sign(root, issuer.Config{
		Clock: r.clock, Rand: rand.Reader, IntermediateLifetime: issuer.IntermediateLifetime,
	}))(t)
	if rotated, err := r.Install(t.Context(), answer, "uid 3"); err != nil || rotated {
		t.Fatalf("%v, %v", rotated, err)
	}
	if got := r.told(); got != "root.away by uid 1, root.request by uid 2, intermediate.replace by uid 3" {
		t.Errorf("the book tells: %s", got)
	}
}
