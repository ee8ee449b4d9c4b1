package main

import "testing"

func TestSpareMemory(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		what     string
		resident uint64
		since    uint64 // allocated
		want     bool
	}{
		{"nothing to be had", 210 * mb, 0, false},
		{"a little less than a quarter", 249 * mb, 0, false},
		{"a burst is over", 400 * mb, mb, true},
		{"a burst goes on", 400 * mb, 100 * mb, false},
	} {
		m := memory{live: 200 * mb, resident: c.resident, allocated: 5000*mb + c.since}
		if got := m.spare(memory{allocated: 5000 * mb}); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
	if small := (memory{live: mb, resident: 16 * mb}); small.spare(memory{}) {
		t.Error("a small program has 15 MB to spare: that is not worth it")
	}
}

// TestReadMemory checks that the runtime knows all metrics: an unknown name would panic.
func TestReadMemory(t *testing.T) {
	if m := readMemory(); m.resident == 0 || m.allocated == 0 {
		t.Errorf("%+v", m)
	}
}
