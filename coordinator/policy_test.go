package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func (r *rig) facts(node string) map[string]string {
	r.t.Helper()
	a, err := r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: node})
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range a.GetNode().GetFacts() {
		out[f.GetName()] = f.GetValue()
	}
	return out
}

func TestFactsOverTheStream(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.machine("laptop")
		m.facts = &redoubtv1.Facts{OsVersion: "6.12.9"}
		if err := m.enrol(r.code(&redoubtv1.CreateTokenRequest{})); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{
			"node:os": "linux", "node:osVersion": "6.12.9", "node:version": "test", "node:hostname": "laptop", "device:attestation": "token",
		}
		if got := r.facts("laptop"); !maps.Equal(got, want) {
			t.Errorf("enrolled: %v", got)
		}
		m.facts = &redoubtv1.Facts{OsVersion: "6.13.0", Routes: wire.FromRoutes([]netip.Prefix{netip.MustParsePrefix("10.33.0.0/16")})}
		s := m.attach(nil)
		settle()
		if got := r.facts("laptop")["node:osVersion"]; got != "6.13.0" {
			t.Errorf("attached: %v", got)
		}
		routes := func() []*redoubtv1.Route {
			a, err := r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: "laptop"})
			if err != nil {
				t.Fatal(err)
			}
			return a.GetNode().GetRoutes()
		}
		if got := routes(); len(got) != 1 || got[0].GetPrefix() != "10.33.0.0/16" || !got[0].GetAdvertised() || got[0].GetApproved() {
			t.Errorf("routes: %v", got)
		}
		// A misconfigured node offers addresses of the mesh. It stays connected, without a route.
		m.facts = &redoubtv1.Facts{Routes: wire.FromRoutes([]netip.Prefix{r.co.Mesh().V4})}
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		settle()
		if got := routes(); len(got) != 0 || s.failed() != nil {
			t.Errorf("routes within the mesh: %v, stream: %v", got, s.failed())
		}
		if _, ok := r.facts("laptop")["node:osVersion"]; ok {
			t.Error("a fact that the node does not tell any more is there")
		}
		a, err := r.co.Admin().ApproveRoutes(context.Background(), &redoubtv1.ApproveRoutesRequest{Node: "laptop", Prefixes: []string{"10.33.0.0/16"}})
		if err != nil || len(a.GetNode().GetRoutes()) != 1 || !a.GetNode().GetRoutes()[0].GetApproved() {
			t.Errorf("approved: %v, %v", a, err)
		}
		for _, bad := range []string{"10.33.0.0", "10.33.0.1/16", "x", r.co.Mesh().V6.String()} {
			if _, err := r.co.Admin().ApproveRoutes(context.Background(), &redoubtv1.ApproveRoutesRequest{Node: "laptop", Prefixes: []string{bad}}); connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("approve %s: %v", bad, err)
			}
		}
		s.close()
	})
}

func TestFactsThatExpire(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.join("laptop", &redoubtv1.CreateTokenRequest{})
		admin := r.co.Admin()
		set := &redoubtv1.SetFactRequest{Node: "laptop", Name: "custom:tier", Value: "prod", TtlSeconds: 90}
		if _, err := admin.SetFact(api.WithCaller(context.Background(), "uid 7"), set); err != nil {
			t.Fatal(err)
		}
		a, err := admin.GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: "laptop"})
		if err != nil {
			t.Fatal(err)
		}
		f := a.GetNode().GetFacts()[0]
		if f.GetName() != "custom:tier" || f.GetSource() != api.FactCustom || f.GetBy() != "uid 7" || f.GetSet() != time.Now().Unix() || f.GetExpires() != time.Now().Unix()+90 {
			t.Errorf("set: %v", f)
		}
		time.Sleep(90 * time.Second)
		settle()
		if got, ok := r.facts("laptop")["custom:tier"]; ok {
			t.Errorf("after its time: %v", got)
		}
		set.TtlSeconds = 1 << 62
		if _, err := admin.SetFact(context.Background(), set); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("for ever and a day: %v", err)
		}
		if _, err := admin.UnsetFact(context.Background(), &redoubtv1.UnsetFactRequest{Node: "laptop", Name: "custom:tier"}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("unset what is not there: %v", err)
		}
	})
}

const (
	narrowPolicy = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"]}]}`
	shutPolicy   = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": []}`
	falsePolicy  = `{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [], "tests": [{"src": "tag:a", "accept": ["tag:b:22"]}]}`
)

func TestApplyingPolicies(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx, admin := context.Background(), r.co.Admin()
		r.join("a1", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		r.join("a2", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		r.join("b1", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}})
		apply := func(q *redoubtv1.ApplyPolicyRequest) *redoubtv1.ApplyPolicyResponse {
			t.Helper()
			a, err := admin.ApplyPolicy(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		none := uint64(0)
		tried := apply(&redoubtv1.ApplyPolicyRequest{Source: narrowPolicy, DryRun: true, Expect: &none})
		if i := tried.GetImpact(); tried.GetApplied() || tried.GetNumber() != 0 || i.GetNodes() != 3 || i.GetTouched() != 3 || i.GetGained() != 1 || i.GetLost() != 0 {
			t.Errorf("tried: %v", tried)
		}
		if c := tried.GetImpact().GetChanges()[0]; !c.GetGained() || fmt.Sprintf("%v %v %v %s", c.GetSrc(), c.GetDst(), c.GetServices(), c.GetRule()) != "[tag:a] [tag:b] [tcp:22] grants[0]" {
			t.Errorf("what is gained: %v", c)
		}
		if _, err := admin.GetPolicy(ctx, &redoubtv1.GetPolicyRequest{}); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("after a try there is a policy: %v", err)
		}
		if a := apply(&redoubtv1.ApplyPolicyRequest{Source: narrowPolicy, Expect: &none, Comment: "the first"}); a.GetNumber() != 1 || !a.GetApplied() {
			t.Errorf("applied: %v", a)
		}
		// Someone else was faster, in a dry run or for real.
		for _, dry := range []bool{true, false} {
			_, err := admin.ApplyPolicy(ctx, &redoubtv1.ApplyPolicyRequest{Source: shutPolicy, Expect: &none, DryRun: dry})
			if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "policy 1 is in force, not 0") {
				t.Errorf("where none is expected (dry run %v): %v", dry, err)
			}
		}
		for _, bad := range []string{falsePolicy, "", "{", `{"grantz": []}`, strings.Repeat("[", 10000), "\x00\xff", narrowPolicy + "}"} {
			_, err := admin.ApplyPolicy(ctx, &redoubtv1.ApplyPolicyRequest{Source: bad})
			if connect.CodeOf(err) != connect.CodeInvalidArgument || len(api.Diagnostics(err)) == 0 {
				t.Errorf("%.20q: %v", bad, err)
			}
		}
		if p, err := admin.GetPolicy(ctx, &redoubtv1.GetPolicyRequest{}); err != nil || p.GetNumber() != 1 || p.GetSource() != narrowPolicy || p.GetComment() != "the first" {
			t.Errorf("after bad files: %v, %v", p, err)
		}
		same := apply(&redoubtv1.ApplyPolicyRequest{Source: "// moved down\n\n" + narrowPolicy})
		if same.GetNumber() != 2 || same.GetImpact().GetTouched() != 0 || len(same.GetImpact().GetChanges()) != 0 {
			t.Errorf("the same rules elsewhere in the file: %v", same)
		}
		if a := apply(&redoubtv1.ApplyPolicyRequest{Source: shutPolicy}); a.GetNumber() != 3 || a.GetImpact().GetLost() != 1 || a.GetImpact().GetBase() != 2 {
			t.Errorf("shut: %v", a)
		}
		if a := apply(&redoubtv1.ApplyPolicyRequest{Source: shutPolicy}); a.GetApplied() || !a.GetImpact().GetSameText() {
			t.Errorf("again: %v", a)
		}
		if a := apply(&redoubtv1.ApplyPolicyRequest{RollbackTo: 1}); a.GetNumber() != 4 || a.GetImpact().GetGained() != 1 {
			t.Errorf("back: %v", a)
		}
		for q, want := range map[*redoubtv1.ApplyPolicyRequest]connect.Code{
			{RollbackTo: 9}:                     connect.CodeNotFound,
			{RollbackTo: 1, Source: shutPolicy}: connect.CodeInvalidArgument,
		} {
			if _, err := admin.ApplyPolicy(ctx, q); connect.CodeOf(err) != want {
				t.Errorf("%v: %v", q, err)
			}
		}
		h, err := admin.PolicyHistory(ctx, &redoubtv1.PolicyHistoryRequest{})
		if err != nil || len(h.GetVersions()) != 4 {
			t.Fatalf("history: %v, %v", h, err)
		}
		if v := h.GetVersions()[0]; v.GetNumber() != 4 || v.GetRollbackOf() != 1 || !v.GetInForce() || v.GetSize() != uint64(len(narrowPolicy)) {
			t.Errorf("the newest: %v", v)
		}
		if v := h.GetVersions()[3]; v.GetComment() != "the first" || v.GetInForce() || v.GetAppliedBy() == "" {
			t.Errorf("the oldest: %v", v)
		}
		if p, err := admin.GetPolicy(ctx, &redoubtv1.GetPolicyRequest{Number: 3}); err != nil || p.GetSource() != shutPolicy || p.GetInForce() {
			t.Errorf("version 3: %v, %v", p, err)
		}
	})
}

// TestAgentsThatCannotEnforce checks that the status names agents that cannot enforce the policy, and that no traffic passes
// there.
func TestAgentsThatCannotEnforce(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(openPolicy)
		able, old := r.join("able", &redoubtv1.CreateTokenRequest{}), r.join("old", &redoubtv1.CreateTokenRequest{})
		old.lacks = proto.FeatureRules
		s1, s2 := able.attach(nil), old.attach(nil)
		settle()
		time.Sleep(time.Second)
		st, err := r.co.Admin().PolicyStatus(context.Background(), &redoubtv1.PolicyStatusRequest{})
		if err != nil || len(st.GetLaggards()) != 0 || st.GetPolicyAgeMs() < 1000 {
			t.Errorf("status: %v, %v", st, err)
		}
		if u := st.GetUnable(); len(u) != 1 || u[0].GetName() != "old" || !slices.Equal(u[0].GetLacks(), []string{proto.FeatureRules}) {
			t.Errorf("unable: %v", u)
		}
		if nm := s2.netmap(); len(nm.Rules) != 0 || len(nm.Peers) != 0 || !slices.Contains(nm.Requires, proto.FeatureRules) {
			t.Errorf("it was given %+v", nm)
		}
		s1.close()
		s2.close()
	})
}

// TestAccessFollowsFacts checks that a rule appears at both ends when the fact it requires is set, and disappears when the fact
// expires, and that the source is told what is missing while the rule does not hold.
func TestAccessFollowsFacts(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(`{"tagOwners": {"tag:a": [], "tag:b": []}, "postures": {"posture:prod": ["custom:tier == 'prod'"]},
			"grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:22"], "srcPosture": ["posture:prod"]}]}`)
		from := r.join("from", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}}).attach(nil)
		to := r.join("to", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}}).attach(nil)
		other := r.join("other", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}}).attach(nil)
		settle()
		closed := func(when string) {
			t.Helper()
			settle()
			nm := from.netmap()
			if len(nm.Peers) != 0 || len(to.netmap().Peers) != 0 {
				t.Errorf("%s: they know each other", when)
			}
			if len(nm.Withheld) != 1 || !strings.Contains(nm.Withheld[0].Reason, "custom:tier is not set") {
				t.Errorf("%s: the source is told %+v", when, nm.Withheld)
			}
		}
		closed("before")
		_, before := other.counts()
		set := &redoubtv1.SetFactRequest{Node: "from", Name: "custom:tier", Value: "prod", TtlSeconds: 600}
		if _, err := r.co.Admin().SetFact(context.Background(), set); err != nil {
			t.Fatal(err)
		}
		settle()
		if nm := from.netmap(); len(nm.Peers) != 1 || len(nm.Rules) == 0 || len(nm.Withheld) != 0 || len(to.netmap().Peers) != 1 {
			t.Errorf("with the fact: %+v and %+v", nm, to.netmap())
		}
		if !slices.Contains(to.netmap().Requires, proto.FeatureConditions) {
			t.Errorf("it requires %v", to.netmap().Requires)
		}
		time.Sleep(10 * time.Minute)
		closed("after its time")
		if _, after := other.counts(); after != before {
			t.Errorf("a node that it is not about was sent %d updates", after-before)
		}
		from.close()
		to.close()
		other.close()
	})
}

// TestMonitoringEndsByItself checks that the end of an enforcement window changes the netmaps, without any request.
func TestMonitoringEndsByItself(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		r.apply(`{"tagOwners": {"tag:a": []}, "grants": [], "enforcement": [{"src": ["*"], "dst": ["tag:a"], "mode": "monitor", "until": "` + until + `"}]}`)
		s, other := r.join("m", &redoubtv1.CreateTokenRequest{}).attach(nil), r.join("other", &redoubtv1.CreateTokenRequest{}).attach(nil)
		settle()
		if nm := s.netmap(); len(nm.Peers) != 1 || len(nm.Rules) == 0 || nm.Rules[0].Action != proto.Monitor {
			t.Errorf("monitoring: %+v", nm)
		}
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Minute)
		if err := errors.Join(s.renew(), other.renew()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Minute)
		settle()
		if nm := s.netmap(); len(nm.Peers) != 0 || len(nm.Rules) != 0 || s.failed() != nil {
			t.Errorf("afterwards: %+v, %v", nm, s.failed())
		}
		s.close()
		other.close()
	})
}

func TestRoutesReachNetmaps(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		net1, net2 := netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("10.44.0.0/16")
		r.apply(`{"tagOwners": {"tag:a": [], "tag:router": []}, "autoApprovers": {"routes": {"10.44.0.0/16": ["tag:router"]}},
			"grants": [{"src": ["tag:a"], "dst": ["10.32.0.0/11"], "ip": ["tcp:22"]}]}`)
		router := r.machine("router")
		router.facts = &redoubtv1.Facts{Routes: wire.FromRoutes([]netip.Prefix{net1, net2})}
		if err := router.enrol(r.code(&redoubtv1.CreateTokenRequest{Tags: []string{"tag:router"}})); err != nil {
			t.Fatal(err)
		}
		s := r.join("m", &redoubtv1.CreateTokenRequest{}).attach(nil)
		settle()
		want := func(routes ...netip.Prefix) {
			t.Helper()
			settle()
			if nm := s.netmap(); len(nm.Peers) != 1 || !slices.Equal(nm.Peers[0].Routes, routes) {
				t.Errorf("peers %+v, want one with routes %v", nm.Peers, routes)
			}
		}
		want(net2)
		a, err := r.co.Admin().ApproveRoutes(context.Background(), &redoubtv1.ApproveRoutesRequest{Node: "router", Prefixes: []string{net1.String()}})
		if err != nil {
			t.Fatal(err)
		}
		if l := a.GetNode().GetRoutes(); len(l) != 2 || !l[0].GetApproved() || l[0].GetApprovedPolicy() || l[1].GetApproved() || !l[1].GetApprovedPolicy() {
			t.Errorf("%v", l)
		}
		want(net1, net2)
		s.close()
	})
}

func TestOutageOfThePolicy(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		s := r.join("m", &redoubtv1.CreateTokenRequest{}).attach(nil)
		settle()
		if got := s.netmap().Outage; got != (proto.Outage{Grace: DefaultGrace, Posture: DefaultPosture}) {
			t.Errorf("by default: %+v", got)
		}
		for source, want := range map[string]proto.Outage{
			`{"grants": [], "outage": {"grace": "2h", "posture": "5m"}}`: {Grace: 2 * time.Hour, Posture: 5 * time.Minute},
			`{"grants": [], "outage": {"grace": "5m"}}`:                  {Grace: 5 * time.Minute, Posture: 5 * time.Minute},
			`{"grants": [], "outage": {"grace": "0s"}}`:                  {},
			`{"grants": []}`: {Grace: DefaultGrace, Posture: DefaultPosture},
		} {
			r.apply(source)
			settle()
			if got := s.netmap().Outage; got != want {
				t.Errorf("%s: %+v", source, got)
			}
		}
		s.close()
	})
}

func TestLifetimesOfThePolicy(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.apply(`{"grants": [], "tagOwners": {"tag:a": [], "tag:b": [], "tag:c": []},
			"node": {"certLifetime": {"*": "2h", "tag:a": "30m", "tag:b": "20m"}}}`)
		for tags, want := range map[string]time.Duration{"tag:a": 30 * time.Minute, "tag:a tag:b": 20 * time.Minute, "tag:c": 2 * time.Hour} {
			m := r.join("m", &redoubtv1.CreateTokenRequest{Tags: strings.Fields(tags)})
			if got := m.cert.NotAfter.Sub(m.cert.NotBefore); got != want {
				t.Errorf("%s: %v, want %v", tags, got, want)
			}
		}
		m := r.join("m", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		r.apply(`{"grants": []}`)
		s := m.attach(nil)
		time.Sleep(20 * time.Minute)
		if err := s.renew(); err != nil || m.cert.NotAfter.Sub(m.cert.NotBefore) != time.Hour {
			t.Errorf("renewed by a policy that says nothing: %v, %v", m.cert.NotAfter.Sub(m.cert.NotBefore), err)
		}
		s.close()
	})
}

func TestRolesOfUsers(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		ctx, admin := context.Background(), r.co.Admin()
		ann := &redoubtv1.UserRoles{User: "ann@example.com", Roles: []string{"owner", "admin"}}
		if _, err := admin.SetRoles(ctx, &redoubtv1.SetRolesRequest{User: ann}); err != nil {
			t.Fatal(err)
		}
		a, err := admin.ListRoles(ctx, &redoubtv1.ListRolesRequest{})
		if err != nil || len(a.GetUsers()) != 1 || !slices.Equal(a.GetUsers()[0].GetRoles(), []string{"admin", "owner"}) {
			t.Errorf("%v, %v", a, err)
		}
		ann.Roles = []string{"king"}
		if _, err := admin.SetRoles(ctx, &redoubtv1.SetRolesRequest{User: ann}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("a role that there is not: %v", err)
		}
	})
}

// TestWideChanges checks that a change too large to list is counted, that one too large to compare is not compared, and that
// both are applied.
func TestWideChanges(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		names := make([]string, 60)
		for i := range names {
			names[i] = fmt.Sprintf("tag:t%d", i)
			r.join(fmt.Sprintf("n%d", i), &redoubtv1.CreateTokenRequest{Tags: []string{names[i]}})
		}
		policy := func(services string) *redoubtv1.ApplyPolicyRequest {
			owners := `"` + strings.Join(names, `": [], "`) + `": []`
			grants := `{"src": ["*"], "dst": ["tag:t0"], "ip": [` + services + `]}`
			for i := range 250 { // each is a separate change
				grants += fmt.Sprintf(`, {"src": ["tag:t1"], "dst": ["tag:t2"], "ip": ["udp:%d"]}`, 2*i+1)
			}
			return &redoubtv1.ApplyPolicyRequest{Source: `{"tagOwners": {` + owners + `}, "grants": [` + grants + `]}`}
		}
		a, err := r.co.Admin().ApplyPolicy(context.Background(), policy(`"tcp:22"`))
		if err != nil {
			t.Fatal(err)
		}
		m := a.GetImpact()
		if m.GetTouched() != 60 || m.GetGained() != 251 || len(m.GetChanges()) != 200 || m.GetTooWide() != "" {
			t.Errorf("%d touched, %d gained, %d listed, %q", m.GetTouched(), m.GetGained(), len(m.GetChanges()), m.GetTooWide())
		}
		if src := m.GetChanges()[0].GetSrc(); len(src) != 51 || src[50] != "9 more" {
			t.Errorf("sources: %v", src)
		}
		var wide []string
		for i := range 4000 {
			wide = append(wide, fmt.Sprintf(`"tcp:%d"`, 2*i+1))
		}
		a, err = r.co.Admin().ApplyPolicy(context.Background(), policy(strings.Join(wide, ", ")))
		if m := a.GetImpact(); err != nil || !a.GetApplied() || m.GetTouched() != 60 || !strings.Contains(m.GetTooWide(), "60 identities to 1, in 4001 ranges") || len(m.GetChanges()) > 0 {
			t.Errorf("too much to compare: %v, %.500v", err, m)
		}
	})
}
