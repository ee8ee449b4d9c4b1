package posture

import (
	"context"
	"sync"
	"time"
)

// tickMax is the longest the watch sleeps before it checks the time: timers stand still while the machine is suspended.
const tickMax = 15 * time.Second

// Collector reads some facts.
type Collector struct {
	Plan Plan
	// Read returns a reading for every fact that the collector is about, even for those that it could not find out. It
	// returns soon after the context has ended.
	Read func(context.Context) []Reading
}

// Source is where facts come from. The zero Source knows nothing.
type Source struct {
	Collectors []Collector
	// Changes reports triggers until the context ends, and then closes the channel. Nil means that there are none.
	Changes func(context.Context) (<-chan Trigger, error)
}

// Watch keeps facts up to date. Its methods may be called from any goroutine.
type Watch struct {
	source Source
	clock  func() time.Duration
	tell   func(context.Context, Report)

	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	done    chan struct{}
	results chan Collected
	asked   chan chan struct{} // closed once everything has been read again

	mu       sync.Mutex
	facts    []Fact
	complete bool
}

// Start begins to watch. Clock returns the time since the machine was switched on. Tell receives the changes, or gives up
// when the context ends; it is called from one goroutine, and not after Close has returned. An error means that triggers do
// not work, so that changes are noticed later; the watch runs nevertheless.
func Start(source Source, clock func() time.Duration, tell func(context.Context, Report)) (*Watch, error) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watch{
		source: source, clock: clock, tell: tell, cancel: cancel,
		done: make(chan struct{}), results: make(chan Collected), asked: make(chan chan struct{}),
	}
	var changes <-chan Trigger
	var err error
	if source.Changes != nil {
		changes, err = source.Changes(ctx)
	}
	go w.run(ctx, changes)
	return w, err
}

// Close ends the watch and waits for it.
func (w *Watch) Close() {
	w.cancel()
	<-w.done
}

// Facts returns what is known and what could not be found out, sorted by name. Complete means the same as in Report.
func (w *Watch) Facts() (facts []Fact, complete bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts, w.complete
}

// Refresh reads everything again and waits for the results.
func (w *Watch) Refresh(ctx context.Context) error {
	read := make(chan struct{})
	select {
	case w.asked <- read:
	case <-w.done:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-read:
		return nil
	case <-w.done:
		return context.Canceled
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *Watch) run(ctx context.Context, changes <-chan Trigger) {
	defer close(w.done)
	defer w.tasks.Wait()
	var plans []Plan
	for _, c := range w.source.Collectors {
		plans = append(plans, c.Plan)
	}
	s := NewSchedule(w.clock(), plans)
	timer := time.NewTimer(tickMax)
	defer timer.Stop()
	var waiting []chan struct{}
	for event := Event(Tick{}); ; {
		timer.Reset(w.step(ctx, s, event))
		if !s.Busy(w.clock()) {
			for _, read := range waiting {
				close(read)
			}
			waiting = nil
		}
		select {
		case <-ctx.Done():
			drain(changes)
			return
		case <-timer.C:
			event = Tick{}
		case c := <-w.results:
			event = c
		case read := <-w.asked:
			waiting = append(waiting, read)
			event = Refresh{}
		case trigger, ok := <-changes:
			event = Changed{trigger}
			if !ok {
				changes, event = nil, Tick{}
			}
		}
	}
}

// drain waits until the source of changes has ended.
func drain(changes <-chan Trigger) {
	if changes == nil {
		return
	}
	for range changes { //nolint:revive // what comes now comes too late
	}
}

// step handles an event, carries out the effects, and returns how long nothing will be due.
func (w *Watch) step(ctx context.Context, s *Schedule, e Event) (pause time.Duration) {
	pause = tickMax
	now := w.clock()
	for _, effect := range s.Step(now, e) {
		switch effect := effect.(type) {
		case Collect:
			w.tasks.Go(func() {
				c := Collected{effect.Collector, w.source.Collectors[effect.Collector].Read(ctx)}
				select {
				case w.results <- c:
				case <-ctx.Done():
				}
			})
		case Report:
			w.publish(s, effect.Complete)
			w.tell(ctx, effect)
		case Wake:
			pause = min(max(effect.At-now, 0), tickMax)
		}
	}
	if _, read := e.(Collected); read {
		w.publish(s, s.complete)
	}
	return pause
}

func (w *Watch) publish(s *Schedule, complete bool) {
	facts := s.Facts()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.facts, w.complete = facts, complete
}
