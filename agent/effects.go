package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/posture"
	"github.com/redoubt-mesh/redoubt/proto"
)

// step gives the machine an event, carries out the effects, and repeats with the events that follow from them.
func (a *Agent) step(e machine.Event) {
	for events := []machine.Event{e}; len(events) > 0; events = events[1:] {
		events = append(events, a.carryOut(a.loop.machine.Step(a.time.Now(), events[0]))...)
	}
	a.setRelays()
	a.announce()
}

// carryOut carries out effects in order. Once one that enforces has failed, no Ack is sent; once a save has failed, nothing
// more is saved and no Ack is sent.
func (a *Agent) carryOut(effects []machine.Effect) (events []machine.Event) {
	var failed, unsaved bool
	for _, e := range effects {
		var err error
		switch e := e.(type) {
		case machine.Install, machine.Sweep, machine.SetPeers, machine.RemovePeers, machine.Lead:
			err = a.enforce(e)
			failed = failed || err != nil
		case machine.Offer:
			a.offered.Store(&e.Routes)
		case machine.StartPath:
			a.loop.beyond = e.Beyond
			events = append(events, a.startPath(e.Self))
		case machine.StopPath:
			a.stopPath()
		case machine.Enrol:
			err = a.enrol(e)
		case machine.Attach, machine.Resume, machine.Redial, machine.Hang:
			a.converse(e)
		case machine.Renew:
			err = a.renew(e.Self)
		case machine.Turn:
			err = a.turn(e)
		case machine.DropKey:
			err = a.loop.keys.drop(e.Self)
		case machine.Ack:
			if c := a.loop.client; c != nil && !failed && !unsaved {
				c.Ack(e.Version)
			}
		case machine.Arm:
			a.loop.armed = e.At
			a.arm()
		case machine.Log:
			a.tell(e)
		default:
			if !unsaved {
				err = a.save(e)
				unsaved = err != nil
			}
		}
		if err != nil {
			events = append(events, machine.Failed{Effect: e, Reason: err.Error()})
		}
	}
	return events
}

func (a *Agent) tell(l machine.Log) {
	if l.Warn {
		a.log.Warn(l.Message, l.Args...) //nolint:sloglint // the machine has constants there
		return
	}
	a.log.Info(l.Message, l.Args...) //nolint:sloglint // as above
}

// save writes a part of the state to the disk.
func (a *Agent) save(e machine.Effect) error {
	d := a.loop.dir
	switch e := e.(type) {
	case machine.SaveWanted:
		return d.SaveWanted(e.Wanted)
	case machine.SaveJoin:
		return d.SaveJoin(e.Join)
	case machine.SaveIdentity:
		return d.SaveIdentity(e.Record)
	case machine.SaveNetmap:
		return d.SaveNetmap(e.Netmap)
	case machine.SaveDelta:
		return d.SaveDelta(e.Delta, e.Netmap)
	case machine.SaveFloors:
		floors := e.Floors
		floors.MeshTime = a.time.Floor()
		return d.SaveFloors(floors)
	case machine.Forget:
		a.loop.keys = keys{dir: d, home: a.loop.keys.home}
		return d.Forget()
	}
	return fmt.Errorf("agent: nobody carries out %T", e)
}

// enforce changes what passes.
func (a *Agent) enforce(e machine.Effect) error {
	switch e := e.(type) {
	case machine.Install:
		a.install(e.Program)
	case machine.Sweep:
		a.sweep()
	case machine.SetPeers:
		return a.setPeers(e)
	case machine.RemovePeers:
		return a.removePeers(e.IDs)
	case machine.Lead:
		return a.lead(e)
	}
	return nil
}

func (a *Agent) install(p *filter.Program) {
	a.filter.Install(p)
	a.program.Store(p)
	if p == nil || a.loop.flows == nil {
		return
	}
	n, err := a.filter.RestoreFlows(a.loop.flows, time.Now())
	a.loop.flows = nil
	if err != nil {
		a.log.Warn("connections from before the restart are cut", "err", err)
	}
	a.log.Info("connections go on", "flows", n)
}

// converse passes an effect on to the control client.
func (a *Agent) converse(e machine.Effect) {
	c := a.loop.client
	switch e := e.(type) {
	case machine.Hang:
		a.hang()
	case machine.Attach:
		a.attach(e.Self, e.Applied)
	case machine.Resume:
		if c != nil {
			c.Resume(e.Applied)
		}
	case machine.Redial:
		if c != nil {
			c.Redial(e.Reason)
		}
	}
}

// attach starts a client for the control stream, or gives a running one its new identity.
func (a *Agent) attach(self *identity.Self, applied proto.Version) {
	a.shown.Store(self)
	if c := a.loop.client; c != nil {
		c.SetSelf(self)
		c.Resume(applied)
		return
	}
	a.loop.client = control.Attach(a.controlConfig(a.loop.machine.URLs(), a.loop.machine.Hostname()), self, applied, a.loop.held)
	a.report()
	a.tellHealth(a.health.Facts())
}

func (a *Agent) controlConfig(urls []string, hostname string) control.Config {
	if hostname == "" {
		hostname = a.cfg.Hostname
	}
	return control.Config{
		Dial: a.cfg.Edges.Dial, Proxy: a.cfg.Edges.Proxy, Now: a.time.Now, Heard: a.time.Heard, Rand: newRand(),
		URLs: urls, Device: a.loop.keys.device, Prover: a.loop.keys.prover(), Program: a.cfg.Program, Hostname: hostname, Facts: a.facts,
		Emit: func(ctx context.Context, e machine.Event) {
			// An error means that the client was closed or the agent is ending: nobody wants the event.
			_ = a.post(ctx, func() { a.step(e) })
		},
	}
}

// renew asks for the next certificate, with a node key that is already on the disk.
func (a *Agent) renew(self *identity.Self) error {
	c := a.loop.client
	if c == nil {
		return nil
	}
	next, err := a.loop.keys.next(self)
	if err != nil {
		return err
	}
	c.Renew(control.Renewal{Node: next, Ticket: self.Record.Ticket, Talking: a.talking()})
	return nil
}

// turn starts using another node key.
func (a *Agent) turn(e machine.Turn) error {
	private, err := a.loop.keys.turn(e.To)
	if private.IsZero() || a.loop.path == nil {
		return err
	}
	return errors.Join(err, a.loop.path.engine.RotateLocalKey(private))
}

// facts returns what the coordinator is told about this machine.
func (a *Agent) facts() enroll.Facts {
	return enroll.Facts{OSVersion: posture.OSVersion(), Routes: a.offers()}
}

// hang ends an enrolment or the control client, and waits for it.
func (a *Agent) hang() {
	if a.loop.cancel != nil {
		a.loop.cancel()
		<-a.loop.done
		a.loop.enrolment = enrolment{}
	}
	if a.loop.client != nil {
		a.loop.client.Close()
		a.loop.client = nil
	}
}

// enrol asks for the first certificate. The keys are on the disk before the first message is sent.
func (a *Agent) enrol(e machine.Enrol) error {
	a.hang()
	k := &a.loop.keys
	if err := k.make(); err != nil {
		return err
	}
	cfg := a.controlConfig(e.Join.URLs, e.Hostname)
	request := enroll.Request{
		Device: k.device, Node: k.node(), Prover: cfg.Prover, Token: e.Join.Secret, Root: e.Join.Root,
		Hostname: cfg.Hostname, Program: cfg.Program, Facts: a.facts(), Posture: a.healthNow,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a.loop.enrolment = enrolment{cancel, done}
	go func() {
		defer close(done)
		self, held, err := control.Enrol(ctx, cfg, request)
		switch {
		case err == nil && self.Node.Relay:
			held.Close()
			cfg.Emit(ctx, machine.EnrolFailed{Reason: "the join code is for a relay: run `redoubt relay` with it"})
		case err == nil:
			err := a.post(ctx, func() {
				defer held.Close() // does nothing if the client has taken it
				a.loop.held = held
				a.step(machine.Enrolled{Self: self})
				a.loop.held = nil
			})
			if err != nil { // the agent is ending
				held.Close()
			}
		case !errors.Is(err, context.Canceled):
			cfg.Emit(ctx, machine.EnrolFailed{Reason: err.Error()})
		}
	}()
	return nil
}
