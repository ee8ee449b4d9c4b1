package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net/netip"
	"slices"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/pilot"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// pathKey is the key by which this process receives path messages. It is created once per process and never saved.
type pathKey struct {
	private key.PathPrivate
	boxes   *pathmsg.Boxes // they outlive the pilots: no message is accepted again once the data path is restarted
	boot    uint64
}

// openPathKey creates the key, unless it exists. Boot numbers follow mesh time, which does not go back.
func (a *Agent) openPathKey() error {
	if !a.loop.pathKey.private.IsZero() {
		return nil
	}
	private, err := key.NewPath(rand.Reader)
	if err != nil {
		return err
	}
	a.loop.pathKey = pathKey{private, pathmsg.NewBoxes(private), uint64(a.time.Now().UnixNano())}
	return nil
}

// steering finds paths to peers that have path keys.
type steering struct {
	pilot  *pilot.Pilot
	client *relay.Client
	scout  *scout.Scout
	asked  []netip.AddrPort // by STUN
	seen   []netip.AddrPort // where the relays saw this node at that time
	key    *proto.PathKey   // as announced to peers
	keys   map[proto.NodeID]keyed
	news   chan struct{} // holds a value when the states of relays changed
}

// keyed is a peer with a verified path key.
type keyed struct {
	reach  proto.Reach
	public key.PathPublic
}

// openSteering creates the steering, before the sockets are open.
func (a *Agent) openSteering(self *identity.Self, b *bind.Bind, bounds path.Bounds) (*steering, error) {
	if err := a.openPathKey(); err != nil {
		return nil, err
	}
	k := a.loop.pathKey
	signed, err := pathmsg.SignKey(a.loop.keys.device, self.Node.ID, k.boot, k.private.Public())
	if err != nil {
		return nil, err
	}
	s := &steering{key: signed, keys: map[proto.NodeID]keyed{}, news: make(chan struct{}, 1)}
	device := a.loop.keys.device
	certificate := func() *tls.Certificate {
		current := a.shown.Load()
		c, err := cert.TLSCertificate(device, current.Record.Chain[0], current.Record.Chain[1:]...)
		if err != nil {
			a.log.Warn("this node's certificate cannot be used for relays", "err", err)
			return nil
		}
		return &c
	}
	news := func() {
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
	s.scout = scout.New(scout.Config{Send: b.SendTo, PortMap: a.cfg.Edges.Router, PortMap6: a.cfg.Edges.Router6, Changed: news})
	s.client = relay.New(relay.Config{
		Self: self.Node.ID, Certificate: certificate, Send: b.SendRunTo, Resolve: a.cfg.Edges.Resolve, Rand: rand.Reader, Log: a.log,
		Open: relay.Opener{
			Dial: outward.Dialer{Dial: a.cfg.Edges.Dial, Proxy: a.cfg.Edges.Proxy}.Open, Certificate: certificate,
			Verify: func(id proto.NodeID, chain [][]byte) error {
				return a.shown.Load().Verifier.Relay(chain, id, a.time.Now())
			},
		}.Open,
		Changed: news,
	})
	s.pilot = pilot.New(pilot.Config{
		Self: self.Node.ID, Boxes: k.boxes, Bind: b, Bounds: bounds, Warm: s.client.Warm, Stir: s.client.Stir,
		STUN: s.scout.STUN, MTU: tun.DefaultMTU, Changed: func(proto.NodeID) { a.announce() }, Log: a.log,
	})
	b.Serve(s.pilot, s.client)
	return s, nil
}

// close ends it while the sockets are still open, so that relays are notified.
func (s *steering) close() error {
	s.pilot.Close()
	return errors.Join(s.scout.Close(), s.client.Close())
}

// followRelays has the loop look at the relays whenever their states change.
func (a *Agent) followRelays(ctx context.Context, p *dataPath) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.steering.news:
		}
		err := a.post(ctx, func() {
			if a.loop.path == p {
				a.scout(false)
				a.offer()
				a.report()
				a.announce()
			}
		})
		if err != nil {
			return
		}
	}
}

// offer gives the pilot the addresses where this node may be reached; peers learn them the next time they ask.
func (a *Agent) offer() {
	p := a.loop.path
	port, err := p.engine.Port()
	if err != nil {
		return
	}
	states, found := p.steering.client.States(), p.steering.scout.Report()
	p.steering.pilot.Offer(pilot.Offer(p.local, port, states, found))
	p.steering.pilot.Keep(pilot.Shut(p.local, states, found))
}

// scout starts finding out how this node is seen from outside, if that may have changed.
func (a *Agent) scout(moved bool) {
	p := a.loop.path
	port, err := p.engine.Port()
	if err != nil {
		return
	}
	servers, seen := pilot.Servers(p.steering.client.States())
	if !moved && slices.Equal(servers, p.steering.asked) && slices.Equal(seen, p.steering.seen) {
		return
	}
	p.steering.asked, p.steering.seen = servers, seen
	g := scout.Ground{Servers: servers, Port: port}
	for _, l := range p.local {
		g.Local = append(g.Local, netip.AddrPortFrom(l, port))
	}
	p.steering.scout.Look(g)
}

// reach returns where this node can be reached, for the coordinator to tell peers.
func (p *dataPath) reach(port uint16) proto.Reach {
	r := proto.Reach{PathKey: p.steering.key}
	for _, l := range p.local {
		r.Endpoints = append(r.Endpoints, proto.Endpoint{Addr: netip.AddrPortFrom(l, port), Kind: proto.EndpointInterface})
	}
	for _, o := range pilot.Outside(p.steering.client.States(), p.steering.scout.Report()) {
		e := proto.Endpoint{Addr: o, Kind: proto.EndpointObserved}
		known := slices.ContainsFunc(r.Endpoints, func(o proto.Endpoint) bool { return o.Addr == e.Addr })
		if p.self.Record.Mesh.ValidEndpoint(e) && !known && len(r.Endpoints) < proto.MaxEndpoints {
			r.Endpoints = append(r.Endpoints, e)
		}
	}
	r.HomeRelay, _ = p.steering.client.Home()
	return r
}

// setRelays applies the netmap's relays.
func (a *Agent) setRelays() {
	p := a.loop.path
	if p == nil {
		return
	}
	relays := a.loop.machine.Relays()
	same := func(x, y proto.Relay) bool { return x.Equal(&y) }
	if !slices.EqualFunc(relays, p.relays, same) {
		p.relays = relays
		p.steering.client.SetRelays(relays)
	}
}

// steer returns the course for a peer, or nil if it has no usable path key: then the dataPath's paths choose its endpoint.
func (a *Agent) steer(p *dataPath, peer machine.Peer) *bind.Course {
	s := p.steering
	known, was := s.keys[peer.ID]
	if was && peer.Reach.Equal(&proto.Reach{}) {
		// The coordinator has lost its memory, and the peer has not contacted it since.
		return s.pilot.SetPeer(peer.ID, known.public, known.reach)
	}
	if peer.PathKey == nil {
		s.forget(peer.ID)
		return nil
	}
	public, claim := known.public, peer.PathKey
	if !claim.Equal(known.reach.PathKey) {
		var err error
		if public, err = pathmsg.VerifyKey(peer.Device, peer.ID, claim); err != nil {
			a.log.Warn("path key refused", "node", peer.ID, "err", err)
			s.forget(peer.ID)
			return nil
		}
		if was && claim.Boot < known.reach.PathKey.Boot {
			a.log.Warn("path key refused: it is older than the known one", "node", peer.ID)
			public, claim = known.public, known.reach.PathKey
		}
	}
	reach := peer.Reach
	reach.PathKey = claim
	s.keys[peer.ID] = keyed{reach, public}
	return s.pilot.SetPeer(peer.ID, public, reach)
}

func (s *steering) forget(id proto.NodeID) {
	if _, known := s.keys[id]; known {
		delete(s.keys, id)
		s.pilot.RemovePeer(id)
	}
}
