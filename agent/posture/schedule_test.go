package posture

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// steps drives a schedule by hand.
type steps struct {
	*testing.T
	s   *Schedule
	now time.Duration
}

func newSteps(t *testing.T, plans ...Plan) *steps {
	return &steps{t, NewSchedule(0, plans), 0}
}

// step handles an event, and returns what is started and, as words, what is reported.
func (x *steps) step(e Event) (started []int, told []string) {
	x.Helper()
	for _, effect := range x.s.Step(x.now, e) {
		switch effect := effect.(type) {
		case Collect:
			started = append(started, effect.Collector)
		case Report:
			for _, f := range effect.Facts {
				told = append(told, f.Name+"="+f.Value)
			}
			if effect.Complete {
				told = append(told, "complete")
			}
		}
	}
	return started, told
}

func (x *steps) want(e Event, started []int, told ...string) {
	x.Helper()
	gotStarted, gotTold := x.step(e)
	if !slices.Equal(gotStarted, started) || !slices.Equal(gotTold, told) {
		x.Fatalf("at %v %T: starts %v and tells %v, want %v and %v", x.now, e, gotStarted, gotTold, started, told)
	}
}

func found(collector int, pairs ...string) Collected {
	c := Collected{Collector: collector}
	for i := 0; i < len(pairs); i += 2 {
		c.Readings = append(c.Readings, known(pairs[i], pairs[i+1], ""))
	}
	return c
}

func TestOnlyWhatChangedIsTold(t *testing.T) {
	x := newSteps(t, Plan{Every: time.Minute}, Plan{Every: time.Hour, Dear: true}, Plan{Every: time.Hour, Dear: true})
	x.want(Tick{}, []int{0})
	x.want(found(0, "a", "1", "b", "2"), nil, "a=1", "b=2")
	x.now = settle
	x.want(Tick{}, []int{1})
	x.want(found(1, "c", "3"), []int{2}, "c=3")
	x.want(found(2), nil, "complete")
	x.now = time.Minute
	x.want(Tick{}, []int{0})
	x.want(found(0, "a", "1", "b", "3"), nil, "b=3", "complete")
	x.now = 2 * time.Minute
	x.want(Tick{}, []int{0})
	x.want(found(0, "a", "1", "b", "3"), nil)
	x.now = 3 * time.Minute
	x.want(Tick{}, []int{0})
	// A fact that a collector no longer names is no longer known.
	x.want(found(0, "b", "3"), nil, "a=", "complete")
	for _, f := range x.s.Facts() {
		if f.Name == "b" && (f.Since != time.Minute || f.Checked != 3*time.Minute || f.TTL != 3*time.Minute) {
			t.Errorf("%+v", f)
		}
	}
}

func TestWhatIsNotReadAgainIsForgotten(t *testing.T) {
	x := newSteps(t, Plan{Every: time.Minute})
	x.want(Tick{}, []int{0})
	x.want(found(0, "a", "1"), nil, "a=1", "complete")
	x.now = time.Minute
	x.want(Tick{}, []int{0}) // it hangs
	x.now = 3*time.Minute - 1
	x.want(Tick{}, nil)
	x.now++
	x.want(Tick{}, nil, "a=", "complete")
	x.want(found(0, "a", "1"), nil, "a=1", "complete")
	// After the machine was suspended for a day, what is known holds until it has been read again, if that does not take long.
	x.now += 24 * time.Hour
	x.want(Tick{}, []int{0})
	x.now += patience - 1
	x.want(Tick{}, nil)
	x.now++
	x.want(Tick{}, nil, "a=", "complete")
}

func TestChangesAreReadAtOnceButNotAllTheTime(t *testing.T) {
	x := newSteps(t, Plan{Every: time.Minute, On: Firewall}, Plan{Every: time.Minute})
	x.want(Tick{}, []int{0, 1})
	x.want(Changed{Firewall}, nil) // it is running: another run must follow
	x.want(found(0, "a", "1"), nil, "a=1")
	x.now = gap
	x.want(Tick{}, []int{0})
	x.want(found(0, "a", "1"), nil)
	x.want(found(1), nil, "complete")
	x.now = 10 * time.Second
	x.want(Changed{Firewall}, []int{0})
	x.want(found(0, "a", "2"), nil, "a=2", "complete")
	x.want(Changed{Firewall}, nil)
	x.now += gap
	x.want(Tick{}, []int{0})
	x.want(found(0), nil, "a=", "complete")
	x.now += gap
	x.want(Changed{Nothing}, nil)
	x.want(Refresh{}, []int{0, 1})
}

func TestNobodyTakesAnothersFact(t *testing.T) {
	x := newSteps(t, Plan{Every: time.Minute}, Plan{Every: time.Minute})
	x.want(Tick{}, []int{0, 1})
	x.want(found(0, "a", "1"), nil, "a=1")
	x.want(found(1, "a", "2"), nil, "complete")
	x.want(Collected{Collector: 7}, nil)
	many := Collected{Collector: 1}
	for i := range 2 * MaxFacts {
		many.Readings = append(many.Readings, known(fmt.Sprint("f", i), "x", ""))
	}
	x.step(many)
	if n := len(x.s.Facts()); n != MaxFacts {
		t.Errorf("%d facts, want %d", n, MaxFacts)
	}
}

// TestScheduleLaws checks that, whatever happens, a collector never runs twice at once, only one expensive one runs at a
// time, no fact outlives its time by more than patience, the reports add up to what is known, and the schedule never asks to
// be woken too late or for nothing.
func TestScheduleLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var plans []Plan
		for range rapid.IntRange(1, 4).Draw(t, "collectors") {
			plans = append(plans, Plan{
				Every: time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute,
				On:    Trigger(rapid.IntRange(0, 1).Draw(t, "on")), Dear: rapid.Bool().Draw(t, "dear"),
			})
		}
		s := NewSchedule(0, plans)
		running, told, read := map[int]bool{}, map[string]string{}, map[string]time.Duration{}
		var now, wake time.Duration
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			var e Event = Tick{}
			switch rapid.IntRange(0, 5).Draw(t, "event") {
			case 0:
				e = Changed{Firewall}
			case 1:
				e = Refresh{}
			case 2, 3:
				for i := range plans {
					if running[i] {
						c := Collected{Collector: i}
						for _, name := range rapid.SliceOfDistinct(rapid.IntRange(0, 2), func(i int) int { return i }).Draw(t, "facts") {
							c.Readings = append(c.Readings, known(fmt.Sprint(i, ":", name), fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "value")), ""))
							read[c.Readings[len(c.Readings)-1].Name] = now
						}
						e, running[i] = c, false
						break
					}
				}
			default:
				now += time.Duration(rapid.Int64Range(0, int64(2*time.Hour)).Draw(t, "pass"))
			}
			dear := 0
			for _, effect := range s.Step(now, e) {
				switch effect := effect.(type) {
				case Collect:
					if running[effect.Collector] {
						t.Fatalf("collector %d runs twice", effect.Collector)
					}
					running[effect.Collector] = true
				case Report:
					for _, f := range effect.Facts {
						told[f.Name] = f.Value
						if f.Value == "" {
							delete(told, f.Name)
						}
					}
				case Wake:
					wake = effect.At
				}
			}
			for i, p := range plans {
				if running[i] && p.Dear {
					dear++
				}
			}
			if dear > 1 {
				t.Fatalf("%d that are dear run", dear)
			}
			facts := map[string]string{}
			for _, f := range s.Facts() {
				if f.Value == "" {
					continue
				}
				facts[f.Name] = f.Value
				if idle := now - max(read[f.Name]+f.TTL, 0); idle > patience+2*time.Hour {
					t.Fatalf("%s was read %v ago and still holds", f.Name, now-read[f.Name])
				}
			}
			if diff := cmp.Diff(facts, told); diff != "" {
				t.Fatalf("what is known, and what was told: %s", diff)
			}
			if wake < now {
				t.Fatalf("at %v: wake at %v", now, wake)
			}
		}
	})
}
