package directory

import (
	"context"
	"fmt"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Fresh reports whether no machine has ever joined the mesh in a store.
func Fresh(ctx context.Context, s store.Store) (bool, error) {
	held, _, err := s.List(ctx, devicePrefix)
	if err != nil {
		return false, fmt.Errorf("look for nodes: %w", err)
	}
	return len(held) == 0, nil
}
