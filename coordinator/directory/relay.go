package directory

import (
	"context"
	"fmt"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Relays returns the relays in service, sorted by id.
func (s *Snapshot) Relays() []proto.Relay {
	out := make([]proto.Relay, 0, s.state.relays.Len())
	for r := range values(s.state.relays) {
		out = append(out, *r)
	}
	return out
}

// SetRelay announces to nodes a relay that is now in service or has different addresses. It is kept in memory only.
func (d *Directory) SetRelay(ctx context.Context, r proto.Relay) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	return d.do(ctx, func(t *tx) error {
		old, known := t.state.relays.Get(r.ID)
		switch {
		case known && old.Equal(&r):
			return nil
		case !known && t.state.relays.Len() >= proto.MaxRelays:
			return fmt.Errorf("there are %d relays already: %w", proto.MaxRelays, ErrInvalid)
		}
		put(&t.state.relays, r.ID, &r)
		t.relays = true
		return nil
	})
}

// DropRelay announces to nodes that a relay is out of service. A relay that has attached again is left alone.
func (d *Directory) DropRelay(ctx context.Context, id proto.NodeID) error {
	return d.do(ctx, func(t *tx) error {
		live, _ := d.Live(id)
		if _, known := t.state.relays.Get(id); known && !live.Connected {
			drop(&t.state.relays, id)
			t.relays = true
		}
		return nil
	})
}
