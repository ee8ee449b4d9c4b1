package netcheck

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/scout"
	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

// MaxTargets is how many relays and servers are asked at most.
const MaxTargets = 16

// Target is a relay or STUN server to ask.
type Target struct {
	Name, Region string
	UDP          []netip.AddrPort
	URLs         []string // of its HTTPS port
}

// Config says what to ask, and how.
type Config struct {
	Targets []Target
	Local   []netip.Addr // the addresses of this machine
	// Listen opens a UDP socket, "udp4" or "udp6", whose packets are not fragmented on the way.
	Listen func(ctx context.Context, network string) (net.PacketConn, error)
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
	// Router is what is already known of IPv4 port mapping; nil: PortMap finds out. Router6 and PortMap6 are the same for IPv6.
	Router, Router6   *portmap.State
	PortMap, PortMap6 *portmap.Config
	// Paths are the paths to peers that an agent has measured.
	Paths []Path
}

// How long each part of the check may take.
const (
	stunTime   = 12 * time.Second
	tcpTime    = 5 * time.Second
	routerTime = 8 * time.Second
	mtuTime    = 700 * time.Millisecond
)

// Run checks the network. It takes a few seconds, and less if ctx ends.
func Run(ctx context.Context, c Config) Report {
	c.Targets = c.Targets[:min(len(c.Targets), MaxTargets)]
	r := Report{Relays: make([]Relay, len(c.Targets)), Paths: c.Paths}
	for i, t := range c.Targets {
		r.Relays[i] = Relay{Name: t.Name, Region: t.Region, Asked: len(t.UDP) > 0}
		r.Asked6 = r.Asked6 || slices.ContainsFunc(t.UDP, func(a netip.AddrPort) bool { return a.Addr().Is6() })
	}
	r.Local6 = slices.ContainsFunc(c.Local, func(a netip.Addr) bool { return a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() })
	var all sync.WaitGroup
	all.Go(func() { c.full(ctx, &r) })
	times := make([]time.Duration, len(c.Targets))
	all.Go(func() { times = c.roundTrips(ctx) })
	tcp := make([]time.Duration, len(c.Targets))
	for i, t := range c.Targets {
		all.Go(func() { tcp[i] = c.connect(ctx, t.URLs) })
	}
	all.Wait()
	for i := range r.Relays {
		r.Relays[i].UDP, r.Relays[i].TCP = times[i], tcp[i]
	}
	r.Kind = kind(r.STUN)
	for i, t := range c.Targets {
		if r.Relays[i].UDP > 0 {
			all.Go(func() { r.Relays[i].MTU = c.mtu(ctx, t.UDP) })
		}
	}
	all.Wait()
	if near, ok := r.nearest(); ok {
		r.MTU = near.MTU
	}
	return r
}

// servers returns the addresses to ask, the first of each target before the second of any: two that are one machine tell less.
func (c Config) servers() (all []netip.AddrPort) {
	for _, six := range []bool{false, true} {
		for _, t := range c.Targets {
			if i := slices.IndexFunc(t.UDP, func(a netip.AddrPort) bool { return a.Addr().Is6() == six }); i >= 0 {
				all = append(all, t.UDP[i])
			}
		}
	}
	return all
}

// full finds out everything that servers reveal about one socket, and what the routers do for it.
func (c Config) full(ctx context.Context, r *Report) {
	ask, ask6 := c.PortMap, c.PortMap6
	if c.Router != nil {
		ask, r.Router = nil, *c.Router
	}
	if c.Router6 != nil {
		ask6, r.Router6 = nil, *c.Router6
	}
	p, err := c.probe(ctx, ask, ask6)
	if err != nil {
		if c.Router == nil {
			r.Router.Problem = err.Error()
		}
		return
	}
	defer p.close()
	r.STUN = p.run(ctx, stunTime, c.Local, c.servers(), true).STUN
	told := func(asked *portmap.Config, s portmap.State) bool {
		return asked == nil || s.External.IsValid() || s.Problem != ""
	}
	found := p.wait(ctx, routerTime, func(r scout.Report) bool { return told(ask, r.Router) && told(ask6, r.Router6) })
	if ask != nil {
		r.Router = found.Router
	}
	if ask6 != nil {
		r.Router6 = found.Router6
	}
}

// roundTrips asks all targets, stun.MaxServers at a time, each group from a socket of its own.
func (c Config) roundTrips(ctx context.Context) []time.Duration {
	out := make([]time.Duration, len(c.Targets))
	var all sync.WaitGroup
	for at := 0; at < len(c.Targets); at += stun.MaxServers {
		pair := Config{Targets: c.Targets[at:min(at+stun.MaxServers, len(c.Targets))], Listen: c.Listen}
		all.Go(func() {
			p, err := pair.probe(ctx, nil, nil)
			if err != nil {
				return
			}
			defer p.close()
			r := p.run(ctx, stunTime, nil, pair.servers(), false).STUN
			for i, t := range pair.Targets {
				for _, a := range append(slices.Clone(r.V4.Answers), r.V6.Answers...) {
					if a.Mapped.IsValid() && slices.Contains(t.UDP, a.Server) && (out[at+i] == 0 || a.RTT < out[at+i]) {
						out[at+i] = max(a.RTT, 1)
					}
				}
			}
		})
	}
	all.Wait()
	return out
}

// connect returns how long a connection to the first URL that answers takes: one round trip.
func (c Config) connect(ctx context.Context, urls []string) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, tcpTime)
	defer cancel()
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		port := u.Port()
		if port == "" {
			port = "443"
		}
		begun := time.Now()
		conn, err := c.Dial(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
		if err != nil {
			continue
		}
		_ = conn.Close() // nothing was sent
		return max(time.Since(begun), 1)
	}
	return 0
}

// sizes are the IP packet sizes to try, the largest first.
var sizes = []int{1500, 1492, 1480, 1460, 1440, 1420, 1400, 1380, 1340, 1300, 1280}

// mtu sends requests of all sizes to a server at once, and returns the largest that was answered.
func (c Config) mtu(ctx context.Context, servers []netip.AddrPort) int {
	for _, to := range servers {
		sock, err := c.Listen(ctx, network(to.Addr()))
		if err != nil {
			continue
		}
		best := c.largest(sock, to)
		_ = sock.Close() // there is nothing that could be lost
		if best != 0 {
			return best
		}
	}
	return 0
}

func (c Config) largest(sock net.PacketConn, to netip.AddrPort) (best int) {
	head := 20 + 8
	if to.Addr().Is6() {
		head = 40 + 8
	}
	var id stun.TxID
	_, _ = rand.Read(id[:]) // never fails
	for range 2 {
		for _, size := range sizes {
			binary.BigEndian.PutUint16(id[:], uint16(size))
			// A packet too large for our own link is refused: it would not get through anyway.
			_, _ = sock.WriteTo(stun.AppendPadded(nil, id, size-head), net.UDPAddrFromAddrPort(to))
		}
		b := make([]byte, 2048)
		if sock.SetReadDeadline(time.Now().Add(mtuTime)) != nil {
			return best
		}
		for best != sizes[0] {
			n, from, err := sock.ReadFrom(b)
			if err != nil {
				break
			}
			m, err := stun.Parse(b[:n])
			if size := int(binary.BigEndian.Uint16(m.ID[:])); err == nil && [10]byte(m.ID[2:]) == [10]byte(id[2:]) && source(from) == to {
				best = max(best, size)
			}
		}
		if best != 0 {
			return best
		}
	}
	return best
}

func network(a netip.Addr) string {
	if a.Is6() {
		return "udp6"
	}
	return "udp4"
}

func source(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := u.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// probe is a pair of sockets with a scout.
type probe struct {
	socks   [2]net.PacketConn // IPv4 and IPv6; nil: no socket
	scout   *scout.Scout
	changed chan struct{}
	readers sync.WaitGroup
}

var errNoSocket = errors.New("no socket")

// probe opens the sockets. It succeeds if the machine has at least one of the families.
func (c Config) probe(ctx context.Context, router, router6 *portmap.Config) (*probe, error) {
	p := &probe{changed: make(chan struct{}, 1)}
	var errs []error
	for i, network := range []string{"udp4", "udp6"} {
		s, err := c.Listen(ctx, network)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.socks[i] = s
	}
	if len(errs) == len(p.socks) {
		return nil, errors.Join(errs...)
	}
	p.scout = scout.New(scout.Config{Send: p.send, PortMap: router, PortMap6: router6, Changed: func() {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}})
	for _, s := range p.socks {
		if s != nil {
			p.readers.Go(func() { p.read(s) })
		}
	}
	return p, nil
}

func (p *probe) send(msg []byte, to netip.AddrPort) error {
	s := p.socks[0]
	if to.Addr().Is6() {
		s = p.socks[1]
	}
	if s == nil {
		return errNoSocket
	}
	_, err := s.WriteTo(msg, net.UDPAddrFromAddrPort(to))
	return err
}

func (p *probe) read(s net.PacketConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := s.ReadFrom(b)
		if err != nil {
			return // closed, or broken: then requests get no answer
		}
		p.scout.STUN(source(from), b[:n])
	}
}

// run starts the scout, and waits until STUN is done.
func (p *probe) run(ctx context.Context, patience time.Duration, local []netip.Addr, servers []netip.AddrPort, full bool) scout.Report {
	g := scout.Ground{Servers: servers, Full: full}
	for i, s := range p.socks {
		if s == nil {
			continue
		}
		port := source(s.LocalAddr()).Port()
		for _, a := range local {
			if a.Is6() == (i == 1) {
				g.Local = append(g.Local, netip.AddrPortFrom(a, port))
			}
		}
		if i == 0 {
			g.Port = port
		}
	}
	p.scout.Look(g)
	return p.wait(ctx, patience, func(r scout.Report) bool { return r.STUN.Done })
}

func (p *probe) wait(ctx context.Context, patience time.Duration, known func(scout.Report) bool) scout.Report {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if r := p.scout.Report(); known(r) || ctx.Err() != nil {
			return r
		}
		select {
		case <-p.changed:
		case <-ctx.Done():
		}
	}
}

func (p *probe) close() {
	for _, s := range p.socks {
		if s != nil {
			_ = s.Close() // there is nothing that could be lost
		}
	}
	p.readers.Wait()
	_ = p.scout.Close() // never fails
}
