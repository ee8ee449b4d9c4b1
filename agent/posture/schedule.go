package posture

import (
	"cmp"
	"slices"
	"time"
)

const (
	// often is how often cheap collectors run, seldom how often expensive ones do.
	often  = time.Minute
	seldom = time.Hour
	// lasts is how many of these intervals a fact holds after it was read.
	lasts = 3
	// patience is how long a collector may take before what it read earlier is too old.
	patience = 2 * time.Minute
	// settle is how long expensive collectors wait after the agent has started: a machine that boots has other things to do.
	settle = 20 * time.Second
	// gap is how long to wait before a trigger makes a collector run again: some hosts change their firewall all the time.
	gap = time.Second / 2
)

// Trigger is an event that announces changes before the next scheduled run.
type Trigger uint8

// Triggers.
const (
	Nothing Trigger = iota
	Firewall
)

// Plan is when a collector runs.
type Plan struct {
	Every time.Duration
	On    Trigger // in addition
	// Dear marks an expensive collector: these run one at a time.
	Dear bool
}

// Event is an input of the schedule. Collectors are identified by their index.
type Event interface{ event() }

// Events.
type (
	// Tick means that time has passed.
	Tick struct{}
	// Changed means that a trigger fired.
	Changed struct{ Trigger Trigger }
	// Refresh asks for everything to be read again.
	Refresh struct{}
	// Collected is the result of a collector. It names all facts that the collector is about.
	Collected struct {
		Collector int
		Readings  []Reading
	}
)

func (Tick) event()      {}
func (Changed) event()   {}
func (Refresh) event()   {}
func (Collected) event() {}

// Effect is something to be done.
type Effect interface{ effect() }

// Effects.
type (
	// Collect asks for a run of a collector. It ends with Collected.
	Collect struct{ Collector int }
	// Report announces changes: facts with another value, or none any more. Complete means that every collector has produced
	// a result, or has had the time for one.
	Report struct {
		Facts    []Fact
		Complete bool
	}
	// Wake says when to step with a Tick, if nothing happens before.
	Wake struct{ At time.Duration }
)

func (Collect) effect() {}
func (Report) effect()  {}
func (Wake) effect()    {}

// Schedule decides which collector runs when, and what is known. Times count from when the machine was switched on, and
// include suspend.
type Schedule struct {
	tasks    []task
	facts    map[string]*entry
	began    time.Duration
	complete bool
	changed  map[string]struct{}
}

type task struct {
	Plan
	next  time.Duration // when it is due
	runs  bool
	since time.Duration // when its run began
	again bool          // run again after the present run
	done  bool          // it has run before
	names []string      // of its facts
}

type entry struct {
	Fact
	task int
}

// NewSchedule returns a schedule in which everything but the expensive collectors is due at once.
func NewSchedule(now time.Duration, plans []Plan) *Schedule {
	s := &Schedule{facts: map[string]*entry{}, changed: map[string]struct{}{}, began: now}
	for _, p := range plans {
		t := task{Plan: p, next: now}
		if p.Dear {
			t.next += settle
		}
		s.tasks = append(s.tasks, t)
	}
	return s
}

// Step handles an event, and returns what follows from it and from the time.
func (s *Schedule) Step(now time.Duration, e Event) []Effect {
	switch e := e.(type) {
	case Changed:
		for i := range s.tasks {
			if t := &s.tasks[i]; e.Trigger != Nothing && t.On == e.Trigger {
				t.hurry(max(now, t.soonest()))
			}
		}
	case Refresh:
		for i := range s.tasks {
			s.tasks[i].hurry(now)
		}
	case Collected:
		s.take(now, e)
	}
	out := s.begin(now)
	s.expire(now)
	if r, ok := s.report(now); ok {
		out = append(out, r)
	}
	return append(out, Wake{s.wake(now)})
}

// hurry lets the task run at a time, or after the present run.
func (t *task) hurry(at time.Duration) {
	if t.runs {
		t.again = true
		return
	}
	t.next = min(t.next, at)
}

// soonest returns when the task may run again.
func (t *task) soonest() time.Duration {
	if !t.done {
		return 0
	}
	return t.since + gap
}

// take records the result of a collector.
func (s *Schedule) take(now time.Duration, c Collected) {
	if c.Collector < 0 || c.Collector >= len(s.tasks) {
		return
	}
	t := &s.tasks[c.Collector]
	t.runs, t.done, t.next = false, true, now+t.Every
	if t.again {
		t.again, t.next = false, max(now, t.soonest())
	}
	var names []string
	for _, r := range c.Readings {
		if old := s.facts[r.Name]; old != nil && old.task != c.Collector || old == nil && len(s.facts) >= MaxFacts {
			continue
		}
		s.set(now, c.Collector, r)
		names = append(names, r.Name)
	}
	for _, name := range t.names {
		if !slices.Contains(names, name) {
			s.set(now, c.Collector, Reading{Name: name})
		}
	}
	t.names = names
}

func (s *Schedule) set(now time.Duration, task int, r Reading) {
	f := s.facts[r.Name]
	if f == nil {
		f = &entry{Fact: Fact{Reading: Reading{Name: r.Name}, Since: now}, task: task}
		s.facts[r.Name] = f
	}
	if f.Value != r.Value {
		f.Since = now
		s.changed[r.Name] = struct{}{}
	}
	f.Reading, f.Checked, f.TTL = r, now, lasts*s.tasks[task].Every
}

// begin starts what is due.
func (s *Schedule) begin(now time.Duration) (out []Effect) {
	dear := s.dear()
	for i := range s.tasks {
		t := &s.tasks[i]
		if t.runs || t.next > now || t.Dear && dear {
			continue
		}
		t.runs, t.since = true, now
		dear = dear || t.Dear
		out = append(out, Collect{i})
	}
	return out
}

// dear reports whether an expensive collector is running.
func (s *Schedule) dear() bool {
	return slices.ContainsFunc(s.tasks, func(t task) bool { return t.Dear && t.runs })
}

// end returns when a fact is no longer known if it is not read again. After the machine was suspended, it gets the chance to
// be read first.
func (s *Schedule) end(f *entry) time.Duration {
	end := f.Checked + f.TTL
	if t := &s.tasks[f.task]; t.runs {
		end = max(end, t.since+patience)
	} else {
		end = max(end, t.next+patience)
	}
	return end
}

func (s *Schedule) expire(now time.Duration) {
	for _, f := range s.facts {
		if f.Value != "" && s.end(f) <= now {
			f.Value, f.Note, f.Since = "", "can no longer be read", now
			s.changed[f.Name] = struct{}{}
		}
	}
}

func (s *Schedule) report(now time.Duration) (Report, bool) {
	complete := s.complete || now-s.began >= patience || !slices.ContainsFunc(s.tasks, func(t task) bool { return !t.done })
	if len(s.changed) == 0 && complete == s.complete {
		return Report{}, false
	}
	s.complete = complete
	r := Report{Complete: complete}
	for name := range s.changed {
		r.Facts = append(r.Facts, s.facts[name].Fact)
	}
	sortFacts(r.Facts)
	clear(s.changed)
	return r, true
}

func (s *Schedule) wake(now time.Duration) time.Duration {
	at := now + seldom
	dear := s.dear()
	for i := range s.tasks {
		if t := &s.tasks[i]; !t.runs && !(t.Dear && dear) {
			at = min(at, t.next)
		}
	}
	for _, f := range s.facts {
		if f.Value != "" {
			at = min(at, s.end(f))
		}
	}
	if !s.complete {
		at = min(at, s.began+patience)
	}
	return at
}

// Facts returns what is known, and what could not be found out, sorted by name.
func (s *Schedule) Facts() []Fact {
	out := make([]Fact, 0, len(s.facts))
	for _, f := range s.facts {
		out = append(out, f.Fact)
	}
	sortFacts(out)
	return out
}

// Busy reports whether any collector is running or due.
func (s *Schedule) Busy(now time.Duration) bool {
	return slices.ContainsFunc(s.tasks, func(t task) bool { return t.runs || t.next <= now })
}

func sortFacts(fs []Fact) {
	slices.SortFunc(fs, func(a, b Fact) int { return cmp.Compare(a.Name, b.Name) })
}
