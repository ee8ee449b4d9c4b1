package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/mesh"
)

// between is a policy under which ann reaches web on these services, and web reaches ann by SSH.
func between(services ...string) string {
	return fmt.Sprintf(`{
  "tagOwners": {"tag:web": ["ann@example.com"]},
  "grants": [
    {"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["%s"]},
    {"src": ["tag:web"], "dst": ["ann@example.com"], "ip": ["tcp:22"]},
  ],
}`, strings.Join(services, `", "`))
}

// TestPolicyChangeCutsConnections withdraws a service while connections are open, over both families. It checks that its
// connections are reset at both ends, its packets stop, and what is still allowed loses nothing.
func TestPolicyChangeCutsConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(between("tcp:80", "tcp:81", "udp:80", "udp:81"))
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	ann, web := nodes[0], nodes[1]
	for _, a := range web.addrs() {
		gone, stays := netip.AddrPortFrom(a, 80), netip.AddrPortFrom(a, 81)
		dies, lives := r.tcpFlow(ann.Host, web.Host, gone), r.tcpFlow(ann.Host, web.Host, stays)
		silenced, heard := r.udpFlow(ann.Host, web.Host, gone), r.udpFlow(ann.Host, web.Host, stays)
		back := r.tcpFlow(web.Host, ann.Host, netip.AddrPortFrom(ann.addrs()[map[bool]int{true: 1}[a.Is6()]], 22))
		for _, f := range []*tcpFlow{dies, lives, back} {
			r.lives(f, 20)
		}
		r.arrives(silenced, 20)
		r.arrives(heard, 20)

		began := time.Now()
		r.apply(between("tcp:81", "udp:81"))
		t.Logf("%v: enforced everywhere %v after the command was typed", a, time.Since(began).Round(time.Millisecond))
		r.reset(dies)
		r.silent(silenced)
		r.lives(lives, 20)
		r.lives(back, 20)
		// Once the service is allowed again, old connections stay dead and new ones pass.
		r.apply(between("tcp:80", "tcp:81", "udp:80", "udp:81"))
		r.arrives(silenced, 20)
		r.lives(lives, 20)
		again := r.tcpFlow(ann.Host, web.Host, gone)
		r.lives(again, 20)

		r.losesNothing(heard)
	}
}

// TestRevocation revokes a node with open connections.
func TestRevocation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("bad", "ann@example.com", "web", "tag:web", "other", "tag:web")
	bad, web, other := nodes[0], nodes[1], nodes[2]
	in := r.tcpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	out := r.tcpFlow(web.Host, bad.Host, netip.AddrPortFrom(bad.v6, 80))
	packets := r.udpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	bystander := r.tcpFlow(other.Host, web.Host, netip.AddrPortFrom(web.v6, 80))
	for _, f := range []*tcpFlow{in, out, bystander} {
		r.lives(f, 20)
	}
	r.arrives(packets, 20)

	began := time.Now()
	said := r.admin("node", "revoke", "bad", "--reason", "a test")
	t.Logf("revoked everywhere %v after the command was typed", time.Since(began).Round(time.Millisecond))
	r.contains(said, "bad is revoked", "all 2 nodes")
	r.silent(packets)
	r.reset(in)
	r.reset(out)
	r.lives(bystander, 50)
	bad.awaitState("revoked")
	r.contains(bad.fails(exitFalse, "status"), "revoked")
	r.contains(bad.fails(exitFalse, "up"), "revoked", "new join code")
	for _, n := range []*member{web, other} {
		if st := n.status(); len(st.Peers) != 1 || st.Peers[0].Name == "bad" {
			t.Errorf("%s knows of %+v", n.Name, st.Peers)
		}
	}
	r.contains(r.admin("node", "list"), "revoked")
	// It must not come back by itself, whatever it does.
	if err := bad.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	bad.start()
	bad.awaitState("revoked")
	r.silent(packets)

	// An administrator can let it in again, as a new node.
	r.admin("node", "delete", "bad")
	bad.join(r.token("--user", "ann@example.com"))
	r.settle()
	r.arrives(r.udpFlow(bad.Host, web.Host, netip.AddrPortFrom(web.v4, 81)), 20)
}

// TestDelete deletes a running node.
func TestDelete(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nodes := r.joinAll("gone", "ann@example.com", "web", "tag:web")
	gone, web := nodes[0], nodes[1]
	packets := r.udpFlow(gone.Host, web.Host, netip.AddrPortFrom(web.v4, 80))
	r.arrives(packets, 20)
	r.contains(r.admin("node", "delete", "gone"), "deleted")
	web.awaitStatus("forgets it", func(st mesh.Status) bool { return len(st.Peers) == 0 })
	r.silent(packets)
	gone.awaitState("revoked")
	r.contains(gone.fails(exitFalse, "status"), "new join code")
	r.contains(r.adminFails(1, "node", "show", "gone"), "gone")

	// Its name is free, its addresses rest.
	again := r.machine("again")
	res, err := again.Up(r.ctx, r.token("--user", "bob@example.com"), "--hostname", "gone")
	if err != nil {
		t.Fatal(err)
	}
	r.contains(res, "gone.mesh.internal")
	if st := again.status(); st.V4() == gone.v4 || st.V6() == gone.v6 || st.Node.Name != "gone" {
		t.Errorf("the next node of that name is %+v", st.Node)
	}
}

// TestTokens uses join tokens in every way.
func TestTokens(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	once := r.token("--user", "ann@example.com")
	r.join("first", "--tag", "tag:a", "--tag", "tag:b")
	if st := r.members[0].status(); fmt.Sprint(st.Node.Tags) != "[tag:a tag:b]" || st.Node.User != "" {
		t.Errorf("first is %+v", st.Node)
	}
	second := r.machine("second")
	second.join(once)
	late := r.machine("late")
	r.contains(late.fails(exitFalse, "up", once), "used by another machine", "token create")

	revoked := r.token("--user", "ann@example.com", "--reusable")
	r.admin("token", "revoke", r.tokenNow(func(k tokenJSON) bool { return k.Reusable }))
	r.contains(late.fails(exitFalse, "up", revoked), "revoked", "token create")
	r.contains(r.adminFails(1, "token", "revoke", "nosuch"), "nosuch")

	if st := late.status(); st.State != "down" {
		t.Errorf("late is %s", st.State)
	}

	// One token for many machines of the same name, which are removed after a long absence.
	many := r.token("--tag", "tag:job", "--reusable", "--ephemeral", "--ttl", "24h")
	for i, want := range []string{"late", "late-1", "late-2"} {
		m := late
		if i > 0 {
			m = r.machine(fmt.Sprint("job", i))
		}
		out, err := m.Up(r.ctx, many, "--hostname", "late")
		if err != nil {
			t.Fatal(err)
		}
		r.contains(out, want+".mesh.internal\n")
		var n nodeJSON
		if r.adminJSON(&n, "node", "show", want); !n.Ephemeral || n.Name != want || n.ID != m.status().Node.ID {
			t.Errorf("%s is %+v", want, n)
		}
	}
	r.tokenNow(func(k tokenJSON) bool { return k.Uses == 3 && k.Ephemeral && k.State == "valid" })
	r.contains(r.admin("token", "list"), "tag:job", "reusable", "spent", "revoked")
	r.contains(r.adminFails(1, "token", "create", "--user", "ann@example.com", "--ttl", "1s"), "1s", "want 1m")
	r.contains(r.adminFails(1, "token", "create", "--tag", "web"), "tag:")
	r.contains(r.adminFails(1, "token", "create", "--user", "ann@example.com", "--tag", "tag:web"), "user", "tag")
}

// tokenJSON is a token as `token list --json` prints it.
type tokenJSON struct {
	ID, State           string
	Uses                int
	Reusable, Ephemeral bool
}

func (r *rig) tokens() []tokenJSON {
	r.Helper()
	var list struct{ Tokens []tokenJSON }
	r.adminJSON(&list, "token", "list")
	return list.Tokens
}

// tokenNow returns the id of the only token that matches.
func (r *rig) tokenNow(want func(tokenJSON) bool) string {
	r.Helper()
	var found []string
	for _, k := range r.tokens() {
		if want(k) {
			found = append(found, k.ID)
		}
	}
	if len(found) != 1 {
		r.Fatalf("%d tokens are as wanted: %+v", len(found), r.tokens())
	}
	return found[0]
}
