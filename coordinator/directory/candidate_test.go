package directory

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// waits attempts an enrolment that requires approval, and returns the candidate's code.
func (r *rig) waits(q EnrollRequest) string {
	r.t.Helper()
	_, err := r.Enroll(From(r.t.Context(), "192.0.2.7:4711"), q)
	var pending *PendingError
	if !errors.As(err, &pending) || !errors.Is(err, ErrPending) || CandidateCode(pending.Code) != pending.Code {
		r.t.Fatalf("enrolment: %v, want a pending one", err)
	}
	return pending.Code
}

// judge approves or denies a candidate.
func (r *rig) judge(code string, approve bool) {
	r.t.Helper()
	if _, err := r.JudgeCandidate(r.t.Context(), code, Verdict{By: "uid 0", Denied: !approve, Reason: "a reason"}); err != nil {
		r.t.Fatal(err)
	}
}

// TestAdmissionByLevel checks that a machine that proves too little is refused without effect, and that its token remains good
// for another.
func TestAdmissionByLevel(t *testing.T) {
	r := newRig(t)
	r.demand = compile.Demand{Attestation: "tpm", AttestationBy: proto.Origin{Path: "admission[1]", Line: 7}, Approval: true}
	tok := r.token(nil)
	for _, l := range []cert.Level{cert.LevelNone, cert.LevelToken, cert.LevelX509, cert.LevelTPMUnverified} {
		q := machine(t, tok, "host")
		q.Level = l
		r.refused(q, ErrAdmission)
		_, err := r.Enroll(t.Context(), q)
		if want := "tag:db requires attestation by tpm or better (admission[1], line 7 of the policy), and this machine is attested by " + l.String(); err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	r.demand.Approval = false
	for _, l := range []cert.Level{cert.LevelTPM, cert.LevelMeasured} {
		q := machine(t, tok, "host")
		q.Level = l
		if n := r.enroll(q); n.Level != l || n.Verdict != nil {
			t.Errorf("%s: %+v", l, n)
		}
		tok = r.token(nil)
	}
}

func TestApproval(t *testing.T) {
	r := newRig(t)
	r.demand = compile.Demand{Approval: true, ApprovalBy: proto.Origin{Path: "admission[0]", Line: 3}}
	tok := r.token(nil)
	q := machine(t, tok, "Web-1.local")
	code := r.waits(q)
	before := contents(t, r.store)
	if again := r.waits(q); again != code {
		t.Errorf("code %s after %s", again, code)
	}
	if diff := cmp.Diff(before, contents(t, r.store)); diff != "" {
		t.Errorf("asking again wrote: %s", diff)
	}
	r.refused(machine(t, tok, "other"), ErrReserved)
	if state := tokenState(r, tok); state != TokenValid {
		t.Errorf("the token is %s", state)
	}
	c, err := r.Snapshot().FindCandidate(strings.ToLower(strings.ReplaceAll(code, "-", "")))
	if err != nil || c.Name() != "web-1" || c.Device != q.Device || c.Token != tok.ID || c.Level != q.Level || c.From != "192.0.2.7:4711" ||
		!c.Asked.Equal(start) || c.Verdict != nil {
		t.Fatalf("%+v, %v", c, err)
	}

	r.reopen()
	if again := r.waits(q); again != code {
		t.Errorf("after a restart code %s, before %s", again, code)
	}
	r.clock.pass(2 * time.Hour) // the token has expired; the machine asked in time
	r.refused(machine(t, tok, "other"), ErrTokenExpired)
	r.waits(q)
	r.judge(code, true)
	r.reopen()
	n := r.enroll(q)
	if v := n.Verdict; v == nil || v.Denied || v.By != "uid 0" || v.Reason != "a reason" || !v.At.Equal(r.clock.now()) {
		t.Errorf("verdict %+v", n.Verdict)
	}
	if _, err := r.Snapshot().FindCandidate(code); !errors.Is(err, ErrCandidateUnknown) {
		t.Errorf("the candidate is still there: %v", err)
	}
	if state := tokenState(r, tok); state != TokenSpent {
		t.Errorf("the token is %s", state)
	}
	if traits := r.Snapshot().Traits(n.ID); !traits.Admitted {
		t.Error("policies are not told that it is admitted")
	}
	r.reopen()
	if n, _ := r.Snapshot().Lookup(n.ID); n.Verdict == nil {
		t.Error("the verdict is lost")
	}
	n, _ = r.Snapshot().Lookup(n.ID)
	r.renew(n)

	book, err := r.Audit(t.Context(), 0, 100, AuditQuery{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range book {
		if a.Action == audit.NodePending || a.Action == audit.NodeApprove || a.Action == audit.NodeEnroll {
			got = append(got, strings.Join([]string{a.Action, a.Subject, a.Name, a.By, a.From, a.Reason}, "|"))
		}
	}
	want := []string{
		"node.enroll|" + n.ID.String() + "|web-1|token " + tok.ID + "||for tag:db, attested by token",
		"node.approve|" + code + "|web-1|uid 0||joins with token " + tok.ID + " for tag:db, attested by token: a reason",
		"node.pending|" + code + "|web-1|token " + tok.ID + "|192.0.2.7:4711|for tag:db, attested by token",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("audit (-want +got):\n%s", diff)
	}
}

func tokenState(r *rig, tok *Token) string {
	now, _ := r.Snapshot().Token(tok.Public)
	return now.State(r.clock.now())
}

// TestAnApprovalIsOfWhatWasShown checks that an approval covers only what the administrator saw: a machine that shows something
// else waits again.
func TestAnApprovalIsOfWhatWasShown(t *testing.T) {
	for name, change := range map[string]func(*EnrollRequest){
		"another name":     func(q *EnrollRequest) { q.Hostname = "payroll" },
		"a lower level":    func(q *EnrollRequest) { q.Level = cert.LevelToken },
		"another hardware": func(q *EnrollRequest) { q.Attested.Device = "tpm:other" },
	} {
		r := newRig(t)
		r.demand.Approval = true
		q := machine(t, r.token(nil), "laptop")
		q.Level, q.Attested.Device = cert.LevelTPM, "tpm:one"
		r.judge(r.waits(q), true)
		other := q
		change(&other)
		code := r.waits(other)
		r.reopen()
		r.waits(other)
		r.waits(q) // what it shows differs again
		r.judge(code, true)
		if n := r.enroll(q); !n.Verdict.approved() {
			t.Errorf("%s: %+v", name, n)
		}
	}
}

func TestDenial(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	tok := r.token(nil)
	q := machine(t, tok, "stranger")
	code := r.waits(q)
	r.judge(code, false)
	r.refused(q, ErrDenied)
	r.reopen()
	r.refused(q, ErrDenied)
	r.demand.Approval = false
	r.refused(q, ErrDenied) // whatever the policy demands
	r.demand.Approval = true

	mine := machine(t, tok, "mine") // the token is reserved for nobody now
	other := r.waits(mine)
	r.judge(other, false)
	r.judge(other, true) // a denial can be reversed
	r.enroll(mine)
}

func TestCandidatesAreBounded(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	tok := r.reusable()
	for i := range MaxOfToken {
		r.waits(machine(t, tok, fmt.Sprintf("m%d", i)))
	}
	last := machine(t, tok, "last")
	r.refused(last, ErrCrowded)
	for c := range r.Snapshot().Candidates() {
		r.judge(c.Code, false)
	}
	r.refused(last, ErrCrowded) // denied candidates still count

	single := r.token(nil)
	for range MaxOfToken {
		r.judge(r.waits(machine(t, single, "m")), false)
	}
	r.refused(machine(t, single, "m"), ErrCrowded)

	for r.Snapshot().state.candidates.Len() < MaxCandidates {
		tok := r.reusable()
		for range min(MaxOfToken, MaxCandidates-r.Snapshot().state.candidates.Len()) {
			r.waits(machine(t, tok, "m"))
		}
	}
	r.refused(machine(t, r.reusable(), "one more"), ErrCrowded)

	r.clock.pass(CandidateTime + time.Second)
	if _, err := r.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := r.Snapshot().state.candidates.Len(); n != 0 {
		t.Errorf("%d candidates are left", n)
	}
	r.waits(machine(t, r.reusable(), "one more"))
}

// TestEnrollingAgainAsksAgain checks that a join code does not bypass the conditions of renewal: a node that enrols again with
// the same keys gets no certificate that a renewal would not have given it.
func TestEnrollingAgainAsksAgain(t *testing.T) {
	r := newRig(t)
	q := machine(t, r.token(func(s *TokenSpec) { s.TTL = 5 * time.Hour }), "laptop")
	n := r.enroll(q)
	r.clock.pass(40 * time.Minute)
	judge := func(denied bool) {
		t.Helper()
		if _, err := r.JudgeNode(t.Context(), n.ID, Verdict{By: "uid 0", Denied: denied}); err != nil {
			t.Fatal(err)
		}
	}
	judge(true)
	r.refused(q, ErrDenied)
	judge(false)
	r.demand.Attestation = "tpm"
	r.refused(q, ErrAdmission)
	r.demand = compile.Demand{}
	if again := r.enroll(q); again.ID != n.ID || again.Certificate.Sequence != 2 {
		t.Errorf("%+v", again)
	}
}

// TestApprovedAfterADenial checks that denying a machine frees its join code, and that the denial stands once another machine
// waits with it or has used it.
func TestApprovedAfterADenial(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	tok := r.token(nil)
	first, second := machine(t, tok, "first"), machine(t, tok, "second")
	code := r.waits(first)
	r.judge(code, false)
	r.judge(code, true)
	r.judge(code, false)
	approve := func(want error) {
		t.Helper()
		if _, err := r.JudgeCandidate(t.Context(), code, Verdict{By: "uid 0"}); !errors.Is(err, want) {
			t.Errorf("approved: %v, want %v", err, want)
		}
		if c, ok := r.Snapshot().state.candidateCodes.Get(code); !ok || !c.Verdict.denied() {
			t.Errorf("%+v", c)
		}
	}
	other := r.waits(second)
	approve(ErrReserved)
	r.judge(other, true)
	r.enroll(second)
	approve(ErrTokenSpent)
}

func TestTokenRevokedWhileAMachineWaits(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	tok := r.token(nil)
	q := machine(t, tok, "m")
	code := r.waits(q)
	r.judge(code, true)
	if _, err := r.RevokeToken(t.Context(), tok.ID, "uid 0"); err != nil {
		t.Fatal(err)
	}
	r.refused(q, ErrTokenRevoked)
	if _, err := r.JudgeCandidate(t.Context(), code, Verdict{By: "uid 0"}); !errors.Is(err, ErrCandidateUnknown) {
		t.Errorf("judged: %v", err)
	}
}

// TestATokenStaysWhileAMachineWaits checks that a machine may be judged again for longer than its token is otherwise kept, and
// that the last judgement still counts.
func TestATokenStaysWhileAMachineWaits(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	tok := r.token(nil)
	q := machine(t, tok, "m")
	code := r.waits(q)
	expire := func() {
		t.Helper()
		if _, err := r.Expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for waited := time.Duration(0); waited <= keepToken+time.Hour; waited += CandidateTime - time.Hour {
		r.clock.pass(CandidateTime - time.Hour)
		expire()
		r.judge(code, false)
	}
	r.judge(code, true)
	r.enroll(q)
	expire()
	if _, ok := r.Snapshot().TokenByID(tok.ID); ok {
		t.Error("the token is kept though nobody waits with it")
	}
}

// TestACandidateWithoutAToken checks that a candidate that an older program kept longer than its token cannot be judged.
func TestACandidateWithoutAToken(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	tok := r.token(nil)
	code := r.waits(machine(t, tok, "m"))
	r.Close()
	if _, err := r.store.Txn(t.Context(), nil, []store.Op{store.Delete(tokenPath(tok.ID))}); err != nil {
		t.Fatal(err)
	}
	r.open()
	for _, denied := range []bool{true, false} {
		if _, err := r.JudgeCandidate(t.Context(), code, Verdict{By: "uid 0", Denied: denied}); !errors.Is(err, ErrTokenUnknown) {
			t.Errorf("denied %v: %v, want ErrTokenUnknown", denied, err)
		}
	}
}

// TestRenewalAsksAgain checks that a policy's demands apply to existing nodes from their next renewal on.
func TestRenewalAsksAgain(t *testing.T) {
	r := newRig(t)
	n := r.node("old")
	next := newNodeKey(t)
	refused := func(want error) {
		t.Helper()
		before := contents(t, r.store)
		if _, err := r.Renew(t.Context(), r.renewal(n, next)); !errors.Is(err, want) {
			t.Errorf("renewal: %v, want %v", err, want)
		}
		if diff := cmp.Diff(before, contents(t, r.store)); diff != "" {
			t.Errorf("a refused renewal wrote: %s", diff)
		}
	}
	judge := func(v Verdict) {
		t.Helper()
		v.By = "uid 0"
		var err error
		if n, err = r.JudgeNode(t.Context(), n.ID, v); err != nil {
			t.Fatal(err)
		}
	}
	r.demand = compile.Demand{Attestation: "tpm", Approval: true}
	refused(ErrAdmission)
	r.demand.Attestation = "token"
	refused(ErrPending)
	judge(Verdict{Denied: true, Reason: "no"})
	refused(ErrDenied)
	r.demand = compile.Demand{}
	refused(ErrDenied)
	r.demand.Approval = true
	judge(Verdict{})
	r.reopen()
	renewed, err := r.Renew(t.Context(), r.renewal(n, next))
	if err != nil || renewed.Certificate.Sequence != 2 {
		t.Fatalf("%+v, %v", renewed, err)
	}
	// A lost reply is repeated, whatever is demanded by then.
	r.demand.Attestation = "measured"
	again, err := r.Renew(t.Context(), r.renewal(n, next))
	if err != nil || again.Certificate.Sequence != 2 {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := r.JudgeNode(t.Context(), n.ID, Verdict{Reason: "two\nlines"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("judged: %v", err)
	}
}

func TestWatch(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	q, other := machine(t, r.token(nil), "m"), machine(t, r.token(nil), "other")
	code := r.waits(q)
	r.waits(other)
	told := func(w *Watch) bool {
		select {
		case <-w.Changed():
			return true
		default:
			return false
		}
	}
	w, same, gone, another := r.WatchCandidate(q.Device), r.WatchCandidate(q.Device), r.WatchCandidate(q.Device), r.WatchCandidate(other.Device)
	gone.Close()
	gone.Close()
	q.Hostname = "renamed"
	r.waits(q)
	if told(w) {
		t.Error("told though nobody judged it")
	}
	r.judge(code, true)
	if !told(w) || !told(same) || told(gone) || told(another) {
		t.Errorf("judged: %v %v %v %v", told(w), told(same), told(gone), told(another))
	}
	n := r.enroll(q)
	x := r.WatchNode(n.ID)
	if _, err := r.CreateToken(t.Context(), TokenSpec{Public: newTokenKey(t), TTL: time.Hour}); err != nil || told(x) {
		t.Errorf("told of a token, %v", err)
	}
	if _, err := r.SetFact(t.Context(), n.ID, "custom:x", "1", 0, "uid 0"); err != nil || !told(x) {
		t.Errorf("not told of a change, %v", err)
	}
	if _, err := r.SetPolicy(t.Context(), "{}", 0, "uid 0"); err != nil || !told(another) {
		t.Errorf("not told of a policy, %v", err)
	}
	for _, w := range []*Watch{w, same, another, x} {
		w.Close()
	}
	if len(r.watches.all) != 0 {
		t.Errorf("%d are watched still", len(r.watches.all))
	}
}

func TestCandidateNames(t *testing.T) {
	r := newRig(t)
	r.demand.Approval = true
	first := r.waits(machine(t, r.token(nil), "web"))
	if c, err := r.Snapshot().FindCandidate("web"); err != nil || c.Code != first {
		t.Errorf("%+v, %v", c, err)
	}
	second := r.waits(machine(t, r.token(nil), "Web.local"))
	if _, err := r.Snapshot().FindCandidate("web"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), first) || !strings.Contains(err.Error(), second) {
		t.Errorf("two of a name: %v", err)
	}
	r.judge(first, false)
	if c, err := r.Snapshot().FindCandidate("web"); err != nil || c.Code != second {
		t.Errorf("%+v, %v", c, err)
	}
	for _, text := range []string{"", "BCDF", "BCDF-GHJ", "BCDF-GHJA", "BCDF-GHJKL", "ann@example.com"} {
		if code := CandidateCode(text); code != "" {
			t.Errorf("%q is code %s", text, code)
		}
	}
}

// TestALifeOfCandidates does random things to machines that want to join. It checks that none joins without meeting the demands
// of that moment, that tokens admit no more machines than they should, and that all state survives restarts.
func TestALifeOfCandidates(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRigOn(t, store.NewMemory(), Plan{})
		defer func() { r.Close() }()
		type applicant struct {
			EnrollRequest
			token  *Token
			code   string
			yes    bool // approved, and not judged otherwise since
			joined bool
		}
		var all []*applicant
		pick := func() *applicant { return rapid.SampledFrom(all).Draw(rt, "who") }
		for range 3 {
			tok := r.token(func(s *TokenSpec) { s.Reusable = rapid.Bool().Draw(rt, "reusable") })
			for range 2 {
				q := machine(t, tok, rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "hostname"))
				q.Level = rapid.SampledFrom([]cert.Level{cert.LevelToken, cert.LevelTPM}).Draw(rt, "level")
				all = append(all, &applicant{EnrollRequest: q, token: tok})
			}
		}
		ask := func() {
			a := pick()
			n, err := r.Enroll(t.Context(), a.EnrollRequest)
			var pending *PendingError
			switch {
			case err == nil && !a.joined:
				if d := r.demand; !d.Proves(n.Level.String()) || d.Approval && !a.yes {
					rt.Fatalf("joined with %+v, approved %v", n, a.yes)
				}
				a.joined = true
			case errors.As(err, &pending):
				if a.yes && a.code == pending.Code {
					rt.Fatal("waits though it is approved")
				}
				a.code, a.yes = pending.Code, false
			}
		}
		steps := []func(){
			ask, ask, ask,
			func() {
				a := pick()
				deny := rapid.Bool().Draw(rt, "deny")
				if _, err := r.JudgeCandidate(t.Context(), a.code, Verdict{By: "uid 0", Denied: deny}); err == nil {
					a.yes = !deny
				}
			},
			func() { r.demand.Approval = !r.demand.Approval },
			func() { r.demand.Attestation = rapid.SampledFrom([]string{"", "tpm"}).Draw(rt, "needs") },
			func() { r.clock.pass(time.Duration(rapid.IntRange(1, 100).Draw(rt, "hours")) * time.Hour) },
			func() { _, _ = r.Expire(t.Context()) },
			func() { _, _ = r.RevokeToken(t.Context(), pick().token.ID, "uid 0") },
			func() {
				before := slices.Collect(r.Snapshot().Candidates())
				r.reopen()
				if diff := cmp.Diff(before, slices.Collect(r.Snapshot().Candidates()), opaque); diff != "" {
					rt.Fatalf("after a restart: %s", diff)
				}
			},
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			steps[rapid.IntRange(0, len(steps)-1).Draw(rt, "step")]()
			s := r.Snapshot()
			reserved := map[string]int{}
			for c := range s.Candidates() {
				if tok, ok := s.TokenByID(c.Token); !ok || tok.Revoked != nil {
					rt.Fatalf("%+v waits with a token that is gone", c)
				} else if !tok.Reusable && !c.Verdict.denied() {
					reserved[tok.ID]++
				}
			}
			for tok := range s.Tokens() {
				if n := reserved[tok.ID]; !tok.Reusable && int(tok.Uses)+n > 1 {
					rt.Fatalf("token %s was used %d times, and %d wait with it", tok.ID, tok.Uses, n)
				}
			}
			if x := s.state; x.candidates.Len() != x.candidateCodes.Len() || x.candidates.Len() != x.candidateTokens.Len() || x.candidates.Len() != x.candidateEnds.Len() {
				rt.Fatal("the indexes of candidates differ")
			}
		}
	})
}
