package directory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
)

var _ compile.Inventory = (*Snapshot)(nil)

func TestRevokedNodesAreNothingToPolicies(t *testing.T) {
	r := newRig(t)
	n := r.node("db")
	other := r.node("db")
	inventory := func() (all, tagged []proto.NodeID, ok, addr bool) {
		s := r.Snapshot()
		_, ok = s.Node(n.ID)
		_, addr = s.ByAddr(n.Addrs.V6)
		return slices.Collect(s.All()), slices.Collect(s.ByTag("tag:db")), ok, addr
	}
	both := []proto.NodeID{n.ID, other.ID}
	slices.Sort(both)
	if all, tagged, ok, addr := inventory(); !slices.Equal(all, both) || !slices.Equal(tagged, both) || !ok || !addr {
		t.Errorf("before: %v, %v, %v, %v", all, tagged, ok, addr)
	}
	revoked, err := r.RevokeNode(t.Context(), n.ID, "stolen", "uid 0")
	if err != nil || revoked.Revoked == nil || *revoked.Revoked != (Revocation{At: start, By: "uid 0", Reason: "stolen"}) {
		t.Fatalf("revoked: %+v, %v", revoked, err)
	}
	look := func(when string) {
		rest := []proto.NodeID{other.ID}
		if all, tagged, ok, addr := inventory(); !slices.Equal(all, rest) || !slices.Equal(tagged, rest) || ok || addr {
			t.Errorf("%s: %v, %v, %v, %v", when, all, tagged, ok, addr)
		}
		s := r.Snapshot()
		if m, ok := s.Named("db"); !ok || m.Revoked == nil || s.Len() != 2 || len(slices.Collect(s.Nodes())) != 2 {
			t.Errorf("%s people do not see it: %+v", when, m)
		}
	}
	if r.Snapshot().Trusted(n.ID) || !r.Snapshot().Trusted(other.ID) {
		t.Error("the wrong one is trusted")
	}
	r.clock.pass(2 * time.Hour) // nobody could accept its certificate any longer
	r.renew(other)
	if _, err := r.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	look("after")
	r.reopen()
	look("after a restart")

	version := r.Snapshot().Version()
	if again, err := r.RevokeNode(t.Context(), n.ID, "other", "uid 1"); err != nil || again.Revoked.Reason != "stolen" {
		t.Errorf("revoked again: %+v, %v", again, err)
	}
	if v := r.Snapshot().Version(); v != version {
		t.Errorf("revoking again made version %v of %v", v, version)
	}
	if _, err := r.RevokeNode(t.Context(), 7, "", "uid 0"); !errors.Is(err, ErrUnknown) {
		t.Errorf("revoking nobody: %v, want ErrUnknown", err)
	}
	if _, err := r.RevokeNode(t.Context(), n.ID, strings.Repeat("x", maxReason+1), "uid 0"); !errors.Is(err, ErrInvalid) {
		t.Errorf("a very long reason: %v, want ErrInvalid", err)
	}
}

func TestByUser(t *testing.T) {
	r := newRig(t)
	user := func(name string) *Node {
		return r.enroll(machine(t, r.token(func(s *TokenSpec) { s.Tags, s.User = nil, name }), "laptop"))
	}
	ann, anna := user("ann@example.com"), user("ann@example.com.org")
	s := r.Snapshot()
	if got := slices.Collect(s.ByUser("ann@example.com")); !slices.Equal(got, []proto.NodeID{ann.ID}) {
		t.Errorf("nodes of ann: %v, want %v", got, ann.ID)
	}
	if got := slices.Collect(s.ByUser("ann@example.com.org")); !slices.Equal(got, []proto.NodeID{anna.ID}) {
		t.Errorf("nodes of the other: %v, want %v", got, anna.ID)
	}
	for range s.ByUser("ann@example") {
		t.Error("a part of a name names somebody")
	}
}

func TestDeleteNode(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	if err := r.SetReach(t.Context(), n.ID, proto.Reach{Endpoints: []proto.Endpoint{endpoint("192.0.2.1:1")}}); err != nil {
		t.Fatal(err)
	}
	r.SetLive(n.ID, func(l *Live) { l.Connected = true })
	if err := r.DeleteNode(t.Context(), n.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"after", "after a restart"} {
		s := r.Snapshot()
		if _, ok := s.Find(n.ID.String()); ok || s.Len() != 0 || s.Reach(n.ID).Endpoints != nil {
			t.Errorf("%s the node is still there", when)
		}
		if _, ok := r.Live(n.ID); ok {
			t.Errorf("%s its liveness is still there", when)
		}
		r.SetLive(n.ID, func(l *Live) { l.Connected = true })
		if _, ok := r.Live(n.ID); ok {
			t.Errorf("%s liveness of a node that is gone was taken", when)
		}
		if err := r.DeleteNode(t.Context(), n.ID, "uid 0"); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s deleting again: %v, want ErrUnknown", when, err)
		}
		r.reopen()
	}
}

func endpoint(addr string) proto.Endpoint {
	return proto.Endpoint{Addr: netip.MustParseAddrPort(addr), Kind: proto.EndpointInterface}
}

func TestEndpoints(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	before := contents(t, r.store)
	e := []proto.Endpoint{endpoint("192.0.2.1:41641"), endpoint("[2001:db8::1]:41641")}
	v := r.Snapshot().Version()
	for range 2 { // a repeated report is no change
		if err := r.SetReach(t.Context(), n.ID, proto.Reach{Endpoints: e}); err != nil {
			t.Fatal(err)
		}
	}
	s := r.Snapshot()
	if got := s.Reach(n.ID).Endpoints; !slices.Equal(got, e) {
		t.Errorf("endpoints %v, want %v", got, e)
	}
	if s.Version().N != v.N+1 {
		t.Errorf("version %v after %v", s.Version(), v)
	}
	if diff := cmp.Diff(before, contents(t, r.store)); diff != "" {
		t.Errorf("endpoints were written: %s", diff)
	}
	overlay := proto.Endpoint{Addr: netip.AddrPortFrom(n.Addrs.V4, 1), Kind: proto.EndpointInterface}
	for what, bad := range map[string][]proto.Endpoint{
		"many": make([]proto.Endpoint, proto.MaxEndpoints+1), "overlay": {overlay}, "twice": {e[0], e[0]}, "zero": {{}},
	} {
		if err := r.SetReach(t.Context(), n.ID, proto.Reach{Endpoints: bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
	if err := r.SetReach(t.Context(), 9, proto.Reach{Endpoints: e}); !errors.Is(err, ErrUnknown) {
		t.Errorf("of nobody: %v, want ErrUnknown", err)
	}
	r.reopen()
	if got := r.Snapshot().Reach(n.ID).Endpoints; got != nil {
		t.Errorf("after a restart: %v", got)
	}
}

func TestEphemeralNodesExpire(t *testing.T) {
	r := newRig(t)
	ephemeral := func(name string) *Node {
		return r.enroll(machine(t, r.token(func(s *TokenSpec) { s.Ephemeral = true }), name))
	}
	keep, never, left := r.node("keep"), ephemeral("never"), ephemeral("left")
	here := ephemeral("here")
	r.SetLive(here.ID, func(l *Live) { l.Connected = true })
	r.clock.pass(20 * time.Minute)
	r.SetLive(left.ID, func(l *Live) { l.LastSeen = r.clock.now() })

	expire := func(want ...proto.NodeID) {
		t.Helper()
		got, err := r.Expire(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("expired %v, %v; want %v", got, err, want)
		}
	}
	expire()
	r.clock.pass(10 * time.Minute)
	expire(never.ID)
	r.clock.pass(19 * time.Minute)
	expire()
	r.clock.pass(time.Minute)
	expire(left.ID)
	book, err := r.Audit(t.Context(), 0, 1, AuditQuery{})
	if err != nil || book[0].Action != audit.NodeExpire || book[0].Subject != left.ID.String() {
		t.Errorf("audit: %+v, %v", book, err)
	}
	// A restart does not know who was connected, and starts counting anew.
	r.reopen()
	r.clock.pass(29 * time.Minute)
	expire()
	r.clock.pass(time.Minute)
	expire(here.ID)
	if _, ok := r.Snapshot().Lookup(keep.ID); !ok {
		t.Error("a node that is not ephemeral expired")
	}
}

// TestMuchExpiresAtOnce checks that more than a transaction can hold expires, after an outage for example.
func TestMuchExpiresAtOnce(t *testing.T) {
	r := newRig(t)
	for range 1000 {
		n := r.enroll(machine(t, r.token(func(s *TokenSpec) { s.Ephemeral = true }), "ephemeral"))
		r.renew(r.renew(n))
	}
	for range 400 {
		if err := r.DeleteNode(t.Context(), r.node("deleted").ID, "uid 0"); err != nil {
			t.Fatal(err)
		}
	}
	r.demand.Approval = true
	for range MaxCandidates / MaxOfToken {
		tok := r.reusable()
		for range MaxOfToken {
			r.waits(machine(t, tok, "candidate"))
		}
	}
	r.clock.pass(2 * keepToken)
	gone, err := r.Expire(t.Context())
	if err != nil || len(gone) != 1000 {
		t.Fatalf("%d nodes expired: %v", len(gone), err)
	}
	s := r.Snapshot().state
	if s.nodes.Len()+s.tokens.Len()+s.keyEnds.Len()+s.candidates.Len() != 0 || s.freed.Len() != 1000 {
		t.Errorf("left: %d nodes, %d tokens, %d keys, %d candidates, %d addresses", s.nodes.Len(), s.tokens.Len(), s.keyEnds.Len(), s.candidates.Len(), s.freed.Len())
	}
}

func TestLapse(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	r.clock.pass(time.Hour + Patience)
	expire := func(want bool) {
		t.Helper()
		v := r.Snapshot().Version()
		was := r.Snapshot().Lapsed(n.ID)
		if _, err := r.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := r.Snapshot().Lapsed(n.ID); got != want {
			t.Errorf("at %v: lapsed %v, want %v", r.clock.now(), got, want)
		}
		if changed := r.Snapshot().Version() != v; changed != (was != want) {
			t.Errorf("at %v: a new version: %v", r.clock.now(), changed)
		}
	}
	expire(false)
	r.clock.pass(time.Second)
	expire(true)
	expire(true)
	r.renew(n)
	if r.Snapshot().Lapsed(n.ID) {
		t.Error("a node that renewed is lapsed")
	}
	if _, err := r.RevokeNode(t.Context(), n.ID, "", "uid 0"); err != nil {
		t.Fatal(err)
	}
	expire(false)
	if _, ok := r.Snapshot().Node(n.ID); !ok {
		t.Error("whom a certificate of a revoked node could be shown are not told of it")
	}
	r.clock.pass(2 * time.Hour)
	expire(true)
	if _, ok := r.Snapshot().Node(n.ID); ok {
		t.Error("policies are about a revoked node whose certificate ended")
	}
	r.reopen()
	if _, ok := r.Snapshot().Node(n.ID); ok {
		t.Error("after a restart policies are about it again")
	}
}

// TestLapsedUntilRenewal checks that a lapsed node stays lapsed, whatever else changes about it, until it renews.
func TestLapsedUntilRenewal(t *testing.T) {
	r := newRig(t)
	q := genuine(t, r.token(nil), "host", "tpm:a")
	n := r.enroll(q)
	r.over(n)
	unseen := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if !r.Snapshot().Lapsed(n.ID) {
			t.Errorf("%s: it is no longer lapsed", what)
		}
		for _, p := range r.Snapshot().Peers([]proto.NodeID{n.ID}) {
			if p != nil {
				t.Errorf("%s: others are told of it", what)
			}
		}
	}
	l, _ := r.lock(LockNode, n.ID.String(), 0)
	unseen("locked", nil)
	_, _, err := r.DeleteLock(t.Context(), l.ID, "uid 0")
	unseen("unlocked", err)
	_, err = r.JudgeNode(t.Context(), n.ID, Verdict{By: "uid 0"})
	unseen("approved", err)
	_, err = r.ResetNode(t.Context(), n.ID, "uid 0")
	unseen("reset", err)
	unseen("attested", r.Attest(t.Context(), n.ID, q.Level, q.Attested, "the TPM is busy"))
	n, _ = r.Snapshot().Lookup(n.ID)
	n = r.renew(n)
	if r.Snapshot().Lapsed(n.ID) {
		t.Error("a node that renewed is lapsed")
	}
	r.over(n)
	_, err = r.RevokeNode(t.Context(), n.ID, "", "uid 0")
	unseen("revoked", err)
	if _, ok := r.Snapshot().Node(n.ID); ok {
		t.Error("policies are about a revoked node that lapsed before")
	}
}

func TestTokens(t *testing.T) {
	r := newRig(t)
	tok := r.token(func(s *TokenSpec) { s.Tags = []string{"tag:web", "tag:db", "tag:web"} })
	if !slices.Equal(tok.Tags, []string{"tag:db", "tag:web"}) || tok.State(start) != TokenValid || !tok.Expires.Equal(start.Add(time.Hour)) {
		t.Errorf("token: %+v", tok)
	}
	if got, ok := r.Snapshot().TokenByID(tok.ID); !ok || got != tok || len(tok.ID) != 14 || tok.ID[0] != 't' {
		t.Errorf("by id %s: %+v", tok.ID, got)
	}
	public := newTokenKey(t)
	for what, change := range map[string]func(*TokenSpec){
		"no key":         func(s *TokenSpec) { s.Public = [1]TokenSpec{}[0].Public },
		"short":          func(s *TokenSpec) { s.TTL = time.Second },
		"long":           func(s *TokenSpec) { s.TTL = MaxTokenTime + 1 },
		"user and tag":   func(s *TokenSpec) { s.User = "ann@example.com" },
		"user without @": func(s *TokenSpec) { s.Tags, s.User = nil, "ann" },
		"user with NUL":  func(s *TokenSpec) { s.Tags, s.User = nil, "ann@\x00" },
		"user of all":    func(s *TokenSpec) { s.Tags, s.User = nil, "*@example.com" },
		"user no domain": func(s *TokenSpec) { s.Tags, s.User = nil, "ann@" },
		"user of two":    func(s *TokenSpec) { s.Tags, s.User = nil, "ann@example.com@example.org" },
		"user too long":  func(s *TokenSpec) { s.Tags, s.User = nil, strings.Repeat("a", 244)+"@example.com" },
		"tag without":    func(s *TokenSpec) { s.Tags = []string{"db"} },
		"tag in capital": func(s *TokenSpec) { s.Tags = []string{"tag:1"} },
		"many tags":      func(s *TokenSpec) { s.Tags = manyTags() },
	} {
		spec := TokenSpec{Public: public, Tags: []string{"tag:db"}, TTL: time.Hour}
		change(&spec)
		if _, err := r.CreateToken(t.Context(), spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
	if _, err := r.CreateToken(t.Context(), TokenSpec{Public: tok.Public, TTL: time.Hour}); !errors.Is(err, ErrInvalid) {
		t.Errorf("the same key again: %v, want ErrInvalid", err)
	}
	plain := r.token(func(s *TokenSpec) { s.Tags = nil })
	if n := r.enroll(machine(t, plain, "host")); !n.User.IsZero() || n.Tags != nil {
		t.Errorf("a token without user and tags gave %+v", n.Identity)
	}

	first, err := r.RevokeToken(t.Context(), tok.ID, "uid 0")
	if err != nil || first.State(start) != TokenRevoked {
		t.Errorf("revoked: %+v, %v", first, err)
	}
	if again, err := r.RevokeToken(t.Context(), tok.ID, "uid 1"); err != nil || again.Revoked.By != "uid 0" {
		t.Errorf("revoked again: %+v, %v", again, err)
	}
	if _, err := r.RevokeToken(t.Context(), "t0", "uid 0"); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("revoking no token: %v", err)
	}
	r.reopen()
	want := slices.Collect(r.Snapshot().Tokens())
	if len(want) != 2 {
		t.Errorf("%d tokens after a restart, want 2", len(want))
	}
	r.clock.pass(time.Hour + keepToken)
	if _, err := r.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if left := slices.Collect(r.Snapshot().Tokens()); len(left) != 0 {
		t.Errorf("long after their time: %+v", left)
	}
}

func manyTags() (tags []string) {
	for i := range proto.MaxTags + 1 {
		tags = append(tags, "tag:t"+strings.Repeat("x", i%50)+string(rune('a'+i/50)))
	}
	return tags
}

func TestPolicy(t *testing.T) {
	r := newRig(t)
	if p := r.Snapshot().Policy(); p != nil {
		t.Errorf("a new mesh has policy %+v", p)
	}
	set := func(source string, ifNumber, want uint64) {
		t.Helper()
		p, err := r.SetPolicy(t.Context(), source, ifNumber, "uid 0")
		if err != nil || p.Number != want || p.Source != source || r.Snapshot().Policy() != p {
			t.Errorf("policy %+v, %v; want number %d", p, err, want)
		}
	}
	set("{}", 0, 1)
	set("{ }", 1, 2)
	v := r.Snapshot().Version()
	set("{ }", 2, 2)
	if r.Snapshot().Version() != v {
		t.Error("what is in force already made a new version")
	}
	for _, wrong := range []uint64{1, 3} {
		if _, err := r.SetPolicy(t.Context(), "{}", wrong, "uid 0"); !errors.Is(err, ErrPolicyChanged) {
			t.Errorf("if %d: %v, want ErrPolicyChanged", wrong, err)
		}
	}
	for what, source := range map[string]string{"long": strings.Repeat("x", MaxPolicy+1), "not UTF-8": "\xff"} {
		if _, err := r.SetPolicy(t.Context(), source, 0, "uid 0"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
	set(strings.Repeat("\"", MaxPolicy), 0, 3) // the maximum length, which doubles in its record
	r.reopen()
	if p := r.Snapshot().Policy(); p == nil || p.Number != 3 || len(p.Source) != MaxPolicy || !p.Applied.Equal(start) || p.By != "uid 0" {
		t.Errorf("after a restart policy %d", p.Number)
	}
	if p, err := r.PolicyVersion(t.Context(), 1); err != nil || p.Source != "{}" {
		t.Errorf("the first policy is %+v, %v", p, err)
	}
}

// unlisted is a store whose policies cannot be listed.
type unlisted struct{ store.Store }

func (s unlisted) List(ctx context.Context, prefix string) ([]store.Entry, uint64, error) {
	if strings.HasPrefix(prefix, policyPrefix) {
		return nil, 0, errors.New("the history of policies is too large")
	}
	return s.Store.List(ctx, prefix)
}

// TestOpenReadsOnlyTheLastPolicy checks that the length of the history of policies does not matter when a directory is opened.
func TestOpenReadsOnlyTheLastPolicy(t *testing.T) {
	r := newRigOn(t, unlisted{store.NewMemory()}, Plan{})
	for i := range 17 {
		if _, err := r.SetPolicy(t.Context(), fmt.Sprintf("{} // %d", i), 0, "uid 0"); err != nil {
			t.Fatal(err)
		}
	}
	r.reopen()
	if p := r.Snapshot().Policy(); p == nil || p.Number != 17 || p.Source != "{} // 16" {
		t.Errorf("%+v", p)
	}
}
