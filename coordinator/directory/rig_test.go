package directory

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		childMain(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// signer signs the audit logs of tests.
var signer = audit.NewSigner("mesh", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))

// start is the time at which tests start.
var start = time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)

// clock is a clock that tests control.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// issue stands in for an issuer: it issues certificates for an hour whose bytes name their node.
func issue(n cert.Node, now time.Time) (cert.Node, error) {
	n.NotBefore, n.NotAfter = now.Add(-time.Minute), now.Add(time.Hour)
	n.Raw = fmt.Appendf(nil, "%s %s %d", n.ID, n.DNSName, n.Sequence)
	n.Serial = fmt.Sprint(n.Sequence)
	if len(n.Keys) == 2 {
		n.Keys[1].NotBefore = now.Add(15 * time.Minute)
	}
	return n, nil
}

// rig is a directory on a store, with a clock.
type rig struct {
	*Directory
	t     testing.TB
	store store.Store
	clock *clock
	// demand is what the policy requires of every machine.
	demand compile.Demand
}

// smallPlan is a plan whose range has room for 109 nodes.
var smallPlan = Plan{V4: netip.MustParsePrefix("10.9.8.0/25")}

func newRig(t testing.TB) *rig { return newRigOn(t, store.NewMemory(), Plan{}) }

func newRigOn(t testing.TB, s store.Store, p Plan) *rig {
	t.Helper()
	r := &rig{t: t, store: s, clock: &clock{t: start}}
	if _, err := Ensure(t.Context(), s, p, rand.Reader, start); err != nil {
		t.Fatal(err)
	}
	r.open()
	return r
}

func (r *rig) config() Config {
	return Config{
		Clock: r.clock.now, Rand: rand.Reader, Issue: issue, Signer: signer,
		Demands: func(*Snapshot, proto.Identity) (compile.Demand, error) { return r.demand, nil },
	}
}

func (r *rig) open() {
	r.t.Helper()
	d, err := Open(context.Background(), r.store, r.config())
	if err != nil {
		r.t.Fatal(err)
	}
	r.Directory = d
	r.t.Cleanup(func() { d.Close() })
}

func (r *rig) reopen() {
	r.t.Helper()
	r.Close()
	r.open()
}

// over lets a node's certificate expire and lapse.
func (r *rig) over(n *Node) {
	r.t.Helper()
	r.clock.pass(n.Certificate.NotAfter.Sub(r.clock.now()) + Patience + time.Second)
	if _, err := r.Expire(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

func newTokenKey(t testing.TB) key.TokenPublic {
	t.Helper()
	s, err := key.NewToken(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s.Public()
}

func newDeviceKey(t testing.TB) key.DevicePublic {
	t.Helper()
	k, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.Device()
}

func newNodeKey(t testing.TB) key.NodePublic {
	t.Helper()
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

// token creates a default token, as modified by change.
func (r *rig) token(change func(*TokenSpec)) *Token {
	r.t.Helper()
	spec := TokenSpec{Public: newTokenKey(r.t), Tags: []string{"tag:db"}, TTL: time.Hour, By: "uid 0"}
	if change != nil {
		change(&spec)
	}
	tok, err := r.CreateToken(r.t.Context(), spec)
	if err != nil {
		r.t.Fatal(err)
	}
	return tok
}

// reusable creates a reusable token.
func (r *rig) reusable() *Token {
	return r.token(func(s *TokenSpec) { s.Reusable = true })
}

// machine returns the enrolment request of a new machine.
func machine(t testing.TB, tok *Token, hostname string) EnrollRequest {
	return EnrollRequest{Token: tok.Public, Device: newDeviceKey(t), Key: newNodeKey(t), Hostname: hostname, Level: cert.LevelToken}
}

func (r *rig) enroll(q EnrollRequest) *Node {
	r.t.Helper()
	n, err := r.Enroll(r.t.Context(), q)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// node enrols a new machine with its own token.
func (r *rig) node(hostname string) *Node {
	r.t.Helper()
	return r.enroll(machine(r.t, r.token(nil), hostname))
}

// renewal returns the request of a node that has received its last ticket.
func (r *rig) renewal(n *Node, next key.NodePublic) Renewal {
	return Renewal{ID: n.ID, Key: next, Ticket: n.NextTicket()}
}

// renew renews a node with a new key.
func (r *rig) renew(n *Node) *Node {
	r.t.Helper()
	next, err := r.Renew(context.Background(), r.renewal(n, newNodeKey(r.t)))
	if err != nil {
		r.t.Fatal(err)
	}
	return next
}

// traits gives a node facts and routes, and a user roles.
func (r *rig) traits(n *Node) {
	r.t.Helper()
	routes := []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("::/0")}
	err1 := r.Report(r.t.Context(), n.ID, Reported{OS: "linux", OSVersion: "6.12.9", Version: "1.0.0", Hostname: "router", Routes: routes})
	_, err2 := r.SetFact(r.t.Context(), n.ID, "custom:tier", "prod", time.Hour, "uid 0")
	_, err3 := r.ApproveRoutes(r.t.Context(), n.ID, routes[:1], "uid 0")
	err4 := r.SetRoles(r.t.Context(), "ann@example.com", []string{"admin"}, "uid 0")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		r.t.Fatal(err)
	}
}

// contents returns everything in the store, for comparison.
func contents(t testing.TB, s store.Store) map[string]string {
	t.Helper()
	list, _, err := s.List(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]string, len(list))
	for _, e := range list {
		all[e.Key] = string(e.Value)
	}
	return all
}

// opaque compares values that have no exported fields.
var opaque = cmp.Options{
	cmp.Comparer(func(a, b key.DevicePublic) bool { return a == b }),
	cmp.Comparer(func(a, b key.NodePublic) bool { return a == b }),
	cmp.Comparer(func(a, b key.TokenPublic) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.IgnoreUnexported(Traits{}),
	cmpopts.EquateEmpty(),
}
