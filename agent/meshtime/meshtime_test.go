package meshtime

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

type fakeClock struct {
	now  time.Time
	boot time.Duration
}

func (c *fakeClock) Now() time.Time      { return c.now }
func (c *fakeClock) Boot() time.Duration { return c.boot }

func (c *fakeClock) pass(d time.Duration) {
	c.now = c.now.Add(d)
	c.boot += d
}

var noon = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func TestHeardWins(t *testing.T) {
	c := &fakeClock{now: noon.Add(-20 * 365 * 24 * time.Hour)}
	m := New(c, time.Time{})
	m.Heard(noon)
	c.pass(time.Hour)
	if got, want := m.Now(), noon.Add(time.Hour); !got.Equal(want) {
		t.Errorf("Now() = %v, want %v", got, want)
	}
	c.now = noon.Add(1000 * time.Hour) // somebody sets the clock
	if got, want := m.Now(), noon.Add(time.Hour); !got.Equal(want) {
		t.Errorf("after setting the system's clock Now() = %v, want %v", got, want)
	}
	m.Heard(noon.Add(-time.Minute)) // the coordinator corrects itself
	if got, want := m.Now(), noon.Add(-time.Minute); !got.Equal(want) {
		t.Errorf("after a correction Now() = %v, want %v", got, want)
	}
	m.Heard(time.Time{})
	m.Heard(time.UnixMilli(0))
	if got, want := m.Now(), noon.Add(-time.Minute); !got.Equal(want) {
		t.Errorf("a time that is none was taken: %v, want %v", got, want)
	}
}

func TestFloor(t *testing.T) {
	c := &fakeClock{now: time.Unix(0, 0)}
	m := New(c, noon)
	if got := m.Now(); !got.Equal(noon) {
		t.Errorf("Now() = %v, want the floor", got)
	}
	c.pass(time.Minute)
	if got, want := m.Now(), noon.Add(time.Minute); !got.Equal(want) {
		t.Errorf("time stands still at the floor: %v, want %v", got, want)
	}
}

// TestFloorOfTheNextRun checks that the next run begins with the coordinators' time and what passed since, whatever the
// system's clock says.
func TestFloorOfTheNextRun(t *testing.T) {
	ahead := noon.Add(10 * 365 * 24 * time.Hour)
	c := &fakeClock{now: ahead, boot: time.Hour}
	m := New(c, noon)
	c.pass(time.Minute)
	if got, want := m.Floor(), noon.Add(time.Minute); !got.Equal(want) || m.Now().Before(ahead) {
		t.Errorf("Floor() = %v, want %v; Now() = %v", got, want, m.Now())
	}
	m.Heard(noon.Add(time.Hour))
	c.pass(time.Minute)
	if got, want := m.Floor(), noon.Add(time.Hour+time.Minute); !got.Equal(want) {
		t.Errorf("after the coordinator was heard Floor() = %v, want %v", got, want)
	}
	if got := New(c, time.Time{}).Floor(); !got.IsZero() {
		t.Errorf("of a node that heard nobody Floor() = %v", got)
	}
}

// TestNeverBack checks that, before the coordinator was heard, no change of the system's clock makes mesh time go back, fall
// below the floor, or run slower than real time.
func TestNeverBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &fakeClock{now: noon}
		m := New(c, noon.Add(-time.Hour))
		last := m.Now()
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			d := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "pass"))
			c.pass(d)
			c.now = c.now.Add(time.Duration(rapid.Int64Range(int64(-48*time.Hour), int64(time.Hour)).Draw(t, "set")))
			now := m.Now()
			if now.Before(last.Add(d)) {
				t.Fatalf("%v passed, mesh time went from %v to %v", d, last, now)
			}
			last = now
		}
	})
}

func TestSystemRuns(t *testing.T) {
	c := System()
	a, b := c.Boot(), c.Boot()
	if b < a || c.Now().IsZero() {
		t.Errorf("boot %v then %v, now %v", a, b, c.Now())
	}
}
