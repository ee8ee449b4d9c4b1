package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/store/bolt"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// populate writes nodes into the data of a stopped coordinator: ann's laptop, and a router with a long name that advertises
// routes.
func populate(t *testing.T, data string) {
	t.Helper()
	st, err := bolt.Open(data, bolt.Options{Migrations: directory.Migrations()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	ctx := context.Background()
	d, err := directory.Open(ctx, st, directory.Config{
		Clock: time.Now, Rand: rand.Reader, Signer: audit.NewSigner("mesh", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))),
		Issue: func(n cert.Node, now time.Time) (cert.Node, error) {
			n.NotBefore, n.NotAfter, n.Raw, n.Serial = now, now.Add(time.Hour), []byte("x"), "1"
			return n, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	routes := []netip.Prefix{netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("2001:db8:1234:5678:9abc:def0:1234:5600/120")}
	for host, spec := range map[string]directory.TokenSpec{
		"laptop":                            {User: "ann@example.com"},
		"router-" + strings.Repeat("x", 50): {Tags: []string{"tag:router"}},
	} {
		secret, err1 := key.NewToken(rand.Reader)
		device, err2 := key.NewDevice(rand.Reader)
		node, err3 := key.NewNode(rand.Reader)
		if err1 != nil || err2 != nil || err3 != nil {
			t.Fatal(err1, err2, err3)
		}
		spec.Public, spec.TTL = secret.Public(), time.Hour
		if _, err := d.CreateToken(ctx, spec); err != nil {
			t.Fatal(err)
		}
		q := directory.EnrollRequest{Token: secret.Public(), Device: device.Device(), Key: node.Public(), Hostname: host, Level: cert.LevelToken}
		q.Reported = directory.Reported{OS: "linux", OSVersion: strings.Repeat("6.", 60), Version: "1.2.3", Hostname: host}
		if spec.User == "" {
			q.Reported.Routes = routes
		}
		if _, err := d.Enroll(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
}

func populated(t *testing.T) (s *shell, stop func() int) {
	t.Helper()
	dir := place(t)
	s, _, _, stop, _ = startedIn(t, dir)
	stop()
	populate(t, s.data)
	s, _, _, stop, _ = startedIn(t, dir)
	return s, stop
}

func TestFactsAndRoutes(t *testing.T) {
	s, stop := populated(t)
	defer stop()
	if out := s.ok("node", "fact", "set", "laptop", "custom:tier", "prod", "--ttl", "24h"); !strings.Contains(out, "custom:tier is set until ") {
		t.Error(out)
	}
	s.ok("node", "fact", "set", "laptop", "custom:team", strings.Repeat("blue ", 20))
	shown := s.ok("node", "show", "laptop")
	for _, want := range []string{"custom:tier", "device:attestation", "attested", "reported", "node:osVersion", "uid "} {
		if !strings.Contains(shown, want) {
			t.Errorf("want %q in\n%s", want, shown)
		}
	}
	n := decode[node](t, s.ok("node", "show", "laptop", "--json"))
	i := slices.IndexFunc(n.Facts, func(f factJSON) bool { return f.Name == "custom:tier" })
	if i < 0 || n.Facts[i].Value != "prod" || n.Facts[i].Expires == "" || n.Facts[i].Set == "" || n.Facts[i].Source != "custom" || !strings.HasPrefix(n.Facts[i].By, "uid ") {
		t.Errorf("%+v", n.Facts)
	}
	if out := s.ok("node", "fact", "unset", "laptop", "custom:tier"); !strings.Contains(out, "custom:tier is no longer set") {
		t.Error(out)
	}
	s.no("has no custom:tier", "node", "fact", "unset", "laptop", "custom:tier")
	s.no("only facts called custom:NAME", "node", "fact", "set", "laptop", "node:os", "windows")
	s.no("want whole seconds", "node", "fact", "set", "laptop", "custom:a", "b", "--ttl", "1ms")
	s.no(`no node "nobody"`, "node", "fact", "set", "nobody", "custom:a", "b")

	router := "router-" + strings.Repeat("x", 50)
	if out := s.ok("node", "routes", router); strings.Count(out, "yes") != 2 || strings.Contains(out, "by hand") {
		t.Error(out)
	}
	if out := s.ok("node", "approve-routes", router, "10.33.0.0/16", "192.0.2.0/24"); strings.Count(out, "by hand") != 2 || !strings.Contains(out, "192.0.2.0/24") {
		t.Error(out)
	}
	r := decode[struct{ Routes []route }](t, s.ok("node", "routes", router, "--json")).Routes
	if len(r) != 3 || !r[0].Advertised || !r[0].Approved || r[1].Advertised || r[2].Approved {
		t.Errorf("%+v", r)
	}
	s.no("want a network", "node", "approve-routes", router, "10.33.0.1")
	s.no("or --none", "node", "approve-routes", router)
	s.no("or --none", "node", "approve-routes", router, "--none", "10.33.0.0/16")
	if out := s.ok("node", "approve-routes", router, "--none"); strings.Contains(out, "by hand") {
		t.Error(out)
	}
	s.ok("node", "routes", "laptop")
}

func TestUserRoles(t *testing.T) {
	s, _, _, stop := start(t)
	defer stop()
	s.ok("user", "role", "list")
	if out := s.ok("user", "role", "set", "ann@example.com", "admin", "auditor"); !strings.Contains(out, "ann@example.com is admin, auditor") {
		t.Error(out)
	}
	if code, _, errs := s.try("", "user", "role", "set", strings.Repeat("long", 20)+"@example.com", "admin", "auditor", "owner", "it-admin", "network-admin"); code != 0 {
		t.Error(errs)
	}
	if l := decode[struct{ Users []userRoles }](t, s.ok("user", "role", "list", "--json")); len(l.Users) != 2 || len(l.Users[0].Roles) != 2 {
		t.Errorf("%+v", l)
	}
	s.ok("user", "role", "list")
	s.no(`role "king": want one of admin`, "user", "role", "set", "ann@example.com", "king")
	if out := s.ok("user", "role", "unset", "ann@example.com"); !strings.Contains(out, "has no role") {
		t.Error(out)
	}
}

func TestPolicyHistoryAndRollback(t *testing.T) {
	s, stop := populated(t)
	defer stop()
	file := filepath.Join(t.TempDir(), "p.hujson")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.ok("policy", "history")
	open := `{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]}` + "\n"
	write(open)
	out := s.ok("policy", "apply", file, "--dry-run")
	for _, want := range []string{"compared with no policy: 2 of 2 nodes are affected", "+ by grants[0] (" + file + ":1)\n  from  ann@example.com", "nothing was applied"} {
		if !strings.Contains(out, want) {
			t.Errorf("want %q in\n%s", want, out)
		}
	}
	s.no("no packet passes", "policy", "show")
	if out := s.ok("policy", "apply", file, "-m", "open to all", "--expect", "0"); !strings.Contains(out, "policy 1 is in force") {
		t.Error(out)
	}
	s.no("policy 1 is in force, not 0", "policy", "apply", file, "--expect", "0")
	write(`{"grants": []}`)
	out = s.ok("policy", "apply", file, "--json", "-m", strings.Repeat("long ", 30))
	applied := decode[struct {
		Applied bool
		Changes impact
	}](t, out)
	if !applied.Applied || applied.Changes.Lost == 0 || applied.Changes.Base != 1 || applied.Changes.Changes[0].Change != "lost" || applied.Changes.Changes[0].Rule != "grants[0]" {
		t.Error(out)
	}
	if out := s.ok("policy", "rollback", "1"); !strings.Contains(out, "policy 3 is in force") {
		t.Error(out)
	}
	if out := s.ok("policy", "show"); out != open {
		t.Error(out)
	}
	if out := s.ok("policy", "show", "2"); !strings.Contains(out, `{"grants": []}`) {
		t.Error(out)
	}
	if out := s.ok("policy", "history"); !strings.Contains(out, "in force") || !strings.Contains(out, "back to version 1") || !strings.Contains(out, "open to all") {
		t.Error(out)
	}
	h := decode[struct{ Versions []policyVersion }](t, s.ok("policy", "history", "--json", "--limit", "2")).Versions
	if len(h) != 2 || h[0].Number != 3 || h[0].RollbackOf != 1 || !h[0].InForce || h[1].InForce {
		t.Errorf("%+v", h)
	}
	if out := s.ok("policy", "status"); !strings.Contains(out, "policy 3: 0 of 2 nodes") || !strings.Contains(out, "applied ") {
		t.Error(out)
	}
	s.no("there is no such policy version", "policy", "rollback", "9")
	s.no("want a number", "policy", "rollback", "last")
	s.no("want a number", "policy", "show", "x")
}

// TestImpactText checks how the effect of a policy is printed, also if there is too much to list and if nothing changes.
func TestImpactText(t *testing.T) {
	for want, m := range map[string]*redoubtv1.PolicyImpact{
		"": {SameText: true},
		"compared with policy 3: 0 of 9 nodes are affected\nno change in the allowed connections\n": {Base: 3, Nodes: 9},
		"compared with policy 3: 5 of 9 nodes are affected\n- by grants[1] (policy 3:7)\n  from  ann, bob\n  to    tag:a\n  for   tcp:22\nand 8 more changes\n": {
			Base: 3, Nodes: 9, Touched: 5, Gained: 4, Lost: 5,
			Changes: []*redoubtv1.ConnectionChange{{Src: []string{"ann", "bob"}, Dst: []string{"tag:a"}, Services: []string{"tcp:22"}, Rule: "grants[1]", Line: 7}},
		},
		"compared with no policy: 9 of 9 nodes are affected\nconnections gained and lost are not listed: too many of them; `policy diff`\nlists more, on an inventory\n": {
			Nodes: 9, Touched: 9, TooWide: "too many of them",
		},
	} {
		var out bytes.Buffer
		p := &program{out: &out, lookup: func(string) (string, bool) { return "", false }}
		p.impact("p.hujson", m)
		if narrow(t, out.String()); out.String() != want {
			t.Errorf("got\n%s\nwant\n%s", out.String(), want)
		}
	}
}

// TestUnmet checks that administrators see which rules a node does not meet, why, and what its owner can do about it.
func TestUnmet(t *testing.T) {
	s, stop := populated(t)
	defer stop()
	policy := filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(policy, []byte(`{
  "tagOwners": {"tag:router": []},
  "postures": {"posture:walled": ["posture:firewall == 'true'", "custom:tier == 'prod'"]},
  "grants": [{"src": ["ann@example.com"], "dst": ["tag:router"], "ip": ["tcp:80"], "srcPosture": ["posture:walled"]}],
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok("policy", "apply", policy)
	show := func() []unmet { return decode[node](t, s.ok("node", "show", "laptop", "--json")).Unmet }
	for end := time.Now().Add(time.Minute); len(show()) == 0 && time.Now().Before(end); { // netmaps follow a moment later
		runtime.Gosched()
	}
	shown := strings.Join(strings.Fields(s.ok("node", "show", "laptop")), " ")
	for _, want := range []string{
		"grants[0] (line 4 of the policy) fails: needs posture:walled: posture:firewall is not set", "posture:firewall: turn on a firewall",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("want %q in\n%s", want, shown)
		}
	}
	if u := show(); len(u) != 1 || u[0].Rule != "grants[0]" || u[0].Line != 4 ||
		!slices.Contains(u[0].Facts, "posture:firewall") || u[0].Reason == "" {
		t.Errorf("%+v", u)
	}
	if u := decode[node](t, s.ok("node", "show", "router-"+strings.Repeat("x", 50), "--json")).Unmet; len(u) != 0 {
		t.Errorf("a rule that is not about it: %+v", u)
	}
}
