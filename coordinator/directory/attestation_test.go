package directory

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// genuine returns the request of a machine with a TPM.
func genuine(t testing.TB, tok *Token, hostname, chip string) EnrollRequest {
	q := machine(t, tok, hostname)
	q.Level = cert.LevelTPM
	q.Attested = Attested{Kind: "tpm", Device: chip, Selectors: []string{"pcr:7=00"}, Checks: []string{"quote"}, Again: true, Known: []byte{1}}
	return q
}

func (r *rig) replacing(id proto.NodeID) *Token {
	r.t.Helper()
	return r.token(func(s *TokenSpec) { s.Tags, s.Replace = nil, id })
}

func (r *rig) refuses(q EnrollRequest, want error, words string) {
	r.t.Helper()
	if n, err := r.Enroll(r.t.Context(), q); !errors.Is(err, want) || !strings.Contains(err.Error(), words) {
		r.t.Errorf("%v, %v; want %v with %q", n, err, want, words)
	}
}

func TestOneMachineIsOneNode(t *testing.T) {
	r := newRig(t)
	n := r.enroll(genuine(t, r.token(nil), "web", "tpm:a"))
	r.enroll(genuine(t, r.token(nil), "db", "tpm:b"))
	r.refuses(genuine(t, r.token(nil), "again", "tpm:a"), ErrMachineKnown, "--replace web")
	r.reopen()
	r.refuses(genuine(t, r.token(nil), "again", "tpm:a"), ErrMachineKnown, "--replace web")
	db, _ := r.Snapshot().Named("db")
	r.refuses(genuine(t, r.replacing(db.ID), "again", "tpm:a"), ErrMachineKnown, "--replace web")

	q := genuine(t, r.replacing(n.ID), "reinstalled", "tpm:a")
	m := r.enroll(q)
	if m.ID != n.ID || m.Name != "web" || m.Addrs != n.Addrs || m.Device != q.Device || m.Key != q.Key || m.Hostname != "reinstalled" ||
		m.Certificate.Sequence != n.Certificate.Sequence+1 || !m.Next.IsZero() || string(m.Seed) == string(n.Seed) || !cmp.Equal(m.Tags, n.Tags) {
		t.Errorf("replaced: %+v, was %+v", m, n)
	}
	s := r.Snapshot()
	if _, ok := s.Device(n.Device); ok || s.Len() != 2 {
		t.Errorf("the old machine is still known, or a node came: %d", s.Len())
	}
	// A repeated request gets the lost reply, and the old keys are never accepted again.
	if again := r.enroll(q); again.Certificate.Sequence != m.Certificate.Sequence {
		t.Errorf("again: %+v", again)
	}
	old := genuine(t, r.token(nil), "old", "tpm:c")
	old.Device = n.Device
	r.refuses(old, ErrKeyUsed, "device key")

	// A machine whose node is deleted may join again; one whose node is revoked may not.
	if _, err := r.RevokeNode(t.Context(), n.ID, "stolen", "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.refuses(genuine(t, r.token(nil), "again", "tpm:a"), ErrMachineKnown, "web")
	if _, err := r.CreateToken(t.Context(), TokenSpec{Public: newTokenKey(t), TTL: time.Hour, By: "uid 0", Replace: n.ID}); !errors.Is(err, ErrRevoked) {
		t.Errorf("a token to replace a revoked node: %v", err)
	}
	if err := r.DeleteNode(t.Context(), n.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.enroll(genuine(t, r.token(nil), "again", "tpm:a"))
}

func TestDowngrade(t *testing.T) {
	for _, c := range []struct {
		had, has cert.Level
		ok       bool
	}{
		{cert.LevelToken, cert.LevelToken, true},
		{cert.LevelToken, cert.LevelTPM, true},
		{cert.LevelX509, cert.LevelToken, false},
		{cert.LevelX509, cert.LevelTPMUnverified, true},
		{cert.LevelTPMUnverified, cert.LevelX509, false},
		{cert.LevelTPM, cert.LevelToken, false},
		{cert.LevelTPM, cert.LevelX509, false},
		{cert.LevelTPM, cert.LevelTPMUnverified, false},
		{cert.LevelTPM, cert.LevelTPM, true},
		{cert.LevelTPM, cert.LevelMeasured, true},
		{cert.LevelMeasured, cert.LevelTPM, false},
	} {
		t.Run(c.had.String()+" then "+c.has.String(), func(t *testing.T) {
			r := newRig(t)
			q := genuine(t, r.token(nil), "web", "one")
			q.Level = c.had
			n := r.enroll(q)
			q = genuine(t, r.replacing(n.ID), "web", "two")
			q.Level = c.has
			if c.ok {
				r.enroll(q)
				return
			}
			r.refuses(q, ErrDowngrade, "node reset web")
			reset, err := r.ResetNode(t.Context(), n.ID, "uid 0")
			if err != nil || reset.Attestation.Highest != cert.LevelNone || reset.Level != c.had {
				t.Fatalf("%+v, %v", reset, err)
			}
			// Further proofs from the old machine do not undo the reset.
			if err := r.Attest(t.Context(), n.ID, c.had, reset.Attestation.Attested, ""); err != nil {
				t.Fatal(err)
			}
			r.reopen()
			if m := r.enroll(q); m.Level != c.has || m.Attestation.Highest != c.has {
				t.Errorf("%+v", m)
			}
		})
	}
}

// TestDowngradeOfOneMachine checks that a machine whose reply was lost cannot return with less than it had proved.
func TestDowngradeOfOneMachine(t *testing.T) {
	r := newRig(t)
	q := genuine(t, r.token(nil), "web", "tpm:a")
	r.enroll(q)
	q.Level, q.Attested = cert.LevelToken, Attested{Kind: "token", Device: "device:x"}
	r.refuses(q, ErrDowngrade, "was attested by tpm, this machine by token")
}

func TestAttestAgain(t *testing.T) {
	r := newRig(t)
	q := genuine(t, r.token(nil), "web", "tpm:a")
	n := r.enroll(q)
	fact := func() string { return r.Snapshot().Traits(n.ID).Facts["device:attestation"] }
	attest := func(level cert.Level, a Attested, lapse string) *Node {
		t.Helper()
		if err := r.Attest(t.Context(), n.ID, level, a, lapse); err != nil {
			t.Fatal(err)
		}
		m, _ := r.Snapshot().Lookup(n.ID)
		return m
	}
	before := contents(t, r.store)
	r.clock.pass(time.Minute)
	if m := attest(q.Level, q.Attested, ""); m != n || fact() != "tpm" || cmp.Diff(before, contents(t, r.store)) != "" {
		t.Errorf("the same again was written: %+v", m)
	}
	// It can no longer quote, and later can again.
	m := attest(q.Level, q.Attested, "the TPM is busy")
	if m.Level != cert.LevelToken || m.Attestation.Lapse == "" || len(m.Attestation.Selectors) != 0 || m.Attestation.Highest != cert.LevelTPM ||
		!m.Attestation.Again || fact() != "token" || !m.Checked().Equal(start.Add(time.Minute)) {
		t.Errorf("lapsed: %+v, fact %s", m, fact())
	}
	before = contents(t, r.store)
	attest(q.Level, q.Attested, "the TPM is busy")
	if cmp.Diff(before, contents(t, r.store)) != "" {
		t.Error("the same lapse was written twice")
	}
	r.reopen()
	if m, _ := r.Snapshot().Lookup(n.ID); m.Attestation.Lapse == "" || fact() != "token" {
		t.Errorf("after a restart: %+v", m)
	}
	measured := q.Attested
	measured.Selectors = []string{"secureboot=on"}
	if m = attest(cert.LevelMeasured, measured, ""); m.Attestation.Lapse != "" || fact() != "measured" || m.Attestation.Highest != cert.LevelMeasured {
		t.Errorf("back: %+v, fact %s", m, fact())
	}
	// A machine that belongs to another node is refused.
	r.enroll(genuine(t, r.token(nil), "db", "tpm:b"))
	stolen := measured
	stolen.Device = "tpm:b"
	if err := r.Attest(t.Context(), n.ID, cert.LevelMeasured, stolen, ""); !errors.Is(err, ErrMachineKnown) {
		t.Errorf("another's machine: %v", err)
	}
	next, err := r.Renew(t.Context(), Renewal{ID: n.ID, Key: newNodeKey(t), Ticket: n.NextTicket()})
	if err != nil || next.Level != cert.LevelMeasured || !next.Checked().Equal(next.Certificate.Issued) {
		t.Errorf("%+v, %v", next, err)
	}
}

// TestAttestInQuarantine checks that after its release policies see a node as its machine last proved itself, even if that was
// in quarantine.
func TestAttestInQuarantine(t *testing.T) {
	r := newRig(t)
	q := genuine(t, r.token(nil), "web", "tpm:a")
	q.Reported = Reported{OS: "linux"}
	n := r.enroll(q)
	r.renew(r.renew(n))
	if _, err := r.Renew(t.Context(), r.renewal(n, newNodeKey(t))); !errors.Is(err, ErrQuarantined) { // two machines
		t.Fatalf("%v, want quarantine", err)
	}
	if err := r.Attest(t.Context(), n.ID, q.Level, q.Attested, "the TPM is busy"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ReleaseNode(t.Context(), n.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	if got := r.Snapshot().Traits(n.ID).Facts; got["device:attestation"] != "token" || got["node:os"] != "linux" {
		t.Errorf("policies see %v", got)
	}
}

func TestRefusalsAreNoted(t *testing.T) {
	r := newRig(t)
	tok := r.token(nil)
	n := r.node("web")
	if err := errors.Join(
		r.Refuse(t.Context(), newTokenKey(t), "stranger", "who?"),
		r.Refuse(t.Context(), tok.Public, "laptop", "a reason"),
		r.RefuseNode(t.Context(), n.ID, "another reason"),
	); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, line := range contents(t, r.store) {
		if strings.Contains(line, audit.NodeRefuse) {
			got = append(got, line)
		}
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{"token " + tok.ID, `"laptop"`, `"a reason"`, "node " + n.ID.String(), `"another reason"`} {
		if len(got) != 2 || !strings.Contains(all, want) {
			t.Errorf("the book has %d refusals, want 2 and %s in them:\n%s", len(got), want, all)
		}
	}
	if err := r.RefuseNode(t.Context(), 12345, "nobody"); !errors.Is(err, ErrUnknown) {
		t.Errorf("%v", err)
	}
}

// TestOneTokenDoesNotFillTheBook checks that refusals of one token or node are recorded a few times and then rarely, and that
// there is room for those of others.
func TestOneTokenDoesNotFillTheBook(t *testing.T) {
	r := newRig(t)
	loud, quiet, n := r.token(nil), r.token(nil), r.node("web")
	refusals := func(subject string) (count int) {
		t.Helper()
		list, err := r.Audit(t.Context(), 0, 1000, AuditQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range list {
			if a.Action == audit.NodeRefuse && a.Subject == subject {
				count++
			}
		}
		return count
	}
	refuse := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 600 { // ten minutes
		refuse(r.Refuse(t.Context(), loud.Public, "laptop", "a reason"))
		r.clock.pass(time.Second)
	}
	if got := refusals(loud.ID); got != fewRefusals {
		t.Errorf("%d refusals of one token, want %d", got, fewRefusals)
	}
	refuse(r.Refuse(t.Context(), loud.Public, "laptop", "a reason"))
	refuse(r.Refuse(t.Context(), quiet.Public, "server", "a reason"))
	for range 2 * fewRefusals {
		refuse(r.RefuseNode(t.Context(), n.ID, "a reason"))
	}
	for subject, want := range map[string]int{loud.ID: fewRefusals + 1, quiet.ID: 1, n.ID.String(): fewRefusals} {
		if got := refusals(subject); got != want {
			t.Errorf("%d refusals of %s, want %d", got, subject, want)
		}
	}
	r.clock.pass(time.Hour)
	for range 3 * burstOfRefusals { // not all at once, of however many
		refuse(r.Refuse(t.Context(), r.token(nil).Public, "laptop", "a reason"))
	}
	all := 0
	for tok := range r.Snapshot().Tokens() {
		all += refusals(tok.ID)
	}
	if want := fewRefusals + 2 + burstOfRefusals; all != want {
		t.Errorf("%d refusals of all tokens, want %d", all, want)
	}
}

func TestReplacingTokens(t *testing.T) {
	r := newRig(t)
	n := r.node("web")
	for what, change := range map[string]func(*TokenSpec){
		"tags": func(s *TokenSpec) { s.Tags = []string{"tag:db"} }, "user": func(s *TokenSpec) { s.User = "ann@example.com" },
		"reusable": func(s *TokenSpec) { s.Reusable = true }, "ephemeral": func(s *TokenSpec) { s.Ephemeral = true },
	} {
		spec := TokenSpec{Public: newTokenKey(t), TTL: time.Hour, By: "uid 0", Replace: n.ID}
		change(&spec)
		if _, err := r.CreateToken(t.Context(), spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	tok := r.replacing(n.ID)
	if !cmp.Equal(tok.Tags, n.Tags) || tok.Replace != n.ID {
		t.Errorf("%+v", tok)
	}
	if err := r.DeleteNode(t.Context(), n.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.refuses(machine(t, tok, "web"), ErrUnknown, "")
}
