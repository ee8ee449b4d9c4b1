package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/redoubt-mesh/redoubt/agent/control"
	"github.com/redoubt-mesh/redoubt/agent/enroll"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/meshtime"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/netstack/outward"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// RelayConfig configures a standalone relay.
type RelayConfig struct {
	StateDir string
	// Join is the content of the join code; nil if the relay has joined before.
	Join     *state.Join
	Hostname string
	Program  string
	Region   string
	// Port is the UDP port, and Addresses are where nodes reach it; without Addresses, it is the address that the
	// coordinator sees the relay connect from.
	Port      uint16
	Addresses []netip.Addr
	// Listener accepts the streams that nodes open to URLs; nil means none.
	Listener net.Listener
	URLs     []string

	Log      *slog.Logger
	Registry prometheus.Registerer

	Clock meshtime.Clock // nil: the system's; so with the next three
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Proxy func(*url.URL) (*url.URL, error)
	UDP   bind.Sockets
}

const (
	// renewAgain is how long after an unsuccessful request a certificate is requested again.
	renewAgain = time.Minute
	// parting is how long nodes have to move to another relay when this one stops.
	parting = 5 * time.Second
)

// carrier is a running relay: the server, and what it knows of the mesh. One goroutine owns it, with the keys and the state
// directory; the server uses only permit.
type carrier struct {
	cfg    RelayConfig
	keys   keys
	time   *meshtime.Time
	permit relayPermit
	server *relay.Server
	client *control.Client
	info   proto.Relay
	events chan machine.Event // of the coordinator; unbuffered
	broken chan error         // why streams are no longer accepted

	self    *identity.Self
	netmap  *proto.Netmap
	seen    proto.Version // the greatest version seen
	unsaved bool          // the last update is not on the disk
	serving bool
	wanted  state.Wanted // whether the relay is locked
	apart   string       // why the relay is in quarantine; empty if it is not
	first   bool         // the coordinator wants a renewal before anything else
	due     *time.Timer  // for when to request a certificate
	expiry  *time.Timer  // for when trust in all nodes ends
}

// RunRelay joins the mesh if the relay has not joined yet, and forwards packets until the context ends.
func RunRelay(ctx context.Context, cfg RelayConfig) (err error) {
	cfg.complete()
	dir, err := state.Open(cfg.StateDir, cfg.Clock.Now())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	loaded, err := dir.Load()
	if err != nil {
		return err
	}
	c := &carrier{cfg: cfg, time: meshtime.New(cfg.Clock, loaded.Floors.MeshTime), events: make(chan machine.Event), broken: make(chan error, 1)}
	c.wanted = loaded.Wanted
	c.keys = keys{dir: dir, home: &home{make: KeyFile, log: cfg.Log}}
	if err := c.keys.open(loaded); err != nil {
		return err
	}
	if err := c.keys.make(); err != nil {
		return err
	}
	join := loaded.Join
	if cfg.Join != nil && loaded.Self == nil {
		join = cfg.Join
		if err := dir.SaveJoin(*join); err != nil {
			return err
		}
	}
	if join == nil {
		return errors.New("this relay is not in a mesh yet: give it a join code (on the coordinator: redoubt-coordinator token create --relay)")
	}
	if c.self = loaded.Self; c.self == nil {
		if err := c.join(ctx, join); err != nil {
			return err
		}
	}
	if !join.Secret.IsZero() {
		// Only now: until the identity is on the disk the secret is needed.
		if err := dir.SaveJoin(state.Join{URLs: join.URLs, Root: join.Root}); err != nil {
			return err
		}
	}
	if !c.self.Node.Relay {
		return errors.New("this identity belongs to a node, not to a relay: use a code from `redoubt-coordinator token create --relay`, and a separate state directory")
	}
	return c.run(ctx, join.URLs, loaded)
}

func (cfg *RelayConfig) complete() {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	if cfg.Clock == nil {
		cfg.Clock = meshtime.System()
	}
	if cfg.Dial == nil {
		cfg.Dial, cfg.Proxy = osnet.Dialer().DialContext, outward.Environment
	}
}

func (c *carrier) control(urls []string) control.Config {
	return control.Config{
		Dial: c.cfg.Dial, Proxy: c.cfg.Proxy, Now: c.time.Now, Heard: c.time.Heard, Rand: newRand(),
		URLs: urls, Device: c.keys.device, Program: c.cfg.Program, Hostname: c.cfg.Hostname,
		Emit: func(ctx context.Context, e machine.Event) {
			select {
			case c.events <- e:
			case <-ctx.Done():
			}
		},
	}
}

// join requests the first certificate.
func (c *carrier) join(ctx context.Context, join *state.Join) error {
	cfg := c.control(join.URLs)
	cfg.Emit = func(_ context.Context, e machine.Event) { c.tell(e) }
	self, held, err := control.Enrol(ctx, cfg, enroll.Request{
		Device: c.keys.device, Node: c.keys.node(), Token: join.Secret, Root: join.Root, Hostname: cfg.Hostname, Program: cfg.Program,
	})
	if err != nil {
		return err
	}
	held.Close() // the control stream is opened with the certificate
	if !self.Node.Relay {
		return errors.New("the join code is for a node: use one from `redoubt-coordinator token create --relay`")
	}
	c.self = self
	return c.keys.dir.SaveIdentity(self.Record)
}

// run serves until the context ends.
func (c *carrier) run(ctx context.Context, urls []string, loaded *state.State) error {
	secret, err := c.secret(loaded.Relay)
	if err != nil {
		return err
	}
	c.info = proto.Relay{
		ID: c.self.Node.ID, Name: c.self.Node.Name, Region: c.cfg.Region, Key: secret.Public(), UDPPort: c.cfg.Port, UDP: c.cfg.Addresses, URLs: c.cfg.URLs,
	}
	c.permit.now = c.time.Now
	c.permit.set(c.self, nil)
	c.permit.leaf.Store(c.certificate(c.self))
	c.server, err = relay.NewServer(relay.ServerConfig{
		ID: c.info.ID, Secret: secret, Permit: &c.permit, Rand: rand.Reader, Log: c.cfg.Log, Registry: c.cfg.Registry,
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.server.Close() }()
	c.seen = loaded.Floors.Version
	kept := c.recall(loaded.Netmap)
	c.client = control.Attach(c.control(urls), c.self, kept, nil)
	defer c.client.Close()
	if c.netmap != nil {
		if err := c.serve(); err != nil {
			return err
		}
	}
	c.due = time.NewTimer(untilRenewal(c.self.Node, c.time.Now()))
	defer c.due.Stop()
	c.expiry = time.NewTimer(c.left())
	defer c.expiry.Stop()
	return c.carry(ctx)
}

// secret returns the key by which nodes know the relay. It is kept, so that they find the relay again while nobody can tell
// them another key.
func (c *carrier) secret(kept *relaymsg.Secret) (*relaymsg.Secret, error) {
	if kept != nil {
		return kept, nil
	}
	s, err := relaymsg.NewSecret(rand.Reader)
	if err != nil {
		return nil, err
	}
	return s, c.keys.dir.SaveRelay(s)
}

// recall applies the netmap from before the restart and returns its version. It holds as long as the relay's certificate does.
func (c *carrier) recall(nm *proto.Netmap) proto.Version {
	if nm == nil {
		return proto.Version{}
	}
	if err := c.take(nm); err != nil {
		c.cfg.Log.Warn("the stored state cannot be used; waiting for the coordinator", "err", err)
		return proto.Version{}
	}
	return nm.Version
}

// carry handles events, and requests certificates in time, until the relay ends.
func (c *carrier) carry(ctx context.Context) error {
	stop, drained := ctx.Done(), make(chan struct{})
	for {
		var err error
		select {
		case <-stop:
			stop = nil
			// Events count to the end: somebody may be revoked meanwhile.
			c.server.Go(func() {
				defer close(drained)
				c.server.Drain(parting)
			})
		case <-drained:
			return nil
		case err = <-c.broken:
		case e := <-c.events:
			err = c.hear(e)
		case <-c.expiry.C:
			c.expire()
		case <-c.due.C:
			err = c.renew()
		}
		if err != nil {
			return err
		}
	}
}

// expire cuts all nodes off if the relay's certificate has expired.
func (c *carrier) expire() {
	if left := c.left(); left > 0 {
		c.expiry.Reset(left)
		return
	}
	c.cfg.Log.Warn("this relay's certificate has expired; it forwards nothing until the coordinator renews it")
	c.server.Recheck(c.permit.all())
}

// renew requests a certificate if that is due, and sets when to look again.
func (c *carrier) renew() error {
	if left := untilRenewal(c.self.Node, c.time.Now()); left > 0 && !c.first {
		c.due.Reset(left)
		return nil
	}
	c.due.Reset(renewAgain)
	next, err := c.keys.next(c.self)
	if err != nil {
		return err
	}
	c.client.Renew(control.Renewal{Node: next, Ticket: c.self.Record.Ticket})
	return nil
}

// left returns how long nodes are trusted, as things stand.
func (c *carrier) left() time.Duration { return c.permit.view.Load().until.Sub(c.time.Now()) }

// untilRenewal returns how long until a certificate should be renewed, which is at half its lifetime.
func untilRenewal(n *cert.Node, now time.Time) time.Duration {
	return n.NotBefore.Add(n.NotAfter.Sub(n.NotBefore) / 2).Sub(now)
}

// tell logs what the coordinator says, or that it says nothing.
func (c *carrier) tell(e machine.Event) {
	log := c.cfg.Log
	switch e := e.(type) {
	case machine.Connected:
		log.Info("connected with the coordinator", "url", e.URL)
	case machine.Lost:
		log.Warn("lost the coordinator; permissions stay as they were", "reason", e.Reason)
	case machine.Trouble:
		log.Warn("the coordinator cannot be reached", "reason", e.Reason)
	case machine.Refused:
		log.Warn("refused by the coordinator", "reason", e.Message)
	case machine.RenewFailed:
		log.Warn("no new certificate", "reason", e.Reason)
	}
}

// hear handles an event of the coordinator. An error ends the relay.
func (c *carrier) hear(e machine.Event) error {
	c.tell(e)
	switch e := e.(type) {
	case machine.Connected:
		locked := c.wanted.Locked
		if c.first = e.RenewFirst; !c.first {
			locked = nil
		}
		c.bar(locked, e.Quarantine)
		if c.first {
			return c.renew()
		}
	case machine.Refused:
		return c.refused(e)
	case machine.Snapshot:
		return c.know(e.Netmap, nil)
	case machine.Change:
		return c.change(e.Delta)
	case machine.Renewed:
		return c.renewed(e.Self)
	case machine.RenewFailed:
		if e.KeyUsed {
			return c.keys.drop(c.self)
		}
	}
	return nil
}

func (c *carrier) refused(e machine.Refused) error {
	switch e.Kind {
	case machine.RefusedRevoked:
		err := fmt.Errorf("this relay no longer belongs to the mesh: %s", e.Message)
		return errors.Join(err, c.keys.dir.Forget())
	case machine.RefusedLocked:
		c.bar(&state.Revocation{At: c.time.Now(), Message: e.Message}, c.apart)
	case machine.RefusedQuarantined:
		c.bar(c.wanted.Locked, e.Message)
	}
	return nil
}

// barred reports whether the coordinator does not trust this relay: it forwards nothing.
func (c *carrier) barred() bool { return c.wanted.Locked != nil || c.apart != "" }

// bar sets whether the relay is locked, and why it is in quarantine, if it is. A lock holds even after a restart without a
// coordinator.
func (c *carrier) bar(locked *state.Revocation, apart string) {
	was, save := c.barred(), locked != c.wanted.Locked
	c.wanted.Locked, c.apart = locked, apart
	// Close first and save next: the lock must hold even if the machine goes down at this moment.
	if is := c.barred(); is != was {
		c.enforce()
		if is {
			c.cfg.Log.Warn("this relay forwards nothing until the coordinator trusts it again")
		} else {
			c.cfg.Log.Info("this relay forwards again")
		}
	}
	if !save {
		return
	}
	if err := c.keys.dir.SaveWanted(c.wanted); err != nil {
		c.cfg.Log.Warn("not stored whether this relay is locked; a restart without the coordinator will not know", "err", err)
	}
}

// enforce sets who may use the relay, and cuts off those who may no longer.
func (c *carrier) enforce() {
	nm := c.netmap
	if c.barred() {
		nm = nil
	}
	c.server.Recheck(c.permit.set(c.self, nm))
}

// change applies a delta.
func (c *carrier) change(d *proto.Delta) error {
	if c.netmap == nil {
		c.anew(errors.New("received a change before any state"))
		return nil
	}
	next, err := c.netmap.Apply(d)
	if err != nil {
		c.anew(err)
		return nil
	}
	return c.know(next, d)
}

// anew asks the coordinator for the whole netmap.
func (c *carrier) anew(err error) {
	c.cfg.Log.Warn("requesting the whole state again", "err", err)
	c.client.Resume(proto.Version{})
	c.client.Redial("the received change does not fit")
}

// take applies a netmap, which says who may meet whom, if it is one for this relay.
func (c *carrier) take(nm *proto.Netmap) error {
	if err := machine.Fits(nm, c.self, c.seen); err != nil {
		return err
	}
	if err := c.self.Verifier.AddIntermediates(nm.Authorities); err != nil {
		c.cfg.Log.Warn("certificates of an authority are refused", "err", err)
	}
	c.netmap, c.seen = nm, nm.Version
	c.enforce()
	return nil
}

// save writes a netmap to the disk; d is the delta that led to it, if any.
func (c *carrier) save(nm *proto.Netmap, d *proto.Delta) {
	dir := c.keys.dir
	var err error
	if d == nil || c.unsaved {
		err = dir.SaveNetmap(nm)
	} else {
		err = dir.SaveDelta(d, nm)
	}
	c.unsaved = err != nil
	if err == nil {
		err = dir.SaveFloors(state.Floors{MeshTime: c.time.Floor(), LastContact: c.time.Now(), Version: nm.Version})
	}
	if err != nil {
		c.cfg.Log.Warn("permissions not stored; a restart will know older ones", "err", err)
	}
}

// know applies a netmap and acknowledges it; d is the delta that led to it, if any.
func (c *carrier) know(nm *proto.Netmap, d *proto.Delta) error {
	if err := c.take(nm); err != nil {
		c.anew(err)
		return nil
	}
	c.save(nm, d)
	if !c.serving {
		if err := c.serve(); err != nil {
			return err
		}
	}
	c.client.Resume(nm.Version)
	c.client.Ack(nm.Version)
	return nil
}

// serve opens the relay's ports, once it is known which nodes may use it, and tells the coordinator.
func (c *carrier) serve() (err error) {
	if c.info.UDPPort, err = c.server.ServeUDP(c.cfg.UDP, c.cfg.Port); err != nil {
		return err
	}
	if c.cfg.Listener != nil {
		c.server.Go(func() {
			// Without streams the relay would look well, and be of no use to nodes that cannot use UDP.
			config := &tls.Config{GetConfigForClient: c.permit.configure, MinVersion: tls.VersionTLS13}
			c.broken <- c.server.ServeTLS(c.cfg.Listener, config)
		})
	}
	c.serving = true
	c.cfg.Log.Info("relay serves", "relay", c.info.ID, "udp", c.info.UDPPort)
	c.client.Serve(c.info)
	return nil
}

// renewed takes the next certificate into use.
func (c *carrier) renewed(self *identity.Self) error {
	err := self.Follows(c.self)
	if err == nil && !self.Node.Relay {
		err = errors.New("the certificate is a node's")
	}
	if err == nil {
		err = c.keys.dir.SaveIdentity(self.Record)
	}
	if err == nil {
		_, err = c.keys.turn(self.Node.Keys[0].Public)
	}
	if err != nil {
		return fmt.Errorf("new certificate: %w", err)
	}
	c.self = self
	if c.netmap != nil {
		if err := self.Verifier.AddIntermediates(c.netmap.Authorities); err != nil {
			c.cfg.Log.Warn("certificates of an authority are refused", "err", err)
		}
	}
	if c.first {
		c.bar(nil, c.apart) // it is served from now on
	}
	c.first = false
	c.enforce()
	c.permit.leaf.Store(c.certificate(self))
	c.client.SetSelf(self)
	c.cfg.Log.Info("certificate renewed", "until", self.Node.NotAfter)
	c.expiry.Reset(max(c.left(), 0))
	return c.renew()
}

// certificate returns what the relay shows in TLS handshakes.
func (c *carrier) certificate(self *identity.Self) *tls.Certificate {
	t, err := cert.TLSCertificate(c.keys.device, self.Record.Chain[0], self.Record.Chain[1:]...)
	if err != nil {
		return nil // handshakes fail with an error that says so
	}
	return &t
}
