package posture

import (
	"cmp"
	"slices"
	"time"
)

const (
	// often is how often cheap collectors run, seldom how often dear ones do.
	often  = time.Minute
	seldom = time.Hour
	// lasts is how many of these times a fact holds after it was read.
	lasts = 3
	// patience is how long a collector may take before what it reads is too old.
	patience = 2 * time.Minute
	// settle is how long dear collectors wait after the agent has begun: a machine that boots has other things to do.
	settle = 20 * time.Second
	// gap is how soon a collector may run again because of what was told: some hosts change their firewall all the time.
	gap = time.Second / 2
)

// Trigger is something that tells of changes before they are looked for.
type Trigger uint8

// Triggers.
const (
	Nothing Trigger = iota
	Firewall
)

// Plan is when a collector runs.
type Plan struct {
	Every time.Duration
	On    Trigger // besides
	// Dear ones run one at a time.
	Dear bool
}

// Event is something that the schedule goes by. Collectors are told apart by their number.
type Event interface{ event() }

// Events.
type (
	// Tick is that time passed.
	Tick struct{}
	// Changed is that something was told of.
	Changed struct{ Trigger Trigger }
	// Refresh is that somebody wants to know everything as it is now.
	Refresh struct{}
	// Collected is what a collector found out. It names all facts that the collector is about.
	Collected struct {
		Collector int
		Readings  []Reading
	}
)

func (Tick) event()      {}
func (Changed) event()   {}
func (Refresh) event()   {}
func (Collected) event() {}

// Effect is what is to be done.
type Effect interface{ effect() }

// Effects.
type (
	// Collect is to let a collector run. It ends with Collected.
	Collect struct{ Collector int }
	// Report is to tell what has changed: facts that have another value, or none any more. Complete says that every collector
	// has said something by now.
	Report struct {
		Facts    []Fact
		Complete bool
	}
	// Wake is when to step with a Tick, if nothing happens before.
	Wake struct{ At time.Duration }
)

func (Collect) effect() {}
func (Report) effect()  {}
func (Wake) effect()    {}

// Schedule decides which collector runs when, and what is known. Times are those since the machine was switched on, with
// those in which it slept.
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
	since time.Duration // when it began to run
	again bool          // it is due when it has run
	done  bool          // it has run before
	names []string      // of its facts
}

type entry struct {
	Fact
	task int
}

// NewSchedule makes a schedule by which everything is due at once, but for what is dear.
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

// Step takes an event, and says what follows from it and from the time.
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

// hurry lets the task run at a time, or after it has run.
func (t *task) hurry(at time.Duration) {
	if t.runs {
		t.again = true
		return
	}
	t.next = min(t.next, at)
}

// soonest is when the task may run again.
func (t *task) soonest() time.Duration {
	if !t.done {
		return 0
	}
	return t.since + gap
}

// take notes what a collector found.
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

// dear says whether one that is dear runs.
func (s *Schedule) dear() bool {
	return slices.ContainsFunc(s.tasks, func(t task) bool { return t.Dear && t.runs })
}

// end is when a fact is not known any more if it is not read again. After the machine has slept it is read first.
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

// Facts is what is known, and what could not be found out, by name.
func (s *Schedule) Facts() []Fact {
	out := make([]Fact, 0, len(s.facts))
	for _, f := range s.facts {
		out = append(out, f.Fact)
	}
	sortFacts(out)
	return out
}

// Busy says whether any collector runs or is due.
func (s *Schedule) Busy(now time.Duration) bool {
	return slices.ContainsFunc(s.tasks, func(t task) bool { return t.runs || t.next <= now })
}

func sortFacts(fs []Fact) {
	slices.SortFunc(fs, func(a, b Fact) int { return cmp.Compare(a.Name, b.Name) })
}
