package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// admissionPolicy requires approval for production machines, and a TPM for those that hold keys.
const admissionPolicy = `{
  "tagOwners": {"tag:prod": [], "tag:keys": []},
  "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}],
  "admission": [
    {"tags": ["tag:prod"], "approval": true},
    {"tags": ["tag:keys"], "attestation": "tpm"},
  ],
}`

// pendingJSON is the output of `node pending --json`.
type pendingJSON struct {
	Candidates []struct{ Code, Name, State, Attestation, From string }
	Nodes      []shown
}

// upAlone runs `redoubt up` in the background and returns its result.
func (m *member) upAlone(code string) <-chan mesh.Result {
	out := make(chan mesh.Result, 1)
	go func() {
		res, _ := m.Exec(m.r.ctx, lab.Command{Args: []string{"up", code, "--hostname", m.Name, "--timeout", "0"}})
		out <- res
	}()
	return out
}

// TestAdmission checks that machines that need approval join once they have it, and that others are refused.
func TestAdmission(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(admissionPolicy)
	keys := r.token("--tag", "tag:keys")
	weak := r.machine("weak")
	for range 2 { // its code stays valid
		r.refused(weak, keys, "tag:keys requires attestation by tpm or better (admission[1], line 6 of the policy), and this machine is attested by token",
			"it takes a TPM", "the join code was not used up")
	}

	web := r.machine("web")
	up := web.upAlone(r.token("--tag", "tag:prod"))
	web.awaitState("pending")
	code := web.status().Pending.Code
	waits := []string{"an administrator has to approve this machine, web, code " + code, "node approve " + code}
	r.contains(strings.Join(strings.Fields(web.fails(exitFalse, "status")), " "), append(waits, "state pending")...)
	var p pendingJSON
	r.adminJSON(&p, "node", "pending")
	if len(p.Candidates) != 1 || p.Candidates[0].Code != code || p.Candidates[0].Name != "web" || p.Candidates[0].Attestation != "token" ||
		!strings.HasPrefix(p.Candidates[0].From, web.Host.V4().String()) {
		t.Fatalf("%+v", p)
	}
	r.contains(r.admin("node", "list"), code, "web", "tag:prod")

	// Kill both ends meanwhile.
	if err := web.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	r.contains((<-up).Err, waits...)
	web.start()
	web.awaitState("pending")
	if err := r.Serve.Kill(); err != nil {
		t.Fatal(err)
	}
	r.startCoordinator()
	web.awaitStatus("waits again", func(st mesh.Status) bool {
		return st.State == "pending" && st.Coordinator.Connected && st.Pending.Code == code
	})
	r.contains(r.admin("node", "approve", strings.ToLower(code), "--reason", "ticket 7"), "web ("+code+") is approved: it will join by itself")
	begin := time.Now()
	web.awaitState("running")
	t.Logf("joined %v after the approval", time.Since(begin).Round(time.Millisecond))
	r.contains(r.admin("node", "show", "web"), "approved", "ticket 7")

	stranger := r.machine("stranger")
	single := r.token("--tag", "tag:prod")
	up = stranger.upAlone(single)
	stranger.awaitState("pending")
	r.refused(weak, single, "reserved for another machine")
	r.contains(r.admin("node", "deny", "stranger", "--reason", "who is that?"), "stranger", "is denied", "token revoke")
	if res := <-up; res.Code != exitFalse {
		t.Errorf("%+v", res)
	} else {
		r.contains(res.Err, "an administrator denied this machine, stranger", "who is that?")
	}
	stranger.awaitState("down")

	// A policy that requires more than the existing nodes have.
	raised := strings.Replace(admissionPolicy, `"approval": true`, `"approval": true, "attestation": "measured"`, 1)
	out, err := r.Apply(r.ctx, raised, "--dry-run")
	if err != nil {
		t.Fatal(err)
	}
	r.contains(out, "1 of 1 nodes do not meet its requirements", "lacks  attested by token, not measured")
	r.apply(raised)
	r.adminJSON(&p, "node", "pending")
	if len(p.Candidates) != 1 || p.Candidates[0].State != "denied" || len(p.Nodes) != 1 || p.Nodes[0].Name != "web" {
		t.Errorf("%+v", p)
	}
	if st := web.status(); st.State != "running" {
		t.Errorf("it lost what it had: %+v", st)
	}
	var audit struct {
		Records []struct{ Action, From, Reason string }
	}
	r.adminJSON(&audit, "audit", "list")
	var actions []string
	for _, a := range audit.Records {
		actions = append(actions, a.Action)
		if a.Action == "node.refuse" && !strings.Contains(a.From, ":") {
			t.Errorf("a refusal from nowhere: %+v", a)
		}
	}
	for _, want := range []string{"node.refuse", "node.pending", "node.approve", "node.enroll", "node.deny"} {
		if !slices.Contains(actions, want) {
			t.Errorf("the audit log says nothing of %s: %v", want, actions)
		}
	}
}
