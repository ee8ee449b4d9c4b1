package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/flowlog"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

const (
	// tendEvery is how often the filter's clock is advanced and its records are drained.
	tendEvery = 500 * time.Millisecond
	// lookEvery is how often the engine's counters are read while there is traffic.
	lookEvery = 5 * time.Second
	// sweepSlice is how many flows one call of Sweep checks before others get their turn.
	sweepSlice = 4096
)

// dataPath is a running data path. The loop owns it; its goroutines only post to the loop.
type dataPath struct {
	name   string
	self   *identity.Self
	device *tun.FilteredDevice
	bind   *bind.Bind
	engine wg.Engine
	uapi   Closer      // nil: none
	paths  *path.State // to peers without path keys
	local  []netip.Addr
	relays []proto.Relay // of the netmap

	steering *steering
	looked   time.Time // when the engine's counters were last read

	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// startPath brings up device, guard, routes and engine, in this order; the filter lets nothing pass yet.
func (a *Agent) startPath(self *identity.Self) machine.Event {
	a.closePath()
	if a.loop.keys.unread.again != nil {
		return machine.PathDown{Reason: "the node keys cannot be read at the moment"}
	}
	p, err := a.openPath(self)
	if err != nil {
		return machine.PathDown{Reason: err.Error()}
	}
	a.loop.path = p
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.tasks.Go(func() { a.tend(ctx, p) })
	p.tasks.Go(func() { a.watchEngine(ctx, p) })
	p.tasks.Go(func() { a.followRelays(ctx, p) })
	if changes, err := a.cfg.Edges.Network.Watch(ctx); err != nil {
		a.log.Warn("network changes are not noticed", "err", err)
	} else {
		p.tasks.Go(func() { a.watchNetwork(ctx, changes) })
	}
	a.look()
	a.scout(true)
	a.offer()
	a.report()
	return machine.PathUp{}
}

func (a *Agent) openPath(self *identity.Self) (_ *dataPath, err error) {
	a.filter.Install(nil)
	mesh := self.Record.Mesh
	inner, err := a.cfg.Edges.OpenTUN(a.cfg.Interface, tun.DefaultMTU)
	if err != nil {
		return nil, err
	}
	p := &dataPath{self: self, device: tun.Filtered(inner, a.filter)}
	undo := p.device.Close
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	if p.name, err = p.device.Name(); err != nil {
		return nil, err
	}
	if err = a.cfg.Edges.Network.Up(a.network(p)); err != nil {
		return nil, err
	}
	bounds := path.Bounds{Overlay: []netip.Prefix{mesh.V4, mesh.V6}}
	p.bind = a.cfg.Edges.NewBind(bind.Config{Bounds: bounds, Mark: osnet.Mark, Readers: runtime.GOMAXPROCS(0)})
	a.shown.Store(self)
	if p.steering, err = a.openSteering(self, p.bind, bounds); err != nil {
		return nil, err
	}
	p.engine = wg.NewInline(self.Node.ID, p.device, p.bind, a.log)
	undo = func() error { return errors.Join(p.steering.close(), p.engine.Close()) }
	if err = a.listen(p.engine); err != nil {
		return nil, err
	}
	p.local, err = a.cfg.Edges.Network.Endpoints(mesh)
	if err != nil {
		return nil, err
	}
	p.paths = path.New(bounds, networks(p.local))
	p.steering.pilot.Moved(networks(p.local))
	if a.cfg.Edges.ServeUAPI != nil {
		if p.uapi, err = a.cfg.Edges.ServeUAPI(p.name, p.engine); err != nil {
			a.log.Warn("`wg show` will not show this interface", "err", err)
			err = nil
		}
	}
	return p, nil
}

// listen opens the UDP port: the configured one, else the one that peers know from before, if it is free.
func (a *Agent) listen(e wg.Engine) error {
	want := a.cfg.ListenPort
	if want == 0 {
		want = a.loop.port
	}
	err := e.Configure(a.loop.keys.node(), want)
	if err != nil && want != a.cfg.ListenPort {
		err = e.Configure(a.loop.keys.node(), 0)
	}
	if err != nil {
		return err
	}
	port, err := e.Port()
	if err != nil || port == a.loop.port {
		return err
	}
	a.loop.port = port
	if err := a.loop.dir.SavePort(port); err != nil {
		a.log.Warn("peers may not find this node immediately after a restart", "err", err)
	}
	return nil
}

// networks guesses which networks the addresses belong to. This only affects the order of candidates.
func networks(addrs []netip.Addr) (out []netip.Prefix) {
	for _, a := range addrs {
		bits := 24
		if a.Is6() {
			bits = 64
		}
		if p, err := a.Prefix(bits); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// stopPath takes the data path down and restores the host's network.
func (a *Agent) stopPath() {
	// The routes go first: what the host sends is then refused instead of being lost in a device without an engine.
	if err := a.cfg.Edges.Network.Down(); err != nil {
		a.log.Warn("the host's network configuration is not completely restored", "err", err)
	}
	a.closePath()
}

// closePath closes engine and device. The guard stays, so that nothing leaves in clear until the path is up again.
func (a *Agent) closePath() {
	p := a.loop.path
	if p == nil {
		return
	}
	a.loop.path = nil
	a.install(nil)
	p.cancel()
	p.tasks.Wait()
	if p.uapi != nil {
		if err := p.uapi.Close(); err != nil {
			a.log.Warn("close the socket for wg show", "err", err)
		}
	}
	if err := p.steering.close(); err != nil {
		a.log.Warn("relays were not closed cleanly", "err", err)
	}
	if err := p.engine.Close(); err != nil {
		a.log.Warn("the engine did not stop cleanly", "err", err)
	}
}

// maxGreeted is how many peers are probed at once after our engine has restarted. The others find out as WireGuard does,
// within 15 s of sending something.
const maxGreeted = 128

// manyPeers is the number of peers in one update above which the garbage from reading it is collected at once.
const manyPeers = 1000

// setPeers configures peers in the engine, with their endpoints.
func (a *Agent) setPeers(e machine.SetPeers) error {
	p := a.loop.path
	if p == nil {
		return nil
	}
	if !e.Again && time.Since(p.looked) >= lookAgain {
		a.lookAtPeers() // a path that works must not be given up for one that might work
	}
	for n, peer := range e.Peers {
		cfg := wg.PeerConfig{ID: peer.ID, Keys: peer.Keys, Addrs: peer.Addrs, Routes: peer.Routes}
		var effects []path.Effect
		if cfg.Course = a.steer(p, peer); cfg.Course != nil {
			p.paths.Step(time.Now(), path.Gone{ID: peer.ID})
		} else {
			effects = p.paths.Step(time.Now(), path.Known{ID: peer.ID, Endpoints: peer.Endpoints})
		}
		for _, effect := range effects {
			if point, ok := effect.(path.Point); ok {
				cfg.Endpoints = point.Candidates
			}
		}
		if err := p.engine.SetPeer(cfg); err != nil {
			return err
		}
		if e.Again && n < maxGreeted {
			effects = []path.Effect{path.Point{ID: peer.ID, Candidates: cfg.Endpoints, Now: true}}
		}
		a.follow(effects)
	}
	if len(e.Peers) >= manyPeers {
		p.tasks.Go(debug.FreeOSMemory)
	}
	return nil
}

func (a *Agent) removePeers(ids []proto.NodeID) error {
	p := a.loop.path
	if p == nil {
		return nil
	}
	var errs []error
	for _, id := range ids {
		p.paths.Step(time.Now(), path.Gone{ID: id})
		p.steering.forget(id)
		errs = append(errs, p.engine.RemovePeer(id))
	}
	return errors.Join(errs...)
}

// follow carries out on the engine what the path decisions ask for.
func (a *Agent) follow(effects []path.Effect) {
	for _, e := range effects {
		point, ok := e.(path.Point)
		if !ok || !point.Now {
			continue
		}
		if err := a.loop.path.engine.Probe(point.ID, point.Candidates); err != nil {
			a.log.Debug("probe failed", "node", point.ID, "err", err)
		}
	}
}

// sweep checks all flows against the program in force and sends the resets of those that it ended.
func (a *Agent) sweep() {
	if p := a.loop.path; p != nil {
		for !a.filter.Sweep(sweepSlice, p.reset) {
		}
	}
}

// reset tells both ends of a flow that it ended. Resets that cannot be delivered are lost like any packet.
func (p *dataPath) reset(r filter.Reset) {
	if r.ToLocal != nil {
		_ = p.device.Deliver(r.ToLocal)
	}
	if r.ToPeer != nil {
		p.device.Inject(r.ToPeer)
	}
}

// tend advances the filter's clock, writes the flow log and has the paths to peers reviewed.
func (a *Agent) tend(ctx context.Context, p *dataPath) {
	t := time.NewTicker(tendEvery)
	defer t.Stop()
	flows := flowlog.New()
	var looked time.Time
	var seen uint64
	for {
		select {
		case <-ctx.Done():
			a.drain(flows)
			return
		case <-t.C:
		}
		for !a.filter.Sweep(sweepSlice, p.reset) {
		}
		c := a.drain(flows)
		if packets := c.In.Packets + c.Out.Packets; packets != seen && time.Since(looked) >= lookEvery {
			seen, looked = packets, time.Now()
			if a.post(ctx, a.lookAtPeers) != nil {
				return
			}
		}
	}
}

// drain writes the filter's records to the flow log.
func (a *Agent) drain(flows *flowlog.Aggregator) filter.Counters {
	write := func(l flowlog.Line) {
		a.log.LogAttrs(context.Background(), l.Level, l.Message, l.Attrs...) //nolint:sloglint // flowlog has constants there
	}
	now := time.Now()
	a.filter.Drain(func(r filter.Record) {
		if l, ok := flows.Add(now, r); ok {
			write(l)
		}
	})
	c := a.filter.Counters()
	for _, l := range flows.Flush(now, c.RecordsLost) {
		write(l)
	}
	return c
}

// lookAgain is how old a reading of the engine's counters may be and still serve for a change of the netmap: such changes
// may come in quick succession.
const lookAgain = 50 * time.Millisecond

// talking returns the peers with which there are sessions.
func (a *Agent) talking() (ids []proto.NodeID) {
	p := a.loop.path
	if p == nil {
		return nil
	}
	stats, err := p.engine.Peers()
	if err != nil {
		a.log.Debug("engine's counters", "err", err)
		return nil
	}
	for _, s := range stats {
		if !s.LastHandshake.IsZero() && time.Since(s.LastHandshake) < session.RejectAfterTime && len(ids) < wire.MaxTalking {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// lookAtPeers feeds the engine's counters to the path decisions.
func (a *Agent) lookAtPeers() {
	p := a.loop.path
	if p == nil {
		return
	}
	p.looked = time.Now()
	stats, err := p.engine.Active()
	if err != nil {
		a.log.Debug("engine's counters", "err", err)
		return
	}
	now := time.Now()
	for _, s := range stats {
		a.follow(p.paths.Step(now, path.Seen{
			ID: s.ID, Endpoint: s.Endpoint, LastHandshake: s.LastHandshake, Rx: s.Rx, Tx: s.Tx,
		}))
	}
}

// watchEngine reports when the engine ends by itself.
func (a *Agent) watchEngine(ctx context.Context, p *dataPath) {
	select {
	case <-ctx.Done():
	case <-p.engine.Done():
		// An error means that the path is being stopped anyway.
		_ = a.post(ctx, func() {
			if a.loop.path == p {
				a.broken("the WireGuard engine stopped: was the interface " + p.name + " removed?")
			}
		})
	}
}

// broken closes a data path that no longer works; the machine has it opened again.
func (a *Agent) broken(reason string) {
	a.closePath()
	a.step(machine.PathDown{Reason: reason})
}

func (a *Agent) watchNetwork(ctx context.Context, changes <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-changes:
			if !ok {
				if ctx.Err() == nil {
					a.log.Warn("network changes are no longer noticed")
				}
				return
			}
		}
		if a.post(ctx, a.moved) != nil {
			return
		}
	}
}

// moved handles a change of the host's network.
func (a *Agent) moved() {
	p := a.loop.path
	if p == nil {
		return
	}
	// Reloading a firewall removes our guard as well; Up restores what is missing.
	if err := a.cfg.Edges.Network.Up(a.network(p)); err != nil {
		a.broken(err.Error())
		return
	}
	local, err := a.cfg.Edges.Network.Endpoints(p.self.Record.Mesh)
	if err != nil {
		a.log.Warn("cannot read this host's addresses", "err", err)
		return
	}
	p.local = local
	p.bind.ForgetSources()
	a.lookAtPeers() // peers heard lately must be told our new address
	a.follow(p.paths.Step(time.Now(), path.Moved{Local: networks(local)}))
	p.steering.client.Moved()
	a.scout(true)
	a.offer()
	p.steering.pilot.Moved(networks(local))
	a.report()
	if c := a.loop.client; c != nil {
		c.Kick(func(addr net.Addr) bool { return isGone(addr, local) })
	}
	a.look()
	a.announce()
}

// isGone reports whether this host no longer has the address.
func isGone(addr net.Addr, local []netip.Addr) bool {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil || ap.Addr().IsLoopback() || len(local) == 0 || len(local) >= osnet.MaxEndpoints {
		return false
	}
	for _, l := range local {
		if l == ap.Addr().Unmap() {
			return false
		}
	}
	return true
}

// look collects the problems of this host's network, for the status.
func (a *Agent) look() {
	p := a.loop.path
	if p == nil {
		return
	}
	problems := a.cfg.Edges.Network.Problems()
	clashes, err := a.cfg.Edges.Network.Clashes(p.self.Record.Mesh)
	if err != nil {
		a.log.Warn("cannot look for other users of the mesh's addresses", "err", err)
	}
	a.loop.problems = append(problems, clashes...)
}

// report tells the coordinator where this node can be reached.
func (a *Agent) report() {
	p, c := a.loop.path, a.loop.client
	if p == nil || c == nil {
		return
	}
	port, err := p.engine.Port()
	if err != nil {
		a.log.Debug("UDP port", "err", err)
		return
	}
	c.Report(p.reach(port), port)
}
