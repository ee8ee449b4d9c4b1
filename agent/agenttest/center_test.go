package agenttest

import (
	"context"
	"net"

	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

const centerURL = "https://coordinator.example"

// center is the machine of a coordinator.
type center struct {
	m    *mesh
	dir  string
	host *sim.Host
	tap  *tap // nil: nothing is in the way to it
	// configure changes what the next coordinator is made with.
	configure func(*coordinator.Config)

	*process // nil while there is none
}

// process is a coordinator that runs.
type process struct {
	co     *coordinator.Coordinator
	cancel context.CancelFunc
	done   chan error
}

func newCenter(m *mesh) *center {
	return &center{m: m, dir: m.TempDir(), host: m.net.Host("coordinator.example", underlay(254)...)}
}

func (c *center) start() {
	c.m.Helper()
	config := coordinator.Config{Data: c.dir, URLs: []string{centerURL}, Log: c.m.logger("coordinator"), Program: "test"}
	if c.configure != nil {
		c.configure(&config)
	}
	co, err := coordinator.New(context.Background(), config)
	if err != nil {
		c.m.Fatal(err)
	}
	l, err := c.host.Listen("tcp", ":443")
	if err != nil {
		c.m.Fatal(err)
	}
	c.serve(co, tappedListener{l, c})
}

func (c *center) serve(co *coordinator.Coordinator, l net.Listener) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{co: co, cancel: cancel, done: make(chan error, 1)}
	go func() { p.done <- co.Run(ctx, l) }()
	c.process = p
}

// stop ends the coordinator in good order, if it runs.
func (c *center) stop() {
	c.m.Helper()
	p := c.process
	if p == nil {
		return
	}
	c.process = nil
	p.cancel()
	if err := <-p.done; err != nil {
		c.m.Errorf("coordinator: %v", err)
	}
}

func (c *center) restart() {
	c.m.Helper()
	c.stop()
	c.start()
}

func (c *center) admin() *api.Admin { return c.co.Admin() }
