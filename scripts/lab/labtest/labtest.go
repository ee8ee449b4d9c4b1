//go:build linux

package labtest

import (
	"errors"
	"os"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// refused is why worlds cannot be created here; Main sets it before any test runs.
var refused error

// Main runs the tests, in a user namespace if necessary.
func Main(m *testing.M) int {
	refused = lab.Enter()
	return m.Run()
}

// World creates a world and closes it when the test ends. If that is impossible, the test is skipped, or fails if
// REDOUBT_REQUIRE_ROOT=1.
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

// Need skips or fails a test in the same way if worlds cannot be created.
func Need(t testing.TB) {
	t.Helper()
	need(t, refused)
}

// TUN does the same if the test may not open tunnel devices.
func TUN(t testing.TB) {
	t.Helper()
	need(t, lab.TUN())
}

// Users does the same if the test may not run programs as other users.
func Users(t testing.TB) {
	t.Helper()
	if lab.Entered() {
		need(t, errors.New("a user namespace has no other user"))
	}
}

// Installed does the same if a program that the test needs is not installed: missing names it.
func Installed(t testing.TB, missing error) {
	t.Helper()
	need(t, missing)
}

// need skips or fails a test that cannot run here, naming the test and the reason.
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
