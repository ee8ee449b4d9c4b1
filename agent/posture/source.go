package posture

import "context"

// Config is what Local goes by.
type Config struct {
	Interface string  // the device into the mesh
	Guards    []Guard // that are known besides
	Memory    Memory
}

// reader is a collector of a host.
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
