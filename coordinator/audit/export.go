package audit

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Forward yields the lines of the records after one, oldest first, up to the record last; with follow, it then continues with
// new records until ctx ends or the loop breaks. Records inserted by others are yielded too, so that a Chain detects them.
func Forward(ctx context.Context, s store.Store, after, last uint64, follow bool) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for {
			revision, at, ok := pages(ctx, s, after, last, yield)
			if !ok || !follow {
				return
			}
			for batch, err := range s.Watch(ctx, Prefix, revision+1) {
				if errors.Is(err, store.ErrCompacted) {
					break // it is in the store nevertheless
				}
				if err != nil {
					yield(nil, err)
					return
				}
				for _, e := range batch.Events {
					if n, err := numberOf(e.Key); err == nil && n > at && !e.Deleted {
						if at = n; !yield(e.Value, nil) {
							return
						}
					}
				}
			}
			after = at
			if end, err := Last(ctx, s); err == nil {
				last = max(last, end.Number)
			}
		}
	}
}

// pages yields the records present. It returns their revision and the last number.
func pages(ctx context.Context, s store.Store, after, last uint64, yield func([]byte, error) bool) (revision, at uint64, ok bool) {
	at = after
	for next := after + 1; ; next = (next>>pageBits + 1) << pageBits {
		entries, rev, err := s.List(ctx, page(next))
		if err != nil {
			yield(nil, fmt.Errorf("read the audit records from %d on: %w", next, err))
			return 0, 0, false
		}
		revision = rev
		for _, e := range entries {
			n, err := numberOf(e.Key)
			if err == nil && n <= after {
				continue
			}
			if !yield(e.Value, nil) {
				return 0, 0, false
			}
			at = max(at, n)
		}
		if next>>pageBits >= last>>pageBits {
			return revision, at, true
		}
	}
}

// Last returns the checkpoint of the newest record.
func Last(ctx context.Context, s store.Store) (Checkpoint, error) {
	e, err := s.Get(ctx, LastSeal)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("read the last checkpoint of the audit log: %w", err)
	}
	return ParseCheckpoint(e.Value)
}

// SealLines returns the kept checkpoints as stored, without that of the newest record.
func SealLines(ctx context.Context, s store.Store) (lines [][]byte, err error) {
	entries, _, err := s.List(ctx, SealPrefix)
	if err != nil {
		return nil, fmt.Errorf("read the checkpoints of the audit log: %w", err)
	}
	for _, e := range entries {
		if e.Key != LastSeal {
			lines = append(lines, e.Value)
		}
	}
	return lines, nil
}
