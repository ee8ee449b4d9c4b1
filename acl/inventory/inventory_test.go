package inventory

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

const small = `{
  "users": [{"name": "ann", "email": "ann@example.com", "roles": ["admin"]}, {"name": "bob"}],
  "nodes": [
    {"name": "n1", "ipv4": "100.64.0.1", "ipv6": "fd7a:115c:a1e0::1", "user": "ann", "facts": {"node:os": "linux", "user:mfa": true, "user:authAge": 60}},
    {"name": "n2", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2", "tags": ["tag:web", "tag:db"],
     "advertised": ["10.33.0.0/16", "0.0.0.0/0"], "approved": ["10.33.0.0/16"]}
  ]
}`

func TestParse(t *testing.T) {
	inv, err := Parse([]byte(small), now)
	if err != nil {
		t.Fatal(err)
	}
	if inv.Mesh.V6 != netip.MustParsePrefix("fd7a:115c:a1e0::/48") || inv.Mesh.V4 != DefaultRange {
		t.Errorf("the mesh is %+v", inv.Mesh)
	}
	id, ok := inv.ByName("n1")
	n, known := inv.Node(id)
	if !ok || !known || n.User.Name != "ann@example.com" || !n.User.AuthTime.Equal(now.Add(-time.Minute)) {
		t.Errorf("n1 is %+v", n)
	}
	if f := inv.Traits(id).Facts; f["node:os"] != "linux" || f["user:mfa"] != "true" {
		t.Errorf("facts: %v", f)
	}
	id, _ = inv.ByName("n2")
	if n, _ := inv.Node(id); !n.HasTag("tag:db") || !n.HasTag("tag:web") {
		t.Errorf("n2 is %+v", n)
	}
	if x := inv.Traits(id); len(x.Advertised) != 2 || len(x.Approved) != 1 {
		t.Errorf("routes: %+v", x)
	}
	if r := inv.Roles("ann@example.com"); len(r) != 1 || r[0] != "admin" {
		t.Errorf("roles: %v", r)
	}
	if inv.Logins["bob"] != "bob" || !inv.Now().Equal(now) || len(inv.Nodes) != 2 {
		t.Errorf("%+v", inv)
	}
}

func TestParseRefuses(t *testing.T) {
	change := func(old, new string) string {
		if !strings.Contains(small, old) {
			t.Fatalf("%q is not in the inventory", old)
		}
		return strings.Replace(small, old, new, 1)
	}
	for src, want := range map[string]string{
		"":                                     "ends too early",
		"[]":                                   "want an object",
		"null":                                 "want an object, not null",
		small[:100]:                            "ends too early",
		small + "{}":                           "something follows",
		small + "\x00":                         "something follows",
		change(`"roles"`, `"role"`):            "users[0].role: there is no such key",
		change(`"ipv4"`, `"ip4"`):              "nodes[0].ip4: there is no such key",
		change(`"user": "ann"`, `"name": "x"`): "line 4: nodes[0].name: the key is there twice",
		change(`"users"`, `"nodes": [], "users"`):                "nodes: the key is there twice",
		change(`"admin"`, `"boss"`):                              `no role "boss"`,
		change(`"name": "bob"`, `"name": "ann"`):                 "policies would call",
		change(`"name": "bob"`, `"name": "bob", "email": "ann"`): `would call "ann"`,
		change(`"name": "bob"`, `"name": "ann@example.com"`):     "policies would call",
		change(`{"name": "bob"}`, `{}`):                          "the user has no name",
		change(`"n2"`, `"n1"`):                                   "two nodes named",
		change(`"n2"`, `""`):                                     "is empty",
		change(`"n2"`, `"n\u00002"`):                             "characters",
		change(`"n2"`, `2`):                                      "want a string",
		change(`"n2"`, `"`+strings.Repeat("n", 300)+`"`):         "at most",
		change("100.64.0.2", "100.64.0.1"):                       "belongs to node",
		change("a1e0::2", "a1e0::1"):                             "belongs to node",
		change("100.64.0.2", "10.0.0.1"):                         "outside of 100.64.0.0/10",
		change("fd7a:115c:a1e0::2", "fd7a:115c:a1e1::2"):         "outside of fd7a",
		change("100.64.0.2", "::1"):                              "no such address",
		change("fd7a:115c:a1e0::2", "fe80::1%eth0"):              "no such address",
		change(`"ipv4": "100.64.0.2", `, ``):                     "an address of each family",
		change(`"user": "ann"`, `"user": "eve"`):                 "not among the users",
		change(`"user": "ann", `, ``):                            "neither a user nor tags",
		change(`"tags"`, `"user": "ann", "tags"`):                "a user and tags",
		change(`"tag:db"`, `"db"`):                               "db",
		change(`"tag:db"`, `"tag:web"`):                          "twice",
		change(`"10.33.0.0/16", "0.`, `"10.33.0.1/16", "0.`):     "write 10.33.0.0/16",
		change(`"10.33.0.0/16", "0.`, `"0.0.0.0/0", "0.`):        "there twice",
		change(`"10.33.0.0/16"]`, `"ten"]`):                      "no range",
		change(`"node:os"`, `"nodeos"`):                          "not a fact",
		change(`"linux"`, `["linux"]`):                           "want a string, a number",
		change(`60`, `"long"`):                                   "number of seconds",
		change(`"users"`, `"range": "fd00::/8", "users"`):        "not a range of IPv4",
		change(`"users"`, `"range": 1, "users"`):                 "want a string, not 1",
	} {
		if _, err := Parse([]byte(src), now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in\n%s", err, want, src)
		}
	}
	if _, err := Parse(make([]byte, MaxSize+1), now); err == nil {
		t.Error("more than is read was read")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte(`{"users":[],"nodes":[],"range":"10.0.0.0/8"}`))
	f.Fuzz(func(t *testing.T, src []byte) {
		inv, err := Parse(src, now)
		if err != nil {
			return
		}
		for _, n := range inv.Nodes {
			id, ok := inv.ByName(n.Name)
			if !ok || id != n.ID || !inv.Mesh.Contains(n.Addrs.V4) || !inv.Mesh.Contains(n.Addrs.V6) {
				t.Fatalf("%+v is not as it was read", n)
			}
			if n.User.IsZero() == (len(n.Tags) == 0) {
				t.Fatalf("%+v has not one identity", n)
			}
		}
	})
}

func TestCorpusIsThere(t *testing.T) {
	files, err := os.ReadDir("testdata/fuzz/FuzzParse")
	if err != nil || len(files) == 0 {
		t.Fatalf("the fuzzer starts from nothing: %v", err)
	}
}
