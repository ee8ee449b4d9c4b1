package pilot

import (
	"crypto/rand"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// Config configures a Pilot.
type Config struct {
	Self   proto.NodeID
	Boxes  *pathmsg.Boxes // of this node's path key; the Pilot uses them until it is closed
	Bind   *bind.Bind
	Bounds path.Bounds
	Local  []netip.Prefix
	// MTU is that of the host's device; 0 means that packet sizes are not probed.
	MTU int
	// STUN receives the STUN messages (RFC 8489); nil if they are not wanted.
	STUN func(from netip.AddrPort, msg []byte)
	// Warm prepares a path through a relay; nil if there are no relays.
	Warm func(relay proto.NodeID)
	// Stir sends something to a relay, or to all if it is 0: the NAT in between may have forgotten this node, or the relay may
	// be gone. Nil if there are no relays.
	Stir func(relay proto.NodeID)
	// Changed is called when the view of a peer may have changed. It must not block. May be nil.
	Changed func(proto.NodeID)
	Log     *slog.Logger
}

// Pilot finds the paths to all peers that have path keys. Its methods may be called from any goroutine.
type Pilot struct {
	cfg   Config
	own   key.PathPublic
	inbox chan func()
	extra *extras
	stop  chan struct{}
	done  sync.WaitGroup
	once  sync.Once

	// Used only by the goroutine of run.
	finder *path.Finder
	peers  map[proto.NodeID]*peer
	byKey  map[pathmsg.KeyID][]*peer
	awake  map[proto.NodeID]*peer

	dropped atomic.Uint64 // path messages that were not sealed for us, or came too fast
}

var (
	_ bind.Handler = (*Pilot)(nil)
	_ bind.Watcher = (*Pilot)(nil)
)

// maxInbox is the most work that waits for the goroutine.
const maxInbox = 512

// New returns a running Pilot. It does not serve the Bind yet: that is up to the Bind's owner. The caller must Close the Pilot.
func New(cfg Config) *Pilot {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pilot{
		cfg: cfg, own: cfg.Boxes.Own(), inbox: make(chan func(), maxInbox), extra: newExtras(), stop: make(chan struct{}),
		finder: path.NewFinder(cfg.Bounds, cfg.Local, rand.Reader),
		peers:  map[proto.NodeID]*peer{}, byKey: map[pathmsg.KeyID][]*peer{}, awake: map[proto.NodeID]*peer{},
	}
	if cfg.MTU > 0 && cfg.Bind.Probes() {
		p.step(path.Sized{MTU: cfg.MTU})
	}
	p.done.Go(p.run)
	p.done.Go(func() { p.extra.run(p.stop) })
	return p
}

// Close stops the goroutines and waits for them. Routes stay as they are.
func (p *Pilot) Close() {
	p.once.Do(func() {
		close(p.stop)
		p.done.Wait()
		for _, x := range p.peers {
			p.disclaim(x)
		}
	})
}

// post queues f for the goroutine. It returns false if too much is waiting, or the Pilot was closed.
func (p *Pilot) post(f func()) bool {
	select {
	case <-p.stop:
		return false
	case p.inbox <- f:
		return true
	default:
		return false
	}
}

// call runs f on the goroutine and waits for it. Unlike post, it waits for room in the queue.
func (p *Pilot) call(f func()) {
	done := make(chan struct{})
	select {
	case <-p.stop:
		return
	case p.inbox <- func() { defer close(done); f() }:
	}
	select {
	case <-done:
	case <-p.stop:
		p.done.Wait()
	}
}

// Path implements bind.Handler.
func (p *Pilot) Path(from *bind.Endpoint, msg []byte) {
	id, err := pathmsg.Sender(msg)
	if err != nil || len(msg) > pathmsg.MaxPing {
		p.dropped.Add(1)
		return
	}
	own := append([]byte(nil), msg...)
	if !p.post(func() { p.open(id, from, own) }) {
		p.dropped.Add(1)
	}
}

// STUN implements bind.Handler.
func (p *Pilot) STUN(from netip.AddrPort, msg []byte) {
	if p.cfg.STUN != nil {
		p.cfg.STUN(from, msg)
	}
}

// Wanted implements bind.Watcher.
func (p *Pilot) Wanted(id proto.NodeID, c *bind.Course) {
	if !p.post(func() { p.wake(id) }) {
		c.Sleep() // the next packet will report it again
	}
}

// Heard implements bind.Watcher.
func (p *Pilot) Heard(id proto.NodeID, from *bind.Endpoint) {
	p.post(func() { p.step(path.Heard{ID: id, From: wayOf(from)}) })
}

// SetPeer adds or changes a peer, and returns the course to send to it on.
func (p *Pilot) SetPeer(id proto.NodeID, public key.PathPublic, reach proto.Reach) (c *bind.Course) {
	p.call(func() {
		x := p.peers[id]
		if x == nil {
			x = &peer{id: id, course: p.cfg.Bind.NewCourse(id, p)}
			p.peers[id] = x
		}
		if x.public != public {
			p.disclaim(x)
			p.claim(x, public)
		}
		c = x.course
		p.step(path.Known{ID: id, Endpoints: reach.Endpoints, Relay: reach.HomeRelay})
	})
	return c
}

// RemovePeer forgets a peer.
func (p *Pilot) RemovePeer(id proto.NodeID) {
	p.call(func() {
		x := p.peers[id]
		if x == nil {
			return
		}
		p.step(path.Gone{ID: id})
		p.disclaim(x)
		delete(p.peers, id)
		delete(p.awake, id)
	})
}

// Moved reports that this host's networks changed.
func (p *Pilot) Moved(local []netip.Prefix) { p.call(func() { p.step(path.Moved{Local: local}) }) }

// Offer changes what peers are told about this node.
func (p *Pilot) Offer(o pathmsg.Offer) { p.call(func() { p.step(path.Offering{Offer: o}) }) }

// Keep sets whether the current paths are the only way into this node, so that they must be kept open.
func (p *Pilot) Keep(on bool) { p.call(func() { p.step(path.Keeping{On: on}) }) }

// View returns the state of the path to a peer; false if the Pilot does not steer it.
func (p *Pilot) View(id proto.NodeID) (v path.View, ok bool) {
	p.call(func() { v, ok = p.finder.View(id) })
	return v, ok
}

// Views returns the views of several peers at once.
func (p *Pilot) Views(ids []proto.NodeID) map[proto.NodeID]path.View {
	out := make(map[proto.NodeID]path.View, len(ids))
	p.call(func() {
		for _, id := range ids {
			if v, ok := p.finder.View(id); ok {
				out[id] = v
			}
		}
	})
	return out
}

// run is the main goroutine.
func (p *Pilot) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	look := time.NewTicker(time.Hour)
	defer look.Stop()
	looking := false
	for {
		select {
		case <-p.stop:
			return
		case f := <-p.inbox:
			f()
		case <-timer.C:
			p.step(path.Tick{})
		case <-look.C:
			p.look()
		}
		if busy := len(p.awake) > 0; busy != looking {
			looking = busy
			if busy {
				look.Reset(path.UsedEvery)
			} else {
				look.Reset(time.Hour)
			}
		}
		timer.Stop()
		if next := p.finder.Next(); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// look reports the courses' counters to the finder.
func (p *Pilot) look() {
	for id, x := range p.awake {
		sent, heard, beside := x.course.Counts()
		e := path.Used{ID: id, Sent: sent != x.sent, Heard: heard != x.heard, Beside: beside != x.beside}
		x.sent, x.heard, x.beside = sent, heard, beside
		p.step(e)
	}
}

func (p *Pilot) wake(id proto.NodeID) {
	if x := p.peers[id]; x != nil {
		p.awake[id] = x
		p.step(path.Wanted{ID: id})
	}
}

func wayOf(e *bind.Endpoint) path.Way {
	if v := e.Via(); v != (bind.Via{}) {
		return path.Way{Relay: v.Relay}
	}
	return path.Way{Addr: e.Addr(), Socket: e.Socket()}
}

// step passes an event to the finder, and carries out its effects.
func (p *Pilot) step(e path.Event) {
	for _, f := range p.finder.Step(time.Now(), e) {
		switch f := f.(type) {
		case path.Send:
			p.send(f)
		case path.Use:
			p.use(f)
		case path.Open:
			p.extra.opens(f.Socket, func() { p.note("open a socket", f.ID, p.cfg.Bind.OpenExtra(f.Socket)) })
		case path.Shut:
			p.extra.shuts(f.Socket, func() { p.note("close a socket", f.ID, p.cfg.Bind.ShutExtra(f.Socket)) })
		case path.Stir:
			if p.cfg.Stir != nil {
				p.cfg.Stir(f.Relay)
			}
		case path.Fit:
			p.fit(f)
		case path.Rest:
			delete(p.awake, f.ID)
			if x := p.peers[f.ID]; x != nil {
				x.course.Sleep()
			}
		}
	}
}

// note logs a failure, which counts as a loss on the way.
func (p *Pilot) note(what string, id proto.NodeID, err error) {
	if err != nil {
		p.cfg.Log.Debug("not done about a path", "what", what, "node", id, "err", err)
	}
}

func (p *Pilot) use(f path.Use) {
	x := p.peers[f.ID]
	if x == nil {
		return
	}
	for _, w := range []path.Way{f.Route.Main, f.Route.Copy} {
		if w.Relay != 0 && p.cfg.Warm != nil && p.awake[f.ID] != nil {
			p.cfg.Warm(w.Relay)
		}
	}
	x.course.SetRoute(f.Route)
	if p.cfg.Changed != nil {
		p.cfg.Changed(f.ID)
	}
}

// fit sets how large packets for a peer may be.
func (p *Pilot) fit(f path.Fit) {
	x := p.peers[f.ID]
	if x == nil {
		return
	}
	x.course.SetLimit(f.MTU)
	if f.Fragments {
		if err := p.cfg.Bind.Fragment(); err != nil {
			p.cfg.Log.Warn("a way is too narrow, and packets cannot be sent in fragments", "node", f.ID, "err", err)
		}
	}
	if p.cfg.Changed != nil {
		p.cfg.Changed(f.ID)
	}
}

// send seals a message and sends it. A message that cannot be sent counts as lost.
func (p *Pilot) send(f path.Send) {
	x := p.peers[f.ID]
	if x == nil {
		return
	}
	box, err := p.boxOf(x, x.binds || p.contested(x))
	if err != nil {
		return
	}
	m, whole := f.Message, false
	if ping, ok := m.(pathmsg.Ping); ok {
		ping.Node = p.cfg.Self
		m, whole = ping, ping.Size > 0
	}
	msg := box.Seal(nil, m)
	if f.To.Socket != 0 {
		p.extra.later(func() { p.note("send a path message", f.ID, p.sendFrom(f.To, msg, whole)) })
		return
	}
	send := func() error {
		if f.To.Direct() {
			return p.cfg.Bind.SendTo(msg, f.To.Addr)
		}
		via := p.cfg.Bind.RelayEndpoint(bind.Via{Relay: f.To.Relay, Peer: f.ID})
		return p.cfg.Bind.Send([][]byte{msg}, conn.Endpoint(via))
	}
	if whole {
		err = p.cfg.Bind.Whole(send)
	} else {
		err = send()
	}
	p.note("send a path message", f.ID, err)
}

// sendFrom sends from a dedicated socket.
func (p *Pilot) sendFrom(to path.Way, msg []byte, whole bool) error {
	send := func() error { return p.cfg.Bind.SendFrom(to.Socket, msg, to.Addr) }
	if whole {
		return p.cfg.Bind.WholeFrom(to.Socket, send)
	}
	return send()
}
