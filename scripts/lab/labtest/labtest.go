//go:build linux

package labtest

import (
	"errors"
	"os"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// refused is why there are no worlds here; Main sets it before any test runs.
var refused error

// Main runs the tests, in a user namespace if it takes that.
func Main(m *testing.M) int {
	refused = lab.Enter()
	return m.Run()
}

// World makes a world and closes it when the test is over. Where that is not possible the test is skipped by name, or
// fails where REDOUBT_REQUIRE_ROOT=1.
func World(t testing.TB) *lab.World {
	t.Helper()
	Need(t)
	w, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Need ends a test for which there can be no worlds, in the same way.
func Need(t testing.TB) {
	t.Helper()
	need(t, refused)
}

// TUN sees to it that the test may open tunnel devices, in the same way.
func TUN(t testing.TB) {
	t.Helper()
	need(t, lab.TUN())
}

// Users sees to it that the test may run programs as other users, in the same way.
func Users(t testing.TB) {
	t.Helper()
	if lab.Entered() {
		need(t, errors.New("a user namespace has no other user"))
	}
}

// Installed sees to it that a program is there that the test runs, in the same way: missing says which one is not.
func Installed(t testing.TB, missing error) {
	t.Helper()
	need(t, missing)
}

// need ends a test that cannot run here. Which one and why is always said.
func need(t testing.TB, refused error) {
	t.Helper()
	if refused == nil {
		return
	}
	const how = "left out: %s: %v (sudo go test -run '^%s$')"
	if os.Getenv("REDOUBT_REQUIRE_ROOT") == "1" {
		t.Fatalf(how, t.Name(), refused, t.Name())
	}
	t.Skipf(how, t.Name(), refused, t.Name())
}

// LAN adds a LAN to the world.
func LAN(t testing.TB, w *lab.World, name string) *lab.LAN {
	t.Helper()
	l, err := w.LAN(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Host adds a host to the world.
func Host(t testing.TB, w *lab.World, name string, lans ...*lab.LAN) *lab.Host {
	t.Helper()
	h, err := w.AddHost(name, lans...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}
