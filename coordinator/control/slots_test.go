package control

import (
	"slices"
	"testing"
	"testing/synctest"
)

// TestWhoHasBegunGoesFirst checks that, of those waiting for a slot, handshakes already begun precede new ones, otherwise in
// order of arrival.
func TestWhoHasBegunGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slots{free: 1}
		s.take(false)
		var order []string
		wait := func(name string, begun bool) {
			go func() {
				s.take(begun)
				order = append(order, name)
				s.give()
			}()
			synctest.Wait()
		}
		wait("new 1", false)
		wait("begun 1", true)
		wait("new 2", false)
		wait("begun 2", true)
		s.give()
		synctest.Wait()
		if want := []string{"begun 1", "begun 2", "new 1", "new 2"}; !slices.Equal(order, want) {
			t.Errorf("served in the order %v, want %v", order, want)
		}
		if s.free != 1 {
			t.Errorf("%d slots are free at the end, want 1", s.free)
		}
	})
}
