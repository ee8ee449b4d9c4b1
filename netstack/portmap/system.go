package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
)

// System returns a Config that uses sockets of the underlay. The caller provides the gateway.
func System(gateway func() (gateway, local netip.Addr, err error)) Config {
	return Config{
		Gateway: gateway, Dial: osnet.Dialer().DialContext, Announcements: announcements,
		Listen: func(local netip.Addr) (net.PacketConn, error) {
			return osnet.Listener().ListenPacket(context.Background(), network(local), netip.AddrPortFrom(local, 0).String())
		},
	}
}

// network returns the UDP network for the family of an address.
func network(a netip.Addr) string {
	if a.Is4() {
		return "udp4"
	}
	return "udp6"
}

// announcements listens on the interface that has the address local.
func announcements(local netip.Addr) (net.PacketConn, error) {
	all := net.IPv4allsys
	if !local.Is4() {
		all = net.IPv6linklocalallnodes
	}
	devices, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for _, d := range devices {
		addrs, err := d.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list the addresses of %s: %w", d.Name, err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == local {
				return net.ListenMulticastUDP(network(local), &d, &net.UDPAddr{IP: all, Port: clientPort})
			}
		}
	}
	return nil, errors.New("no device has the address " + local.String())
}
