package control

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/enroll"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// attached is the reading side of a known node's stream.
type attached struct {
	*Server
	*stream
	in       *frames
	node     *cert.Node
	machine  *enroll.Machine
	protocol uint32
	features []string
	applied  proto.Version // the version the node reported on attaching
	// renewFirst means that only a renewal is served: the certificate is outside its validity, or is not the one that peers are
	// given. Either a reply was lost, or the data are from a backup, whose certificates expired long ago.
	renewFirst bool
	renewal    *redoubtv1.Renew // the last one requested
	// unheard is the last report received before the node had renewed.
	unheard *redoubtv1.Report
	health  directory.Health   // likewise
	about   directory.Reported // what the node reports about itself
	left    chan struct{}      // closed when the stream ends; nil if nobody waits for that
	relay   bool               // the node is a relay and reports its service
	joined  bool               // the stream had a session, or at least ended an earlier stream's
	pace    pace
}

// attach continues with a node that presented its certificate. It returns the function that serves the rest of the stream, nil
// for none.
func (s *Server) attach(t *tls.Conn, g *guest, in *frames, hello *redoubtv1.Hello, protocol uint32) (func(), error) {
	watch := s.Directory.WatchNode(g.node.ID)
	known, err := s.trusted(g.node)
	if err != nil {
		s.Directory.RenewRefused(directory.From(s.ctx, remote(t).String()), g.node.ID, err)
		if r, _ := refusal.From(err); r.Code == redoubtv1.Refusal_CODE_LOCKED {
			return s.await(t, g, in, "node "+g.node.ID.String(), watch, s.refused(err, g, t).Held), nil
		}
		watch.Close()
		return nil, err
	}
	watch.Close()
	applied, err := wire.ToVersion(hello.GetAttach().GetApplied())
	if err != nil {
		return nil, refusal.Malformed(err.Error())
	}
	st, ok := s.newStream(t, g, g.node.ID)
	if !ok {
		return nil, nil
	}
	a := &attached{
		Server: s, stream: st, in: in, node: g.node, machine: enroll.New(s.Attestors, s.Rand), protocol: protocol,
		features: hello.GetFeatures(), applied: applied, about: s.reported(hello, hello.GetFacts()),
		relay:      known.Relay,
		renewFirst: g.outOfTime || known.Certificate.Serial != g.node.Serial,
		pace:       pace{tokens: burst, at: time.Now()},
	}
	if known.Quarantine != nil {
		// It has no peers, whichever of its certificates it presents, and gets no other one.
		a.renewFirst = g.outOfTime
	}
	st.expires.Store(g.node.NotAfter.Add(cert.Skew).UnixNano())
	s.Directory.SetLive(a.id, func(l *directory.Live) {
		l.Program, l.OS, l.Arch, l.Features = hello.GetProgram(), hello.GetOs(), hello.GetArch(), a.features
		l.Remote = remote(t)
	})
	s.Log.Debug("node connected", "node", a.id, "name", a.node.Name, "remote", t.RemoteAddr(), "program", hello.GetProgram(), "renewFirst", a.renewFirst)
	st.send(&redoubtv1.Down{Message: &redoubtv1.Down_Welcome{Welcome: &redoubtv1.Welcome{
		Protocol: protocol, Features: proto.Features(), ServerTime: s.Clock().UnixMilli(), Program: s.Program,
		Quarantine: quarantine(known), RenewFirst: a.renewFirst, KeepAliveSeconds: uint32(keepAlive / time.Second),
	}}})
	// The certificate's contents are in the directory; of the parsed one only these fields are needed later.
	g.node = &cert.Node{Identity: g.node.Identity, Device: g.node.Device}
	a.node = g.node
	if a.renewFirst {
		g.patience(time.Now().Add(enroll.Patience))
	} else {
		err = a.join()
	}
	return func() { a.live(err) }, nil
}

// live serves the node until its stream ends, which is at once if the node could not join.
func (a *attached) live(err error) {
	defer a.guest.drop()
	defer a.leave()
	if err == nil {
		err = a.read()
	}
	a.part(err)
}

// part has the pool send the reason why the stream ends, if there is one to send: only one goroutine may write to a connection.
func (a *attached) part(err error) {
	if a.ctx.Err() != nil {
		return
	}
	r := a.refused(err, a.guest, a.conn)
	if r == nil {
		return
	}
	a.end(r)
	select {
	case <-a.said:
		drain(a.conn)
	case <-a.ctx.Done():
	}
}

// trusted checks a valid certificate against the directory.
func (s *Server) trusted(n *cert.Node) (*directory.Node, error) {
	known, ok := s.Directory.Snapshot().Lookup(n.ID)
	switch {
	case !ok || known.Device != n.Device:
		return nil, refusal.Deleted()
	case known.Dismissed():
		return nil, refusal.Of(known)
	}
	return known, nil
}

// join starts the node's session, from which it gets its netmaps.
func (a *attached) join() error {
	// First, since after Attach the stream may be ended, which sets a final deadline.
	a.guest.admit()
	if err := a.tell(); err != nil {
		return err
	}
	a.joined = true
	session, err := a.Hub.Attach(a.id, a.features, a.applied, a.stream)
	if err != nil {
		return err
	}
	a.session.Store(session)
	a.Wake()
	now := a.Clock()
	// Not simply true: a newer stream may have come and gone meanwhile.
	a.Directory.SetLive(a.id, func(l *directory.Live) { l.Connected, l.LastSeen = a.Hub.Attached(a.id), now })
	return nil
}

func (a *attached) leave() {
	a.stop()
	if a.left != nil {
		close(a.left)
	}
	if a.joined {
		a.depart()
	}
	a.Log.Debug("node disconnected", "node", a.id, "name", a.node.Name)
}

// depart tells the directory that the node has left, unless another stream of it is attached.
func (a *attached) depart() {
	now := a.Clock()
	var heard time.Time
	a.Directory.SetLive(a.id, func(l *directory.Live) {
		if !a.Hub.Attached(a.id) {
			l.Connected, heard = false, l.LastSeen
			l.LastSeen = now
		}
	})
	a.fallen(heard)
	if a.relay {
		a.served()
	}
}

func (a *attached) read() error {
	for {
		_ = a.conn.SetReadDeadline(time.Now().Add(deaf))
		up, sum, err := a.in.next()
		if err != nil {
			return err
		}
		if a.ended() {
			continue
		}
		if err := a.handle(up, sum); err != nil {
			return err
		}
	}
}

func (a *attached) handle(up *redoubtv1.Up, sum [32]byte) error {
	switch m := up.GetMessage().(type) {
	case *redoubtv1.Up_KeepAlive:
		a.seen()
		return nil
	case *redoubtv1.Up_Applied:
		return a.acknowledge(m.Applied)
	}
	a.seen()
	if !a.pace.wait(a.ctx) {
		return a.ctx.Err()
	}
	switch m := up.GetMessage().(type) {
	case *redoubtv1.Up_Renew:
		return a.renew(sum, m.Renew)
	case *redoubtv1.Up_Proof:
		return a.prove(m.Proof)
	case *redoubtv1.Up_Report:
		return a.report(m.Report)
	case *redoubtv1.Up_Posture:
		return a.posture(m.Posture)
	}
	return refusal.Malformed("a second hello")
}

// seen records that the node was heard.
func (a *attached) seen() {
	if a.session.Load() != nil {
		now := a.Clock()
		a.Directory.SetLive(a.id, func(l *directory.Live) { l.LastSeen = now })
	}
}

func (a *attached) acknowledge(m *redoubtv1.Applied) error {
	session := a.session.Load()
	if session == nil {
		return nil
	}
	v, err := wire.ToVersion(m.GetVersion())
	if err != nil {
		return refusal.Malformed(err.Error())
	}
	sent := session.Applied(v)
	if !sent {
		a.Log.Debug("node acknowledged a version that it was not sent", "node", a.id, "version", v)
	}
	now := a.Clock()
	a.Directory.SetLive(a.id, func(l *directory.Live) {
		if l.LastSeen = now; sent {
			l.Applied = v
		}
	})
	return nil
}

func (a *attached) renew(sum [32]byte, m *redoubtv1.Renew) error {
	n, ok := a.Directory.Snapshot().Lookup(a.id)
	switch {
	case !ok:
		return refusal.Deleted()
	case n.Device != a.node.Device:
		return refusal.OtherMachine()
	}
	secret, err := cert.Exporter(a.conn.ConnectionState())
	if err != nil {
		return err
	}
	renew := enroll.Renew{
		Sum: sum, Message: m, Exporter: secret, Protocol: a.protocol, ID: a.id, Device: a.node.Device,
	}
	if n.Attestation.Again {
		renew.Kind, renew.Known = n.Attestation.Kind, n.Attestation.Known
	}
	effect, err := a.machine.Step(a.Clock(), renew)
	if err != nil {
		a.metrics.renewals.WithLabelValues("refused").Inc()
		return err
	}
	challenge, ok := effect.(enroll.Challenge)
	if !ok {
		return errors.New("control: a renewal led to no challenge")
	}
	a.renewal = m
	if m.GetFacts() != nil {
		a.hear(m.GetFacts())
	}
	a.send(&redoubtv1.Down{Message: &redoubtv1.Down_Challenge{Challenge: challenge.Message}})
	return nil
}

func (a *attached) prove(m *redoubtv1.Proof) (err error) {
	result := "refused"
	defer func() { a.metrics.renewals.WithLabelValues(result).Inc() }()
	effect, err := a.machine.Step(a.Clock(), enroll.Proof{Message: m})
	if err != nil {
		a.noteNodeRefusal(remote(a.conn), a.id, err)
		return err
	}
	extend, ok := effect.(enroll.Extend)
	if !ok {
		return errors.New("control: a renewal's proof led to something else")
	}
	ctx, cancel := context.WithTimeout(directory.From(a.ctx, remote(a.conn).String()), step)
	defer cancel()
	if err := a.attest(ctx, extend); err != nil {
		a.noteNodeRefusal(remote(a.conn), a.id, err)
		return err
	}
	if extend.Posture != nil {
		if err := a.posture(extend.Posture); err != nil {
			return err
		}
	}
	watch := a.Directory.WatchNode(a.id) // created after attest, whose change must not trigger it
	a.Hub.Talks(a.id, wire.ToNodes(a.renewal.GetTalking()))
	n, err := a.Directory.Renew(ctx, directory.Renewal{ID: extend.ID, Key: extend.Key, Ticket: a.renewal.GetTicket()})
	if err != nil {
		a.Hub.Talks(a.id, nil)
		if _, refused := refusal.From(err); refused {
			a.Directory.RenewRefused(ctx, a.id, err)
		}
		if r := refusal.Waiting(err); r != nil {
			result = "pending"
			a.wait(r, watch)
			return nil
		}
		watch.Close()
		return err
	}
	watch.Close()
	result = "done"
	a.expires.Store(n.Certificate.NotAfter.Add(cert.Skew).UnixNano())
	a.Log.Debug("certificate renewed", "node", a.id, "name", n.Name, "sequence", n.Certificate.Sequence, "until", n.Certificate.NotAfter)
	a.send(a.result(n))
	if !a.renewFirst {
		return a.tell()
	}
	if a.renewFirst = a.outOfTime(n); a.renewFirst {
		return nil // it got the certificate that it had missed, and needs the next one
	}
	if err := a.join(); err != nil {
		return err
	}
	if err := a.reportHealth(a.health); err != nil || a.unheard == nil {
		return err
	}
	return a.report(a.unheard)
}

// wait tells a node that there is no certificate for now. A node that is being served continues with its current certificate;
// otherwise it is told to reconnect when something about it changes.
func (a *attached) wait(r *refusal.Refusal, watch *directory.Watch) {
	pending := &redoubtv1.Pending{Message: r.Message, RetryAfterSeconds: r.Down().GetRefusal().GetRetryAfterSeconds()}
	a.send(&redoubtv1.Down{Message: &redoubtv1.Down_Pending{Pending: pending}})
	who := "node " + a.id.String()
	if !a.renewFirst {
		watch.Close()
		return
	}
	if a.left == nil {
		a.left = make(chan struct{})
	}
	left := a.left
	waits := a.room.enter(who, a.guest) && a.start(func() {
		defer watch.Close()
		defer a.room.leave(who, a.guest)
		select {
		case <-watch.Changed():
			a.end(refusal.LookAgain())
		case <-left:
		case <-a.ctx.Done():
		}
	})
	if !waits {
		watch.Close() // the stream ends when the guest's patience does
	}
}

// outOfTime reports whether a certificate has expired.
func (a *attached) outOfTime(n *directory.Node) bool {
	return a.Clock().After(n.Certificate.NotAfter.Add(cert.Skew))
}

// quarantine returns why a node is quarantined, or "" if it is not.
func quarantine(n *directory.Node) string {
	if n.Quarantine == nil {
		return ""
	}
	return refusal.Quarantined(n.Quarantine.Why).Message
}

// report records where the node may be reached: at the endpoints it reports, and at the address it connects from.
func (a *attached) report(m *redoubtv1.Report) error {
	if a.renewFirst {
		a.unheard = m // the node does not repeat it on this stream
		return nil
	}
	if a.relay {
		return a.serves(m.GetRelay())
	}
	mesh := a.Directory.Snapshot().Mesh()
	reach, err := wire.ToReach(m, mesh)
	if err != nil {
		return refusal.Malformed("how the node is reached: " + err.Error())
	}
	var list []proto.Endpoint
	if port := uint16(m.GetListenPort()); port != 0 {
		list = append(list, proto.Endpoint{Addr: netip.AddrPortFrom(remote(a.conn).Addr(), port), Kind: proto.EndpointObserved})
	}
	for _, e := range reach.Endpoints {
		list = append(list, proto.Endpoint{Addr: e.Addr, Kind: e.Kind})
	}
	ctx, cancel := context.WithTimeout(a.ctx, step)
	defer cancel()
	reach.Endpoints = usable(list, mesh)
	return a.Directory.SetReach(ctx, a.id, reach)
}

// remote returns the address that a connection comes from.
func remote(c net.Conn) netip.AddrPort {
	a, ok := c.RemoteAddr().(interface{ AddrPort() netip.AddrPort })
	if !ok {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// burst is how many requests a node may make at once; beyond that it is one per second.
const burst = 10

// pace slows down a node that requests too much, at the expense of that node's stream only.
type pace struct {
	tokens float64
	at     time.Time
}

func (p *pace) wait(ctx context.Context) bool {
	now := time.Now()
	p.tokens = min(burst, p.tokens+now.Sub(p.at).Seconds())
	p.at = now
	p.tokens--
	if p.tokens >= 0 {
		return true
	}
	select {
	case <-time.After(time.Duration(-p.tokens * float64(time.Second))):
		return true
	case <-ctx.Done():
		return false
	}
}

func isNet(err error) bool {
	var n net.Error
	return errors.As(err, &n) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled)
}

// usable drops endpoints that no peer could use, duplicates, and those beyond the limit.
func usable(list []proto.Endpoint, mesh proto.Mesh) []proto.Endpoint {
	seen := make(map[netip.AddrPort]bool, len(list))
	list = slices.DeleteFunc(list, func(e proto.Endpoint) bool {
		bad := !mesh.ValidEndpoint(e) || seen[e.Addr]
		seen[e.Addr] = true
		return bad
	})
	return list[:min(len(list), proto.MaxEndpoints)]
}
