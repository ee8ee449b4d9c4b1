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

// STUNPort is where servers answer whose port is not named.
const STUNPort = 3478

// System is a Config for the machine that this program runs on, with nobody to ask yet. Close what comes with it after the check.
func System() (c Config, end func() error) {
	c = Config{Dial: osnet.Dialer().DialContext, Local: interfaces()}
	probe := osnet.ProbeListener()
	c.Listen = func(ctx context.Context, network string) (net.PacketConn, error) {
		return probe.ListenPacket(ctx, network, ":0")
	}
	host, err := osnet.New(slog.New(slog.DiscardHandler))
	if err != nil { // not every system tells who its router is
		return c, func() error { return nil }
	}
	router, router6 := portmap.System(host.Gateway), portmap.System(host.Gateway6)
	router.Announcements, router6.Announcements = nil, nil // it is over before a router starts anew
	c.PortMap, c.PortMap6 = &router, &router6
	return c, host.Close
}

// interfaces are the addresses of this machine.
func interfaces() (out []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil // then the check says that there is a NAT where there is none
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// Ask adds the relays that an agent knows, and takes over what it knows of the router.
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

// stateOf is what an agent knows of a router; nil where it asks none.
func stateOf(r *redoubtv1.UnderlayRouter) *portmap.State {
	if r == nil {
		return nil
	}
	s := portmap.State{Protocol: portmap.Protocol(r.GetProtocol()), Problem: r.GetProblem()}
	s.Gateway, _ = netip.ParseAddr(r.GetGateway())       // zero where there is none
	s.External, _ = netip.ParseAddrPort(r.GetExternal()) // the same
	return &s
}

// ErrNoAddress says that a server's name stands for no address.
var ErrNoAddress = errors.New("no such server")

// AskServer adds a STUN server, HOST or HOST:PORT.
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
			continue // a relay without an address gets no answer, which is what is said of it
		}
		for _, a := range addrs {
			out = append(out, netip.AddrPortFrom(a.Unmap(), port))
		}
	}
	return out
}
