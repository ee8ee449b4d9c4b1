package netcheck

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// STUNPort is the port of a STUN server if none is given.
const STUNPort = 3478

// System returns a Config for this machine, with no targets yet. Call end after the check.
func System() (c Config, end func() error) {
	c = Config{Dial: osnet.Dialer().DialContext, Local: interfaces()}
	probe := osnet.ProbeListener()
	c.Listen = func(ctx context.Context, network string) (net.PacketConn, error) {
		return probe.ListenPacket(ctx, network, ":0")
	}
	host, err := osnet.New(slog.New(slog.DiscardHandler))
	if err != nil { // not every system reveals its router
		return c, func() error { return nil }
	}
	router, router6 := portmap.System(host.Gateway), portmap.System(host.Gateway6)
	router.Announcements, router6.Announcements = nil, nil // the check is over before a router could restart
	c.PortMap, c.PortMap6 = &router, &router6
	return c, host.Close
}

// interfaces returns the addresses of this machine.
func interfaces() (out []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then the check reports a NAT where there is none
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// Ask adds the relays that an agent knows, and takes over what it knows of the router and of paths to peers.
func (c *Config) Ask(ctx context.Context, u *redoubtv1.UnderlayResponse) {
	for _, r := range u.GetRelays() {
		t := Target{Name: r.GetName(), Region: r.GetRegion(), URLs: r.GetUrls()}
		hosts := r.GetUdp()
		if len(hosts) == 0 {
			for _, text := range r.GetUrls() {
				if x, err := url.Parse(text); err == nil && !slices.Contains(hosts, x.Hostname()) {
					hosts = append(hosts, x.Hostname())
				}
			}
		}
		if port := r.GetUdpPort(); port > 0 && port < 65536 {
			t.UDP = resolve(ctx, hosts, uint16(port))
		}
		c.Targets = append(c.Targets, t)
	}
	c.Router, c.Router6 = stateOf(u.GetRouter()), stateOf(u.GetRouter6())
	for _, p := range u.GetPaths() {
		c.Paths = append(c.Paths, Path{p.GetPeer(), p.GetPath(), p.GetEndpoint(), int(p.GetMtu()), p.GetFragments()})
	}
}

// stateOf returns what an agent knows of a router; nil if the agent does not ask one.
func stateOf(r *redoubtv1.UnderlayRouter) *portmap.State {
	if r == nil {
		return nil
	}
	s := portmap.State{Protocol: portmap.Protocol(r.GetProtocol()), Problem: r.GetProblem()}
	s.Gateway, _ = netip.ParseAddr(r.GetGateway())       // zero if there is none
	s.External, _ = netip.ParseAddrPort(r.GetExternal()) // the same
	return &s
}

// ErrNoAddress reports that a server's name has no address.
var ErrNoAddress = errors.New("no such server")

// AskServer adds a STUN server, given as HOST or HOST:PORT.
func (c *Config) AskServer(ctx context.Context, server string) error {
	host, port := server, uint16(STUNPort)
	if h, p, err := net.SplitHostPort(server); err == nil {
		n, err := net.DefaultResolver.LookupPort(ctx, "udp", p)
		if err != nil {
			return err
		}
		host, port = h, uint16(n)
	}
	t := Target{Name: host, UDP: resolve(ctx, []string{host}, port)}
	if len(t.UDP) == 0 {
		return ErrNoAddress
	}
	c.Targets = append(c.Targets, t)
	return nil
}

func resolve(ctx context.Context, hosts []string, port uint16) (out []netip.AddrPort) {
	for _, h := range hosts {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", h)
		if err != nil {
			continue // a relay without an address gets no answer, and that is reported
		}
		for _, a := range addrs {
			out = append(out, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	return out
}
