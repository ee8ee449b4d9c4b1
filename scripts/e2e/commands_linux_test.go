package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// Exit codes of redoubt, see `redoubt --help`.
const (
	exitFalse    = 1
	exitUsage    = 2
	exitNoAgent  = 3
	exitNoAccess = 4
)

// nobody is a user without privileges.
const nobody = 65534

// fields checks that a JSON object has these fields, each of the same type as the example.
func (r *rig) fields(where string, got map[string]any, want map[string]any) {
	r.Helper()
	for name, kind := range want {
		v, ok := got[name]
		switch k := kind.(type) {
		case map[string]any:
			inner, isMap := v.(map[string]any)
			if !isMap {
				r.Errorf("%s: %s is %v, want an object", where, name, v)
				continue
			}
			r.fields(where+"."+name, inner, k)
		default:
			if !ok || fmt.Sprintf("%T", v) != fmt.Sprintf("%T", kind) {
				r.Errorf("%s: %s is %v (%T, there %v), want a %T", where, name, v, v, ok, kind)
			}
		}
	}
}

// TestStatus checks what `redoubt status` prints about two nodes that talk to each other.
func TestStatus(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(rules)
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	ann, web := nodes[0], nodes[1]
	ann.do("ping", "web", "-c", "1")

	out := ann.do("status", "--json")
	var got map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	r.fields("status", got, map[string]any{
		"state": "", "policyVersion": "", "problems": []any{},
		"node": map[string]any{
			"id": "", "name": "", "addresses": []any{}, "user": "", "tags": []any{}, "certificateExpires": "",
		},
		"coordinator": map[string]any{"connected": true, "lastHeard": ""},
		"peers":       []any{},
	})
	peers := got["peers"].([]any)
	if len(peers) != 1 {
		t.Fatalf("%d peers\n%s", len(peers), out)
	}
	r.fields("status.peers", peers[0].(map[string]any), map[string]any{
		"id": "", "name": "", "addresses": []any{}, "user": "", "tags": []any{},
		"path": "", "endpoint": "", "lastHandshake": "", "rxBytes": 0.0, "txBytes": 0.0,
	})

	st := ann.status()
	p := st.Peers[0]
	switch {
	case st.State != "running", st.Node.Name != "ann", st.Node.User != "ann@example.com", len(st.Node.Tags) != 0,
		!st.Coordinator.Connected, time.Since(st.Coordinator.LastHeard) > time.Minute, st.PolicyVersion == "",
		time.Until(st.Node.CertificateExpires) < 50*time.Minute, len(st.Problems) != 0:
		t.Errorf("ann's status: %+v", st)
	case p.ID != web.id, p.Name != "web", !slices.Equal(p.Tags, []string{"tag:web"}), !slices.Equal(p.Addresses, web.addrs()),
		p.Path != "direct", p.RxBytes == 0, p.TxBytes == 0, time.Since(p.LastHandshake) > time.Minute:
		t.Errorf("ann's peer: %+v", p)
	}
	if at, err := netip.ParseAddrPort(p.Endpoint); err != nil || at.Addr() != web.Host.V4() && at.Addr() != web.Host.V6() {
		t.Errorf("ann sends to web at %q", p.Endpoint)
	}

	tunnel, _ := peers[0].(map[string]any)["tunnel"].(map[string]any)
	r.fields("status.peers.tunnel", tunnel, map[string]any{
		"publicKey": "", "keySince": "", "keys": 1.0, "sessions": 1.0, "sessionSince": "", "handshakes": 1.0, "unanswered": 0.0,
		"drops": map[string]any{},
	})
	if tunnel["keys"] != 1.0 || tunnel["sessions"] == 0.0 || tunnel["handshakes"] == 0.0 {
		t.Errorf("ann's tunnel: %v", tunnel)
	}
	tunnels := ann.do("status", "--tunnels")
	r.contains(tunnels, "node key", "HANDSHAKES", "web")
	r.narrow(tunnels)
	text := ann.do("status")
	r.contains(text, "running", "ann.mesh.internal", ann.id, ann.v4.String(), ann.v6.String(), "ann@example.com", "connected", r.URL(),
		"web", web.v4.String(), "tag:web", "direct")
	r.narrow(text, r.admin("node", "list"), r.admin("token", "list"), r.admin("policy", "status"))
}

// narrow checks that texts fit into 80 columns and have no colour, which is only for terminals.
func (r *rig) narrow(texts ...string) {
	r.Helper()
	for _, text := range texts {
		for line := range strings.Lines(text) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
				r.Errorf("%d columns: %s", n, line)
			}
		}
		if strings.Contains(text, "\x1b") {
			r.Errorf("escape sequences: %q", text)
		}
	}
}

// TestCommandsOfANode runs every command of a node that a person may type, correctly and incorrectly.
func TestCommandsOfANode(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(rules)
	fresh := r.machine("fresh")
	r.contains(fresh.fails(exitFalse, "status"), "down", "redoubt up CODE")
	r.contains(fresh.fails(exitFalse, "up"), "not in a mesh", "redoubt up CODE", "token create")
	fresh.do("down") // it is down already: no error
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	ann, web := nodes[0], nodes[1]

	for _, who := range []string{web.v4.String(), web.v6.String(), netip.AddrPortFrom(web.v4, 8080).String(), netip.AddrPortFrom(web.v6, 8080).String()} {
		r.contains(ann.do("whois", who), "web", web.id, "tag:web", web.v4.String(), web.v6.String())
	}
	r.contains(web.do("whois", ann.v4.String()), "ann@example.com", ann.id)
	r.contains(ann.do("whois", ann.v4.String()), "ann@example.com")
	r.contains(ann.do("whois", web.v4.String(), "--json"), `"name": "web"`, `"id": "`+web.id+`"`)
	r.contains(ann.fails(exitFalse, "whois", "192.0.2.1"), "192.0.2.1", "redoubt status")
	r.contains(ann.fails(exitUsage, "whois", "web"), "address")

	for _, who := range []string{"web", "web.mesh.internal", web.id, web.v4.String(), web.v6.String()} {
		r.contains(ann.do("ping", who, "-c", "2", "-i", "200ms"), "web", "seq 1", "seq 2", "direct", "2 sent, 2 answered")
	}
	r.contains(ann.do("ping", "web", "-c", "1", "--json"), `"peer":"web"`, `"lost":false`)
	r.contains(web.fails(exitFalse, "ping", "ann", "-c", "1"), "lost", "denied on this node", "0 answered")
	r.contains(ann.fails(exitFalse, "ping", "elsewhere", "-c", "1"), "elsewhere", "redoubt status")

	r.contains(ann.do("version"), "redoubt ", "linux/")
	for _, args := range [][]string{{"no-such"}, {"status", "--no-such"}, {"status", "surplus"}, {"ping"}, {"whois"}, {"up", "a", "b"}, {"ping", "web", "-c", "many"}} {
		if text := ann.fails(exitUsage, args...); !strings.HasPrefix(text, "redoubt: ") {
			t.Errorf("redoubt %v: %q", args, text)
		}
	}
	r.contains(ann.fails(exitNoAgent, "status", "--socket", "/run/redoubt/other.sock"), "/run/redoubt/other.sock", "start it", "--socket")

	watch := r.watch(ann)
	r.waitFor(watch, `{"state":"running"`)
	ann.do("down")
	r.waitFor(watch, `{"state":"down"`)
	ann.do("down")
	r.contains(ann.fails(exitFalse, "status"), "down")
	if st := ann.status(); st.State != "down" || st.Node.ID != ann.id || len(st.Peers) != 0 {
		t.Errorf("down, and the status is %+v", st)
	}
	r.contains(ann.fails(exitFalse, "ping", "web", "-c", "1"), "down", "redoubt up")
	r.contains(ann.do("up"), "ann.mesh.internal", ann.v4.String(), ann.v6.String())
	ann.do("up") // it is up already
	r.await("ann is back", func() error {
		_, err := ann.Run(r.ctx, "ping", "web", "-c", "1")
		return err
	})
	if st := ann.status(); st.V4() != ann.v4 || st.V6() != ann.v6 || st.Node.ID != ann.id {
		t.Errorf("ann is back as %+v", st.Node)
	}
}

// waitFor waits until a program has written a text.
func (r *rig) waitFor(p *lab.Process, text string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	if err := p.WaitFor(ctx, text); err != nil {
		r.Fatal(err)
	}
}

// watch starts `redoubt status --watch --json`, which runs until it is stopped.
func (r *rig) watch(m *member) *lab.Process {
	r.Helper()
	p, err := m.Host.Start(lab.Command{Name: "watch", Path: r.Program("redoubt"), Args: []string{"status", "--watch", "--json"}})
	if err != nil {
		r.Fatal(err)
	}
	r.processes = append(r.processes, p)
	return p
}

// TestCommandsOfTheCoordinator runs every command of the coordinator.
func TestCommandsOfTheCoordinator(t *testing.T) {
	t.Parallel()
	r := newRig(t, "--domain", "corp.example", "--range", "100.77.0.0/20")
	r.contains(r.admin("policy", "status"), "no policy", "policy apply")
	r.apply(rules)
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	ann, web := nodes[0], nodes[1]
	mesh := netip.MustParsePrefix("100.77.0.0/20")
	if !mesh.Contains(ann.v4) || !mesh.Contains(web.v4) || ann.v4 == web.v4 {
		t.Errorf("the addresses %v and %v are not of the range", ann.v4, web.v4)
	}

	r.contains(r.admin("node", "list"), "ann", "ann@example.com", ann.v4.String(), "connected", "web", "tag:web", web.v4.String())
	var list struct{ Nodes []nodeJSON }
	r.adminJSON(&list, "node", "list")
	if len(list.Nodes) != 2 {
		t.Errorf("%d nodes", len(list.Nodes))
	}
	for _, who := range []string{"web", web.id, web.v4.String(), web.v6.String()} {
		var n nodeJSON
		r.adminJSON(&n, "node", "show", who)
		if n.ID != web.id || n.Name != "web" || !slices.Equal(n.Tags, []string{"tag:web"}) || !slices.Equal(n.Addresses, web.addrs()) ||
			n.State != "active" || !n.Connected {
			t.Errorf("node show %s: %+v", who, n)
		}
	}
	r.contains(r.admin("node", "show", "web"), web.id, "tag:web", web.v4.String(), web.Host.V4().String(), "certificate")
	r.contains(r.adminFails(1, "node", "show", "elsewhere"), "elsewhere")
	r.contains(r.adminFails(1, "node", "revoke", "elsewhere"), "elsewhere")
	r.contains(r.adminFails(1, "node", "delete", "elsewhere"), "elsewhere")
	r.contains(ann.do("status"), "ann.corp.example")

	r.contains(r.admin("policy", "show"), "group:eng", "// Engineers reach the web")
	r.contains(r.admin("policy", "status"), "2 of 2 nodes")
	r.contains(r.admin("version"), "redoubt-coordinator ", "linux/")
	r.checkPolicies()
	for _, args := range [][]string{{"no-such"}, {"node", "show"}, {"token", "create", "--ttl", "never"}, {"token", "create", "--no-such"}, {"token", "revoke"}} {
		if text := r.adminFails(1, args...); !strings.HasPrefix(text, "redoubt-coordinator: ") {
			t.Errorf("redoubt-coordinator %v: %q", args, text)
		}
	}
	r.contains(r.adminFails(1, "node", "list", "--admin-socket", "/run/no.sock"), "/run/no.sock", "serve", "--admin-socket")
	starter, err := os.ReadFile(filepath.Join(r.Data(), "policy.example.hujson"))
	if err != nil || !bytes.Contains(starter, []byte("//")) {
		t.Errorf("the starter policy: %v\n%s", err, starter)
	}
	r.admin("policy", "check", filepath.Join(r.Data(), "policy.example.hujson"))
	if info, err := os.Stat(filepath.Join(r.Data(), "admin.sock")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket for administrators: %v, %v", info, err)
	}
}

// nodeJSON is a node as `node list --json` and `node show --json` print it.
type nodeJSON struct {
	ID, Name, User, State string
	Addresses             []netip.Addr
	Tags                  []string
	Connected, Ephemeral  bool
}

// checkPolicies applies policies with errors, and checks that all errors are reported with their positions, and that nothing
// changes.
func (r *rig) checkPolicies() {
	r.Helper()
	bad := filepath.Join(r.World.Dir, "bad.hujson")
	text := "{\n  \"grants\": [\n    {\"src\": [\"group:none\"], \"dst\": [\"tag:none\"], \"ip\": [\"tcp:99999\"]},\n  ],\n  \"surplus\": 1,\n}\n"
	if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
		r.Fatal(err)
	}
	for _, command := range []string{"check", "apply"} {
		said := r.adminFails(1, "policy", command, bad)
		r.contains(said, bad+":3:", bad+":5:", "group:none", "tag:none", "99999", "surplus", "error")
	}
	failing := strings.Replace(rules, `"deny": ["tag:db:5432"]`, `"deny": ["tag:web:8080"]`, 1)
	if err := os.WriteFile(bad, []byte(failing), 0o600); err != nil {
		r.Fatal(err)
	}
	r.contains(r.adminFails(1, "policy", "apply", bad), "tests[0]")
	r.contains(r.admin("policy", "show"), `"deny": ["tag:db:5432"]`)
	r.contains(r.adminFails(1, "policy", "check", filepath.Join(r.World.Dir, "none.hujson")), "none.hujson")
}

// TestWaysToGiveTheCode joins with the code as an argument, on standard input and in a file.
func TestWaysToGiveTheCode(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code := r.token("--user", "ann@example.com", "--reusable")
	file := filepath.Join(r.World.Dir, "code")
	if err := os.WriteFile(file, []byte(code+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]lab.Command{
		"argument": {Args: []string{"up", code}},
		"stdin":    {Args: []string{"up", "-"}, Stdin: strings.NewReader(code + "\n")},
		"file":     {Args: []string{"up", "--code-file", file}},
		"variable": {Args: []string{"up"}, Env: []string{"REDOUBT_CODE_FILE=" + file, "REDOUBT_HOSTNAME=Some Host_Name"}},
	} {
		m := r.machine(name)
		res, err := m.Exec(r.ctx, c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		st := m.status()
		want := map[bool]string{false: name, true: "some-host-name"}[name == "variable"]
		// Standard output has what scripts need: the name and the addresses.
		if lines := strings.Fields(res.Out); !slices.Equal(lines, []string{want + ".mesh.internal", st.V4().String(), st.V6().String()}) {
			t.Errorf("%s: printed %q", name, res.Out)
		}
	}
	m := r.members[0]
	r.contains(m.fails(exitUsage, "up", code, "--code-file", file), "not both")
	r.contains(m.fails(exitUsage, "up", "--code-file", file+".none"), "code.none")
	// A node that is already in the mesh does not use up another code.
	r.contains(m.fails(0, "up", r.token("--user", "bob@example.com")), "already in the mesh", "not used")
	r.contains(m.fails(0, "up", "--hostname", "other"), "already in the mesh", "keeps that name")
}

// TestCodesThatAreNone gives invalid join codes, and checks that the error says what is wrong, and that nothing of the code
// is stored or repeated.
func TestCodesThatAreNone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.machine("m")
	code := r.token("--user", "ann@example.com")
	damaged := []byte(code)
	damaged[len(damaged)/2] ^= 3
	for _, c := range []struct{ name, text, says string }{
		{"truncated", code[:len(code)-9], "its end is missing"},
		{"short", "redoubt1-", "join code"},
		{"damaged", string(damaged), "damaged"},
		{"of a later version", "redoubt2-" + code[9:], "newer"},
		{"something else", "https://example.com/", "not one"},
		{"empty", "", "join code"},
		{"oversized", "redoubt1-" + strings.Repeat("A", 64<<10), "too long"},
		{"oversized twice", code + code + strings.Repeat(" x", 2000), "too long"},
	} {
		said := m.failsAs(exitUsage, lab.Command{Args: []string{"up", "-"}, Stdin: strings.NewReader(c.text)})
		if !strings.Contains(said, c.says) || strings.Count(said, "\n") != 1 {
			t.Errorf("%s: it says\n%s", c.name, said)
		}
	}
	if st := m.status(); st.State != "down" {
		t.Errorf("the node is %s", st.State)
	}
	m.join(code) // none of these has used it up

	// A valid code of a mesh whose root differs from the coordinator's.
	other := r.machine("other")
	parsed, err := join.Parse(r.token("--user", "ann@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	parsed.Root[0] ^= 1
	swapped, err := parsed.Encode()
	if err != nil {
		t.Fatal(err)
	}
	r.keep(swapped)
	r.contains(other.fails(exitFalse, "up", swapped), "root", fmt.Sprintf("%x", parsed.Root[:6]), "in between", "another mesh")
	if st := other.status(); st.State != "down" || st.Node.ID != "" {
		t.Errorf("the node is %+v", st)
	}
	parsed.Root[0] ^= 1
	if good, err := parsed.Encode(); err != nil {
		t.Error(err)
	} else {
		other.join(good) // the secret was not revealed to the wrong coordinator
	}
	// A node of this mesh must not be moved to another by mistake.
	r.contains(other.fails(exitFalse, "up", swapped), "another mesh", "redoubt down")
	other.awaitState("running")
}

// TestUpHasATimeout joins while the coordinator is away.
func TestUpHasATimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code := r.token("--user", "ann@example.com")
	m := r.machine("m")
	if err := r.Serve.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	said := m.fails(exitFalse, "up", code, "--timeout", "1s")
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v", took)
	}
	r.contains(said, "not up after 1s", "redoubt status")
	if st := m.status(); st.State != "enrolling" {
		t.Errorf("the node is %s", st.State)
	}
	r.startCoordinator()
	m.awaitState("running") // it continued by itself
}

// TestLocalSocket checks the permissions on a node: everyone may look; root and the operator may make changes.
func TestLocalSocket(t *testing.T) {
	t.Parallel()
	labtest.Users(t)
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("a", "ann@example.com", "b", "tag:b")
	a, b := nodes[0], nodes[1]
	as := func(m *member, args ...string) (mesh.Result, error) {
		return m.Exec(r.ctx, lab.Command{Args: args, UID: nobody})
	}
	for _, args := range [][]string{{"status"}, {"status", "--json"}, {"whois", b.v4.String()}, {"ping", "b", "-c", "1"}} {
		if _, err := as(a, args...); err != nil {
			t.Errorf("a user without rights may not look: %v", err)
		}
	}
	code := r.token("--user", "ann@example.com")
	for _, args := range [][]string{{"down"}, {"up"}, {"up", code}} {
		r.contains(a.failsAs(exitNoAccess, lab.Command{Args: args, UID: nobody}), "root", "operator")
	}
	if st := a.status(); st.State != "running" {
		t.Errorf("a is %s", st.State)
	}
	if err := a.Agent.Stop(r.ctx); err != nil {
		t.Fatal(err)
	}
	a.start("--operator", fmt.Sprint(nobody))
	if _, err := as(a, "down"); err != nil {
		t.Errorf("the operator may not: %v", err)
	}
	if st := a.status(); st.State != "down" {
		t.Errorf("a is %s", st.State)
	}
	if _, err := as(a, "up"); err != nil {
		t.Errorf("the operator may not: %v", err)
	}
	// Only root may use the coordinator's socket.
	_, err := r.VM.Run(r.ctx, lab.Command{
		Path: r.Program("redoubt-coordinator"), Args: []string{"node", "list", "--data", r.Data()}, UID: nobody,
	})
	if err == nil || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("a user without rights asked the coordinator: %v", err)
	}
}

// TestHolders starts a second coordinator on the same data and a second agent on the same state, and checks that both fail at
// once and name the holder.
func TestHolders(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	m := r.join("m", "--user", "ann@example.com")
	for _, c := range []struct {
		host    *lab.Host
		command lab.Command
		holder  *lab.Process
		says    []string
	}{
		{r.VM, lab.Command{Path: r.Program("redoubt-coordinator"), Args: []string{"serve", "--data", r.Data(), "--listen", ":444", "--url", r.URL()}}, r.Serve, []string{r.Data()}},
		{r.VM, lab.Command{Path: r.Program("redoubt-coordinator"), Args: []string{"serve", "--data", r.Data(), "--listen", ":443", "--url", r.URL()}}, r.Serve, []string{r.Data()}},
		{m.Host, lab.Command{Path: r.Program("redoubt"), Args: []string{"agent", "--state", m.State(), "--socket", "/run/other.sock", "--tun", "redoubt1"}}, m.Agent, []string{m.State(), "--state"}},
		{m.Host, lab.Command{Path: r.Program("redoubt"), Args: []string{"agent", "--state", m.State() + "-other"}}, nil, []string{"/run/redoubt/agent.sock", "another agent", "--socket"}},
	} {
		began := time.Now()
		_, err := c.host.Run(r.ctx, c.command)
		if err == nil {
			t.Fatalf("a second one runs: %v", c.command.Args)
		}
		if took := time.Since(began); took > patience {
			t.Errorf("%v: took %v", c.command.Args, took)
		}
		r.contains(err.Error(), c.says...)
		if c.holder != nil {
			r.contains(err.Error(), fmt.Sprint(c.holder.PID()))
		}
	}
	if st := m.status(); st.State != "running" {
		t.Errorf("m is %s", st.State)
	}
	r.admin("node", "list")
}

// TestVersionsThatDoNotMeet checks that an agent with incompatible protocol versions gets a clear error.
func TestVersionsThatDoNotMeet(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	code, err := join.Parse(r.token("--user", "ann@example.com"))
	if err != nil {
		t.Fatal(err)
	}
	host, err := r.World.AddHost("later", r.LAN)
	if err != nil {
		t.Fatal(err)
	}
	for _, lowest := range []uint32{proto.ProtocolMax + 1, 99} {
		refusal, err := r.helloOf(host, code, lowest, 99)
		if err != nil {
			t.Fatal(err)
		}
		r.contains(refusal, fmt.Sprintf("%d to %d", proto.ProtocolMin, proto.ProtocolMax), fmt.Sprintf("%d to 99", lowest), "update")
	}
	// An agent that also speaks newer versions is accepted.
	if _, err := r.helloOf(host, code, proto.ProtocolMin, 99); !errors.Is(err, errChallenged) {
		t.Errorf("an agent of versions %d to 99: %v", proto.ProtocolMin, err)
	}
}
