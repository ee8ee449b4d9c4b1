//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NetworkState returns the configuration of the host's network, one item per line, sorted: devices, addresses, routes, rules,
// and the nftables tables and chains with their numbers of rules. Two results can be compared. It leaves out what the kernel
// adds by itself a moment later: link-local and multicast addresses and the table of local addresses.
func (h *Host) NetworkState() (string, error) {
	var d dump
	if err := d.links(h.ns.rt); err != nil {
		return "", fmt.Errorf("look at the network of %s: %w", h.Name, err)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := d.routes(h.ns.rt, family); err != nil {
			return "", fmt.Errorf("look at the routes of %s: %w", h.Name, err)
		}
	}
	if err := h.Do(d.tables); err != nil {
		return "", fmt.Errorf("look at the firewall of %s: %w", h.Name, err)
	}
	slices.Sort(d.lines)
	return strings.Join(d.lines, "\n"), nil
}

type dump struct {
	lines []string
	names map[int]string // of devices
}

func (d *dump) add(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *dump) links(rt *netlink.Handle) error {
	d.names = map[int]string{}
	links, err := rt.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		a := l.Attrs()
		d.names[a.Index] = a.Name
		d.add("link %s mtu %d up %v", a.Name, a.MTU, a.RawFlags&unix.IFF_UP != 0)
		addrs, err := rt.AddrList(l, unix.AF_UNSPEC)
		if err != nil {
			return err
		}
		for _, x := range addrs {
			if !x.IP.IsLinkLocalUnicast() {
				d.add("addr %s %v", a.Name, x.IPNet)
			}
		}
	}
	return nil
}

func (d *dump) routes(rt *netlink.Handle, family int) error {
	routes, err := rt.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return err
	}
	for _, r := range routes {
		var dst netip.Addr
		if r.Dst != nil {
			dst, _ = netip.AddrFromSlice(r.Dst.IP)
		}
		if r.Table != unix.RT_TABLE_LOCAL && !dst.IsLinkLocalUnicast() && !dst.IsMulticast() {
			d.add("route %v family %d via %v dev %s table %d proto %d type %d metric %d src %v", r.Dst, family, r.Gw, d.names[r.LinkIndex],
				r.Table, r.Protocol, r.Type, r.Priority, r.Src)
		}
	}
	rules, err := rt.RuleList(family)
	if err != nil {
		return err
	}
	for _, r := range rules {
		d.add("rule %d family %d %v mark %d proto %d", r.Priority, r.Family, r, r.Mark, r.Protocol)
	}
	return nil
}

// tables lists the nftables tables and chains. It must run in the host's network.
func (d *dump) tables() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		d.add("table %d %s", t.Family, t.Name)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return err
	}
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return err
		}
		d.add("chain %d %s %s rules %d", c.Table.Family, c.Table.Name, c.Name, len(rules))
	}
	return nil
}
