package control

import (
	"slices"
	"testing"
)

// TestPulse checks that streams are spread evenly over the beats, and that each is in one beat until it is removed.
func TestPulse(t *testing.T) {
	var p pulse
	var all []*stream
	for range 10 * beats {
		st := new(stream)
		p.add(st)
		all = append(all, st)
	}
	for i, beat := range p.beats {
		if len(beat) != 10 {
			t.Errorf("%d streams in beat %d of %d, want 10", len(beat), i, beats)
		}
	}
	for i, st := range all {
		if i%3 > 0 {
			p.remove(st)
			p.remove(st)
		}
	}
	left := slices.Collect(p.all())
	if len(left) != p.len || p.len != (len(all)+2)/3 {
		t.Errorf("%d streams are left, %d counted, of %d", len(left), p.len, len(all))
	}
	for i, st := range all {
		if slices.Contains(left, st) != (i%3 == 0) {
			t.Errorf("stream %d is in no beat, or should not be", i)
		}
	}
}
