package policy

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

var mesh = proto.Mesh{
	ID: "m00000000000000000000000000", Domain: "mesh.internal",
	V4: netip.MustParsePrefix("100.87.0.0/16"), V6: netip.MustParsePrefix("fd12:3456:789a::/48"),
}

func nodes(t *testing.T) *compile.Memory {
	t.Helper()
	m := new(compile.Memory)
	for i, n := range []proto.Identity{
		{ID: 1, Name: "laptop", User: proto.User{Issuer: proto.IssuerToken, Subject: "ann@example.com", Name: "ann@example.com"}},
		{ID: 2, Name: "db", Tags: []string{"tag:db"}},
	} {
		n.Addrs = proto.Addrs{V4: netip.AddrFrom4([4]byte{100, 87, 0, byte(16 + i)}), V6: netip.AddrFrom16([16]byte{0xfd, 0x12, 0x34, 0x56, 0x78, 0x9a, 15: byte(16 + i)})}
		if err := m.Put(n); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestStage(t *testing.T) {
	const good = `{"tagOwners": {"tag:db": ["ann@example.com"]},
		"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:5432"]}],
		"tests": [{"src": "ann@example.com", "accept": ["tag:db:5432"], "deny": ["tag:db:22"]}]}`
	s, err := Stage(good, time.Time{}, mesh, nodes(t))
	if err != nil || s.Program == nil {
		t.Fatalf("a good policy is refused: %v\n%s", err, s.Diagnostics.Format("p"))
	}
	if v := s.Program.For(nodes(t), 2); len(v.Rules) != 1 || len(v.Peers) != 1 {
		t.Errorf("the program gives the database %d rules and %d peers", len(v.Rules), len(v.Peers))
	}
	for _, c := range []struct{ name, source, want string }{
		{"test that fails", strings.Replace(good, `"deny": ["tag:db:22"]`, `"deny": ["tag:db:5432"]`, 1), "tests[0]"},
		{"test of ssh that fails", strings.Replace(good, `"tests": [`, `"ssh": [{"action": "accept", "src": ["ann@example.com"], "dst": ["tag:db"], "users": ["admin"]}],
			"sshTests": [{"src": "ann@example.com", "dst": ["tag:db"], "accept": ["root"]}], "tests": [`, 1), "sshTests[0]"},
		{"undefined tag", strings.ReplaceAll(good, `"dst": ["tag:db"]`, `"dst": ["tag:dc"]`), "tag:dc"},
		{"two errors", `{"groups": {"eng": []}, "grantz": []}`, "grantz"},
		{"no policy", ``, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := Stage(c.source, time.Time{}, mesh, nodes(t))
			if !errors.Is(err, ErrRefused) || s.Program != nil || !s.Diagnostics.HasErrors() {
				t.Fatalf("err %v, program %v", err, s.Program)
			}
			if !strings.Contains(s.Diagnostics.Format("p"), c.want) {
				t.Errorf("want %q in\n%s", c.want, s.Diagnostics.Format("p"))
			}
		})
	}
}

func TestLoadFailsClosed(t *testing.T) {
	for _, p := range []*directory.Policy{nil, {Number: 3, Source: `{"grantz": []}`, Applied: time.Unix(0, 0)}} {
		program, err := Load(p, mesh)
		if (err != nil) != (p != nil) {
			t.Errorf("policy %v: %v", p, err)
		}
		if v := program.For(nodes(t), 1); len(v.Rules)+len(v.Peers) != 0 {
			t.Errorf("policy %v gives %+v", p, v)
		}
	}
}
