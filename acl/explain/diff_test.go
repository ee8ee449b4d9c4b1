package explain

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/acl/inventory"
)

const mesh = `{"users": [{"name": "ann"}, {"name": "bob"}], "nodes": [
  {"name": "a", "ipv4": "100.64.0.1", "ipv6": "fd7a:115c:a1e0::1", "user": "ann"},
  {"name": "b", "ipv4": "100.64.0.2", "ipv6": "fd7a:115c:a1e0::2", "user": "bob"},
  {"name": "r", "ipv4": "100.64.0.3", "ipv6": "fd7a:115c:a1e0::3", "tags": ["tag:r"],
   "advertised": ["10.0.0.0/8"], "approved": ["10.0.0.0/8"]}]}`

func parsed(t *testing.T, grants string) *acl.Policy {
	t.Helper()
	p, found := acl.Parse("policy", []byte(`{"tagOwners": {"tag:r": []}, "grants": [`+grants+`]}`))
	if p == nil {
		t.Fatal(found)
	}
	return p
}

func TestDiff(t *testing.T) {
	inv, err := inventory.Parse([]byte(mesh), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	none := parsed(t, "")
	for grants, want := range map[string]string{
		`{"src": ["ann@"], "dst": ["tag:r"], "ip": ["tcp:80-90"]}`:            "[ann] [tag:r] [tcp:80-90]",
		`{"src": ["autogroup:member"], "dst": ["tag:r"], "ip": ["icmp:*"]}`:   "[autogroup:member] [tag:r] [icmp]",
		`{"src": ["ann@"], "dst": ["10.1.0.0/16"], "ip": ["tcp:22"]}`:         "[ann] [10.1.0.0/16] [tcp:22]",
		`{"src": ["ann@"], "dst": ["100.64.0.3"], "ip": ["udp:53"]}`:          "[ann] [tag:r] [udp:53 over IPv4 only]",
		`{"src": ["ann@"], "dst": ["autogroup:internet"], "ip": ["tcp:443"]}`: "",
	} {
		for _, gained := range []bool{true, false} {
			before, after := none, parsed(t, grants)
			if !gained {
				before, after = after, before
			}
			got := ""
			found, err := diffOf(before, after, inv, 1e6)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range found.Changes {
				if c.Gained != gained || c.Rule.Path != "grants[0]" {
					t.Errorf("%s: %+v", grants, c)
				}
				got += sides(c)
			}
			if got != want {
				t.Errorf("%s: %s, want %s", grants, got, want)
			}
		}
	}
}

// TestDiffIsNotAboutText checks that two ways to write the same policy are no difference.
func TestDiffIsNotAboutText(t *testing.T) {
	inv, err := inventory.Parse([]byte(mesh), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	a := parsed(t, `{"src": ["ann@", "bob@"], "dst": ["tag:r"], "ip": ["tcp:80-90"]}`)
	b := parsed(t, `{"src": ["autogroup:member"], "dst": ["tag:r"], "ip": ["tcp:80-85"]}, {"src": ["autogroup:member"], "dst": ["tag:r"], "ip": ["tcp:86-90"]}`)
	if got, err := diffOf(a, b, inv, 1e6); err != nil || len(got.Changes) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestDiffIsBounded checks that a comparison that is too wide is refused as a whole, and that one that just fits is not. Rules
// that do not change do not count.
func TestDiffIsBounded(t *testing.T) {
	inv, err := inventory.Parse([]byte(mesh), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	same := `{"src": ["*"], "dst": ["*"], "ip": ["udp:1-65535"]}`
	a, b := parsed(t, same), parsed(t, same+`, {"src": ["*"], "dst": ["tag:r"], "ip": ["tcp:22", "icmp:*"]}`)
	const all = 3 * 1 * 2 // every node to the router, for two services
	got, err := diffOf(a, b, inv, all)
	if err != nil || got.Touched != 3 || len(got.Changes) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	got, err = diffOf(a, b, inv, all-1)
	var wide *TooWideError
	want := TooWideError{Sources: 3, Destinations: 1, Services: 2, Connections: all, Most: all - 1}
	if !errors.As(err, &wide) || got.Changes != nil || got.Touched != 3 || *wide != want {
		t.Fatalf("%+v, %v", got, err)
	}
	if !strings.Contains(err.Error(), "that is 6 to compare, and 5 is the most, so none was compared") {
		t.Error(err)
	}
	if got, err := diffOf(a, a, inv, 0); err != nil || got.Touched != 0 || got.Changes != nil {
		t.Errorf("the same: %+v, %v", got, err)
	}
}

func diffOf(a, b *acl.Policy, inv *inventory.Inventory, most int) (Difference, error) {
	return Diff(inv.Program(a), inv.Program(b), inv, most)
}

func sides(c Change) string { return fmt.Sprint(c.Src, " ", c.Dst, " ", c.Services) }
