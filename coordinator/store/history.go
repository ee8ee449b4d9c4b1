package store

import (
	"context"
	"iter"
	"strings"
	"sync"
)

// Bounds on the history kept for watchers, whichever is reached first.
const (
	historyRevisions = 4096
	historyBytes     = 4 << 20
)

// History keeps the last transactions for watchers. Engines add to it in the order of revisions, after each is on disk.
// Watchers pull from it, so that a slow one costs nothing and eventually finds its position compacted.
type History struct {
	mu      sync.Mutex
	batches []Batch // of consecutive revisions
	next    uint64  // the revision after the last batch
	bytes   int
	grown   chan struct{} // closed and replaced when a batch is added
	closed  bool
}

// NewHistory returns a history that starts after the given revision.
func NewHistory(revision uint64) *History {
	return &History{next: revision + 1, grown: make(chan struct{})}
}

// Add appends the batch of the next revision. After Close it does nothing.
func (h *History) Add(b Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.batches = append(h.batches, b)
	h.next = b.Revision + 1
	h.bytes += size(b)
	for len(h.batches) > historyRevisions || (h.bytes > historyBytes && len(h.batches) > 1) {
		h.bytes -= size(h.batches[0])
		h.batches[0] = Batch{}
		h.batches = h.batches[1:]
	}
	close(h.grown)
	h.grown = make(chan struct{})
}

func size(b Batch) int {
	n := 0
	for _, e := range b.Events {
		n += len(e.Key) + len(e.Value) + 64
	}
	return n
}

// Close ends all watches with ErrClosed.
func (h *History) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.closed = true
		close(h.grown)
	}
}

// Watch implements Store.Watch.
func (h *History) Watch(ctx context.Context, prefix string, from uint64) iter.Seq2[Batch, error] {
	return func(yield func(Batch, error) bool) {
		for next := from; ; next++ {
			b, err := h.wait(ctx, next)
			if err != nil {
				yield(Batch{}, err)
				return
			}
			b.Events = under(prefix, b.Events)
			if len(b.Events) > 0 && !yield(b, nil) {
				return
			}
		}
	}
}

// wait returns the batch of a revision as soon as there is one.
func (h *History) wait(ctx context.Context, revision uint64) (Batch, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Batch{}, err
		}
		h.mu.Lock()
		first, grown, closed := h.next-uint64(len(h.batches)), h.grown, h.closed
		switch {
		case closed:
			h.mu.Unlock()
			return Batch{}, ErrClosed
		case revision < first:
			h.mu.Unlock()
			return Batch{}, ErrCompacted
		case revision < h.next:
			b := h.batches[revision-first]
			h.mu.Unlock()
			return b, nil
		}
		h.mu.Unlock()
		select {
		case <-grown:
		case <-ctx.Done():
		}
	}
}

func under(prefix string, events []Event) []Event {
	if prefix == "" {
		return events
	}
	var some []Event
	for _, e := range events {
		if strings.HasPrefix(e.Key, prefix) {
			some = append(some, e)
		}
	}
	return some
}
