package portmap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/netstack/osnet"
)

// System is a Config with the sockets of the underlay, for whoever is told of the gateway.
func System(gateway func() (gateway, local netip.Addr, err error)) Config {
	return Config{
		Gateway: gateway, Dial: osnet.Dialer().DialContext, Announcements: announcements,
		Listen: func(local netip.Addr) (net.PacketConn, error) {
			return osnet.Listener().ListenPacket(context.Background(), "udp4", netip.AddrPortFrom(local, 0).String())
		},
	}
}

// announcements listens on the device that has the address.
func announcements(local netip.Addr) (net.PacketConn, error) {
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
				return net.ListenMulticastUDP("udp4", &d, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 1), Port: clientPort})
			}
		}
	}
	return nil, errors.New("no device has the address " + local.String())
}
