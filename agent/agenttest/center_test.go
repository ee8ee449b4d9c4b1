package agenttest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/redoubt-mesh/redoubt/coordinator"
	"github.com/redoubt-mesh/redoubt/coordinator/api"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

const centerURL = "https://coordinator.example"

// center is the coordinator's machine.
type center struct {
	m    *mesh
	dir  string
	host *sim.Host
	tap  *tap // nil if its streams are not tapped
	dead atomic.Bool
	// configure changes the configuration of the next coordinator.
	configure func(*coordinator.Config)

	mu      sync.Mutex
	process *process // nil if none is running
}

// process is a running coordinator.
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
	if err := c.tryStart(); err != nil {
		c.m.Fatal(err)
	}
}

func (c *center) tryStart() error {
	config := coordinator.Config{Data: c.dir, URLs: []string{centerURL}, Log: c.m.logger("coordinator"), Program: "test"}
	if c.configure != nil {
		c.configure(&config)
	}
	co, err := coordinator.New(context.Background(), config)
	if err != nil {
		return err
	}
	l, err := c.host.Listen("tcp", ":443")
	if err != nil {
		return errors.Join(err, co.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{co: co, cancel: cancel, done: make(chan error, 1)}
	go func() { p.done <- co.Run(ctx, tappedListener{l, c}) }()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.process = p
	return nil
}

// take returns the process, which the caller must end.
func (c *center) take() *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.process
	c.process = nil
	return p
}

// stop ends the coordinator cleanly, if it is running.
func (c *center) stop() {
	c.m.Helper()
	p := c.take()
	if p == nil {
		return
	}
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

// kill ends the coordinator's process at this very moment: nothing that it does afterwards has an effect. bury removes the process.
func (c *center) kill() {
	c.dead.Store(true)
	for _, n := range c.m.nodes {
		c.m.net.ResetStreams(n.host, c.host)
	}
}

// bury removes what kill left of a process, and starts another one.
func (c *center) bury() error {
	if p := c.take(); p != nil {
		p.cancel()
		<-p.done
	}
	c.dead.Store(false)
	if err := c.tryStart(); err != nil {
		return fmt.Errorf("a coordinator that was killed does not start again: %w", err)
	}
	return nil
}

func (c *center) admin() *api.Admin {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.process.co.Admin()
}
