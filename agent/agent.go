package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/meshtime"
	"github.com/redoubt-mesh/redoubt/agent/posture"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Agent is a node. Its methods may be called from any goroutine while Run runs.
type Agent struct {
	cfg  Config
	log  *slog.Logger
	time *meshtime.Time

	inbox   chan func() // for the loop; unbuffered, so that senders block until the loop is ready
	running chan struct{}
	ended   chan struct{}
	filter  *filter.Filter
	program atomic.Pointer[filter.Program] // stored after the filter has it
	offered atomic.Pointer[[]netip.Prefix]
	health  *posture.Watch                // set when Run begins
	shown   atomic.Pointer[identity.Self] // the identity shown to relays

	inspector inspector
	statuses  shared[*redoubtv1.Status]

	mu      sync.Mutex
	changed chan struct{} // closed at the next change

	loop loopState
}

// loopState is the state that only the loop may touch.
type loopState struct {
	dir     *state.Dir
	keys    keys
	machine *machine.Machine
	path    *dataPath // nil while it is down
	beyond  machine.Beyond
	client  *control.Client
	pathKey pathKey
	held    *control.Held // held for a node that has just enrolled, until its client attaches
	enrolment
	timer    *time.Timer
	armed    time.Time
	awake    awake
	port     uint16   // the UDP port last used
	flows    []byte   // from the last run, until the first program is in force
	problems []string // problems of the host's network, as last checked
}

// enrolment is an enrolment in progress.
type enrolment struct {
	cancel context.CancelFunc // nil: none in progress
	done   chan struct{}
}

// New checks the configuration, opens and locks the state directory and loads it. It touches nothing else; Run does.
func New(cfg Config) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	dir, err := state.Open(cfg.StateDir, cfg.Edges.Clock.Now())
	if err != nil {
		return nil, err
	}
	if cfg.Edges.Disk != nil {
		dir.Ask(cfg.Edges.Disk)
	}
	home, err := openHome(cfg)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	if home.tpm != nil {
		dir.Protect(home.tpm)
	}
	loaded, err := dir.Load()
	if err != nil {
		return nil, errors.Join(err, home.close(), dir.Close())
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, time: meshtime.New(cfg.Edges.Clock, loaded.Floors.MeshTime),
		inbox: make(chan func()), running: make(chan struct{}), ended: make(chan struct{}), changed: make(chan struct{}),
		filter: filter.New(filter.Config{Now: counted(cfg.Edges.Clock)}), inspector: newInspector(),
	}
	k := keys{dir: dir, home: home}
	if err := k.open(loaded); err != nil {
		return nil, errors.Join(err, home.close(), dir.Close())
	}
	a.loop = loopState{
		dir: dir, keys: k, timer: time.NewTimer(tickMax), port: loaded.Port,
		machine: machine.New(
			machine.Config{Features: proto.Features(), Program: cfg.Program, Rand: newRand()},
			machine.Loaded{
				Wanted: loaded.Wanted, Join: loaded.Join, Self: loaded.Self, Netmap: loaded.Netmap, Floors: loaded.Floors,
				Key: k.node().Public(), Checked: loaded.Checked,
			}),
	}
	if cfg.Registry != nil {
		if err := cfg.Registry.Register(newCollector(a)); err != nil {
			return nil, errors.Join(fmt.Errorf("register the metrics: %w", err), home.close(), dir.Close())
		}
	}
	return a, nil
}

// counted returns a clock that starts with the system's time and then counts what passes, including sleep: flows must not outlast
// their timeouts because the machine slept. It does not follow the system's clock, since setting that one must neither end flows
// that are in use nor keep others.
func counted(c meshtime.Clock) func() time.Time {
	start, boot := c.Now(), c.Boot()
	return func() time.Time { return start.Add(c.Boot() - boot) }
}

func newRand() *rand.Rand { return rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) }

// tickMax is the longest the loop sleeps before it checks the time: a suspend stops timers, but certificates still expire.
const tickMax = 15 * time.Second

// Run runs the node until the context ends. When it returns, the host is as it was before.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer close(a.ended)
	defer func() { err = errors.Join(err, a.stop()) }()
	if a.cfg.Listener != nil {
		server := localapi.Serve(a.cfg.Listener, a, a.cfg.Access, a.log)
		// Calls wait for the loop, which has ended by then: Close cancels their contexts, and that frees them.
		defer server.Close()
	}
	a.log.Info("agent starts", "version", a.cfg.Program, "state", a.loop.dir.Path())
	if err := a.clean(); err != nil {
		return err
	}
	if a.loop.flows, err = a.loop.dir.TakeFlows(); err != nil {
		a.log.Warn("connections from before the restart are cut", "err", err)
	}
	a.health = a.watchHealth()
	defer a.health.Close()
	a.step(machine.Start{})
	close(a.running)
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-a.inbox:
			f()
		case <-a.loop.timer.C:
			a.tick()
		}
	}
}

// clean removes what a crash left behind, unless the node is to be up: then it is taken over as it is, so that nothing opens
// in between.
func (a *Agent) clean() error {
	if a.loop.machine.State() == machine.StateDown {
		return a.cfg.Edges.Network.Down()
	}
	return nil
}

// stop restores the host and closes everything.
func (a *Agent) stop() error {
	a.step(machine.Stop{})
	a.hang()
	if a.loop.path != nil && a.program.Load() != nil {
		// Upgrading the agent should not cut every connection.
		if err := a.loop.dir.SaveFlows(a.filter.AppendFlows(nil, time.Now())); err != nil {
			a.log.Warn("connections end with the agent", "err", err)
		}
	}
	if err := a.saveChecked(); err != nil {
		a.log.Warn("the next start verifies all certificates", "err", err)
	}
	a.stopPath()
	a.loop.keys.try.end()
	a.loop.timer.Stop()
	err := errors.Join(a.cfg.Edges.Network.Close(), a.loop.keys.home.close(), a.loop.dir.Close())
	a.log.Info("agent stopped")
	return err
}

// saveChecked saves which signatures were verified, so that the next start need not verify them again.
func (a *Agent) saveChecked() error {
	node, good := a.loop.keys.node(), a.loop.machine.Checked()
	if node.IsZero() || len(good) == 0 {
		return nil
	}
	return a.loop.dir.SaveChecked(node, good)
}

// errEnded is returned once the loop has ended.
var errEnded = errors.New("the agent is stopping")

// post hands f to the loop, unless the context or the agent ends first.
func (a *Agent) post(ctx context.Context, f func()) error {
	select {
	case a.inbox <- f:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-a.ended:
		return errEnded
	}
}

// call runs f on the loop and waits until it has finished.
func (a *Agent) call(ctx context.Context, f func()) error {
	done := make(chan struct{})
	if err := a.post(ctx, func() { defer close(done); f() }); err != nil {
		return err
	}
	<-done // the loop runs every f that it has received
	return nil
}

// awake notices that the machine was suspended: a clock that counts suspend then runs ahead of one that does not.
type awake struct {
	boot time.Duration
	mono time.Time
}

// slept reports whether the machine was suspended since the last call.
func (w *awake) slept(boot time.Duration, mono time.Time) bool {
	ahead := (boot - w.boot) - mono.Sub(w.mono)
	first := w.mono.IsZero()
	w.boot, w.mono = boot, mono
	return !first && ahead > tickMax
}

func (a *Agent) tick() {
	if a.loop.awake.slept(a.cfg.Edges.Clock.Boot(), time.Now()) {
		a.log.Info("the machine has slept")
		if c := a.loop.client; c != nil {
			// The coordinator has dropped the stream long ago, and this end would not notice before the next deadline.
			c.Kick(func(net.Addr) bool { return true })
		}
	}
	a.readKeys()
	if now := a.time.Now(); !a.loop.armed.IsZero() && !now.Before(a.loop.armed) {
		a.step(machine.Tick{})
	}
	a.arm()
}

// arm sets the timer for the time that the machine asked for.
func (a *Agent) arm() {
	wait := tickMax
	if !a.loop.armed.IsZero() {
		wait = min(max(a.loop.armed.Sub(a.time.Now()), 0), tickMax)
	}
	a.loop.timer.Reset(wait)
}

// announce wakes everyone who waits for a change.
func (a *Agent) announce() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

// change returns a channel that is closed at the next change.
func (a *Agent) change() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// Running returns a channel that is closed once the node has started: local programs get answers, and the loaded state is in
// force.
func (a *Agent) Running() <-chan struct{} { return a.running }

// Answers reports whether the loop still responds.
func (a *Agent) Answers(ctx context.Context) bool { return a.call(ctx, func() {}) == nil }
