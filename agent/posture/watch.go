package posture

import (
	"context"
	"sync"
	"time"
)

// tickMax is how long the watch sleeps at most before it looks at the time: timers stand still while the machine sleeps.
const tickMax = 15 * time.Second

// Collector reads some facts.
type Collector struct {
	Plan Plan
	// Read names all facts that the collector is about, those that it could not find out as well. It returns soon after the
	// context has ended.
	Read func(context.Context) []Reading
}

// Source is where facts come from. The zero Source knows nothing.
type Source struct {
	Collectors []Collector
	// Changes reports what a Trigger stands for, until the context ends; then it is closed. Nil: nothing tells.
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
	asked   chan chan struct{} // closed when everything was read anew

	mu       sync.Mutex
	facts    []Fact
	complete bool
}

// Start begins to watch. Clock is the time since the machine was switched on. Tell takes what has changed, or gives up when the
// context ends; it is called by one goroutine, and not after Close has returned. The error is that changes are not told of,
// and found out some time later only; the watch runs nevertheless.
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

// Close ends the watch and waits.
func (w *Watch) Close() {
	w.cancel()
	<-w.done
}

// Facts are what is known and what could not be found out, sorted by name. Complete says that every collector has said
// something by now.
func (w *Watch) Facts() (facts []Fact, complete bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.facts, w.complete
}

// Refresh reads everything anew and waits for it.
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

// drain waits until whoever tells of changes has ended.
func drain(changes <-chan Trigger) {
	if changes == nil {
		return
	}
	for range changes { //nolint:revive // what comes now comes too late
	}
}

// step takes an event, carries out what follows from it, and says how long nothing will be due.
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
