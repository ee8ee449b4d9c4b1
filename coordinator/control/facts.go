package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// reported returns what a node reports about itself, in its hello and in facts. If any route is one that no node may offer, all
// routes are dropped: they are a mistake in that node's configuration, and no reason to refuse the node.
func (s *Server) reported(hello *redoubtv1.Hello, facts *redoubtv1.Facts) directory.Reported {
	routes, err := wire.ToRoutes(facts.GetRoutes())
	if err == nil {
		routes, err = directory.CheckRoutes(routes, s.Directory.Snapshot().Mesh())
	}
	if err != nil {
		s.Log.Warn("a node's routes are ignored", "hostname", hello.GetHostname(), "err", err)
		routes = nil
	}
	return directory.Reported{
		OS: hello.GetOs(), OSVersion: facts.GetOsVersion(), Version: hello.GetProgram(), Hostname: hello.GetHostname(), Routes: routes,
	}
}

// hear stores the facts that the node reports on renewal.
func (a *attached) hear(facts *redoubtv1.Facts) {
	said := a.reported(nil, facts)
	a.about.OSVersion, a.about.Routes = said.OSVersion, said.Routes
}

// tell stores in the directory what the node reported about itself.
func (a *attached) tell() error {
	ctx, cancel := context.WithTimeout(a.ctx, step)
	defer cancel()
	return a.Directory.Report(ctx, a.id, a.about)
}

// healthOf converts a machine's health report.
func healthOf(m *redoubtv1.Posture) directory.Health {
	said := directory.Health{Whole: m.GetWhole()}
	for _, f := range m.GetFacts() {
		said.Facts = append(said.Facts, directory.HealthFact{
			Name: f.GetName(), Value: f.GetValue(), TTL: time.Duration(f.GetTtlSeconds()) * time.Second,
		})
	}
	return said
}

// posture handles the node's health report.
func (a *attached) posture(m *redoubtv1.Posture) error {
	said := healthOf(m)
	if !a.renewFirst {
		return a.reportHealth(said)
	}
	// The node does not repeat it on this stream.
	if !said.Whole {
		said.Whole = a.health.Whole
		for _, f := range a.health.Facts {
			if len(said.Facts) < directory.MaxFacts && !slices.ContainsFunc(said.Facts, func(x directory.HealthFact) bool { return x.Name == f.Name }) {
				said.Facts = append(said.Facts, f)
			}
		}
	}
	a.health = said
	return nil
}

func (a *attached) reportHealth(said directory.Health) error {
	if len(said.Facts) == 0 && !said.Whole {
		return nil
	}
	ctx, cancel := context.WithTimeout(a.ctx, step)
	defer cancel()
	err := a.Directory.ReportHealth(ctx, a.id, said)
	if errors.Is(err, directory.ErrInvalid) {
		return refusal.Malformed(err.Error())
	}
	return err
}

// fallen lets the node's health facts expire after it was last heard. A zero heard means that another stream is attached.
func (a *attached) fallen(heard time.Time) {
	if heard.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), step)
	defer cancel()
	if err := a.Directory.Fallen(ctx, a.id, heard); err != nil && !errors.Is(err, directory.ErrClosed) {
		a.Log.Error("cannot expire what is known of a node's health", "node", a.id, "name", a.node.Name, "err", err)
	}
}
