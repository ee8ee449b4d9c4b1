package compile_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

// drawAging draws a law in which much depends on how old logins are, and on a monitor rule that ends.
func drawAging(t *rapid.T) law {
	l := drawLaw(t)
	l.file.Postures = maps.Clone(lawPostures)
	for _, name := range []string{"posture:linux", "posture:other", "posture:recent"} {
		l.file.Postures[name] = rapid.SliceOfN(rapid.SampledFrom([]string{
			"user:authAge < 2", "user:authAge <= 1.5", "user:authAge > '3s'", "user:authAge >= 2", "user:authAge == '61'",
			"user:authAge != 4", "user:authAge IN ['1', '60s']", "user:authAge NOT IN [2, 61]", "node:os == 'linux'",
		}), 1, 2).Draw(t, name)
	}
	if l.file.Session != nil {
		l.file.Session = map[string]string{"maxAge": "1m"}
	}
	for i := range l.file.Grants {
		if _, ok := l.file.Grants[i].Auth["age"]; ok {
			l.file.Grants[i].Auth = map[string]any{"age": "1m"}
		}
	}
	for i := range l.file.Enforcement {
		l.file.Enforcement[i].Until = "2026-03-01T12:00:02Z"
	}
	if rapid.Bool().Draw(t, "self") {
		self := lawRule{Src: []string{"*"}, Dst: []string{"autogroup:self"}, IP: []string{"*"}, SrcPosture: []string{"posture:recent"}}
		l.file.Deny = append(l.file.Deny, self)
	}
	for id := range l.inv.All() {
		if n, _ := l.inv.Node(id); !n.User.IsZero() {
			half := rapid.SampledFrom([]int{-1, 0, 1, 4, 115, 117, 118, 119, 120, 122}).Draw(t, "half seconds since login")
			n.User.AuthTime = lawNow.Add(-time.Duration(half) * time.Second / 2)
			mustPut(l.inv, n)
		}
	}
	return l
}

// TestNothingElseAges lets time pass and renews only the Views that NextChange and Until say have changed: then none may be out of
// date at any time.
func TestNothingElseAges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := drawAging(t)
		prog := compile.New(parseAt(t, l.file.bytes()), testMesh)
		ids := slices.Sorted(l.inv.All())
		at := func(now time.Time) *compile.Bound {
			inv := l.inv.Clone()
			inv.SetNow(now)
			return prog.On(inv)
		}
		views, due := map[proto.NodeID]compile.View{}, map[proto.NodeID]time.Time{}
		before := at(lawNow)
		for _, id := range ids {
			views[id] = before.For(id)
			due[id], _ = before.NextChange(id)
		}
		for now := lawNow; now.Before(lawNow.Add(6 * time.Second)); {
			now = now.Add(time.Second / 2)
			after := at(now)
			renew := func(ids []proto.NodeID) {
				for _, id := range ids {
					views[id] = after.For(id)
				}
			}
			for _, id := range ids {
				if !due[id].IsZero() && !due[id].After(now) {
					renew(compile.Affected(before, after, id))
					due[id], _ = after.NextChange(id)
				}
			}
			if slices.ContainsFunc(prog.Until(), now.Equal) {
				renew(ids)
			}
			for _, id := range ids {
				if is := after.For(id); !reflect.DeepEqual(views[id], is) {
					diff := cmp.Diff(views[id], is, addrCmp)
					t.Fatalf("the view of %v changed at %v unannounced:\n%s\n%s\n%s", id, now.Sub(lawNow), diff, l.file.bytes(), l.nodes())
				}
			}
			before = after
		}
	})
}

// TestNextChangeOfEachKindOfRule checks that a login reaches in time the age at which each kind of rule begins or ceases to apply.
func TestNextChangeOfEachKindOfRule(t *testing.T) {
	const change = 61 * time.Second
	for _, rule := range []string{
		`"grants": [{"src": ["ann@example.com"], "dst": ["tag:db"]`,
		`"grants": [{"src": ["100.64.0.1"], "dst": ["four"]`,
		`"grants": [{"src": ["group:eng"], "dst": ["autogroup:self"]`,
		`"grants": [{"src": ["*"], "dst": ["10.1.0.0/16"], "via": ["tag:web"]`,
		`"grants": [{"src": ["autogroup:member"], "dst": ["autogroup:internet"]`,
		`"deny": [{"src": ["ann@example.com"], "dst": ["tag:db"]`,
		`"deny": [{"src": ["fd00:1::1"], "dst": ["four"]`,
		`"deny": [{"src": ["*"], "dst": ["*"]`,
		`"deny": [{"src": ["*"], "dst": ["autogroup:self"]`,
		`"deny": [{"src": ["group:eng"], "dst": ["10.1.0.0/16"]`,
	} {
		for _, condition := range []string{"user:authAge > 60", "user:authAge <= 60"} {
			prog := program(t, fmt.Sprintf(`{%s "postures": {"posture:p": [%q]}, %s, "ip": ["*"], "srcPosture": ["posture:p"]}]}`,
				defs, condition, rule))
			inv := inventory(append(slices.Clone(five), "ann@example.com")...)
			routes := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.0.0/16")}
			inv.SetTraits(4, compile.Traits{Advertised: routes, Approved: routes})
			ann := node(1, "ann@example.com")
			ann.User.AuthTime = lawNow
			mustPut(inv, ann)
			inv.SetNow(lawNow.Add(change - 1))
			before := prog.For(inv, 1)
			inv.SetNow(lawNow.Add(change))
			if cmp.Equal(before, prog.For(inv, 1), addrCmp) {
				t.Errorf("%s if %s: the view never changes", rule, condition)
			}
			inv.SetNow(lawNow)
			at, ok := prog.NextChange(inv, 1)
			for ok && at.Before(lawNow.Add(change)) {
				inv.SetNow(at)
				at, ok = prog.NextChange(inv, 1)
			}
			if !ok || !at.Equal(lawNow.Add(change)) {
				t.Errorf("%s if %s: the change is announced for %v (%v), want %v", rule, condition, at, ok, lawNow.Add(change))
			}
		}
	}
}
