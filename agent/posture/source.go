package posture

import "context"

// Config configures Local.
type Config struct {
	Interface string  // the mesh's device
	Guards    []Guard // to look for, in addition to the known ones
	Memory    Memory
}

// reader is a collector that reads from a host.
type reader struct {
	Plan
	read func(context.Context, Host) []Reading
}

func source(h Host, readers []reader, changes func(context.Context) (<-chan Trigger, error)) Source {
	s := Source{Changes: changes}
	for _, r := range readers {
		s.Collectors = append(s.Collectors, Collector{r.Plan, func(ctx context.Context) []Reading { return r.read(ctx, h) }})
	}
	return s
}
