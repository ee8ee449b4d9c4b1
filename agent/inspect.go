package agent

import (
	"context"
	"sync"
	"time"
)

// rest is how many times as long as looking at the node takes the loop then has for other things. Every local program may
// look, as often as it likes, and in a large mesh that takes long.
const rest = 4

// inspector lets one caller at a time look at the node, with a rest after each.
type inspector struct {
	turn chan struct{} // holds a value while it is somebody's turn
	free time.Time     // when the rest ends; for whose turn it is
}

func newInspector() inspector { return inspector{turn: make(chan struct{}, 1)} }

// inspect runs f on the loop, as call does, when it is the caller's turn.
func (a *Agent) inspect(ctx context.Context, f func()) error {
	i := &a.inspector
	select {
	case i.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ended:
		return errEnded
	}
	defer func() { <-i.turn }()
	if left := time.Until(i.free); left > 0 {
		pause := time.NewTimer(left)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ended:
			return errEnded
		}
	}
	return a.call(ctx, func() {
		begun := time.Now()
		f()
		now := time.Now()
		i.free = now.Add(rest * now.Sub(begun))
	})
}

// shared gives callers who wait at the same time the same answer. It is made after all of them have asked.
type shared[T any] struct {
	mu   sync.Mutex
	next *answer[T] // not begun; nil: nobody waits for one
}

// answer is one that is asked for. It and err are set before done is closed.
type answer[T any] struct {
	done chan struct{}
	it   T
	err  error
}

// get returns an answer that is made, on behalf of all who wait, by the function answer, which look runs.
func (s *shared[T]) get(ctx context.Context, look func(context.Context, func()) error, answer func() T) (T, error) {
	for {
		a, first := s.join()
		if first {
			a.err = look(ctx, func() {
				s.begin(a)
				a.it = answer()
			})
			s.begin(a) // if look did not
			close(a.done)
			return a.it, a.err
		}
		select {
		case <-a.done:
			if a.err == nil {
				return a.it, nil
			}
			// Whoever came first gave up, or the agent is stopping, which the next try will find out.
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
	}
}

// join returns the next answer, and whether the caller is the first who asks for it, and has to get it.
func (s *shared[T]) join() (a *answer[T], first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first = s.next == nil; first {
		s.next = &answer[T]{done: make(chan struct{})}
	}
	return s.next, first
}

// begin makes those who ask from now on wait for another answer.
func (s *shared[T]) begin(a *answer[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == a {
		s.next = nil
	}
}
