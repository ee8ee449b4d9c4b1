package control

import (
	"context"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// reported is what a node says of itself, by its hello and by what came later. Routes that no node may offer are left out, all
// of them: they are a mistake in that node's configuration, and no reason to refuse the node.
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

// hear takes what the node says when it renews.
func (a *attached) hear(facts *redoubtv1.Facts) {
	said := a.reported(nil, facts)
	a.about.OSVersion, a.about.Routes = said.OSVersion, said.Routes
}

// tell has the directory remember what the node said of itself.
func (a *attached) tell() error {
	ctx, cancel := context.WithTimeout(a.ctx, step)
	defer cancel()
	return a.Directory.Report(ctx, a.id, a.about)
}
