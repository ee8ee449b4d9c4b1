package osnet

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/proto"
)

// resolvConfs list the DNS servers. The second file is needed where the first names only systemd's stub resolver.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// addresses returns the addresses of all devices.
func (h *Host) addresses() ([]address, error) { return h.addressesBeside(h.device()) }

// addressesBeside is like addresses, given the name of our device.
func (h *Host) addressesBeside(ours string) ([]address, error) {
	links, err := dump(h.rt.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	byIndex := make(map[int]*netlink.LinkAttrs, len(links))
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	ways, err := h.defaultDevices()
	if err != nil {
		return nil, err
	}
	got, err := dump(func() ([]netlink.Addr, error) { return h.rt.AddrList(nil, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []address
	for _, a := range got {
		l := byIndex[a.LinkIndex]
		if l == nil || a.IPNet == nil {
			continue // the device disappeared between the two listings
		}
		const upAndCarrier = unix.IFF_UP | unix.IFF_LOWER_UP
		out = append(out, address{
			device:     l.Name,
			prefix:     prefixOf(a.IPNet),
			up:         l.RawFlags&upAndCarrier == upAndCarrier,
			deprecated: a.Flags&unix.IFA_F_DEPRECATED != 0,
			tentative:  a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0,
			ours:       l.Name == ours,
			way:        ways[a.LinkIndex],
		})
	}
	return out, nil
}

// device returns the name of our device while up, or "".
func (h *Host) device() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up == nil {
		return ""
	}
	return h.up.Interface
}

// defaultDevices returns the devices used by default routes of the main table.
func (h *Host) defaultDevices() (map[int]bool, error) {
	out := make(map[int]bool)
	for _, f := range families {
		routes, err := dump(func() ([]netlink.Route, error) { return h.rt.RouteList(nil, f) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if p := prefixOf(r.Dst); p.IsValid() && p.Bits() != 0 {
				continue
			}
			out[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				out[hop.LinkIndex] = true
			}
		}
	}
	delete(out, 0)
	return out, nil
}

// Gateway implements Network.
func (h *Host) Gateway() (gateway, local netip.Addr, err error) {
	gateway, link, err := h.defaultRoute(unix.AF_INET)
	if err != nil || !gateway.Is4() {
		return netip.Addr{}, netip.Addr{}, err
	}
	local, err = h.addressOn(link, unix.AF_INET, func(a netlink.Addr) bool { return prefixOf(a.IPNet).Contains(gateway) })
	if !local.IsValid() {
		gateway = netip.Addr{}
	}
	return gateway, local, err
}

// Gateway6 implements Network.
func (h *Host) Gateway6() (gateway, local netip.Addr, err error) {
	gateway, link, err := h.defaultRoute(unix.AF_INET6)
	if err != nil || !gateway.Is6() {
		return netip.Addr{}, netip.Addr{}, err
	}
	for _, unfit := range []int{unix.IFA_F_TENTATIVE | unix.IFA_F_DEPRECATED | unix.IFA_F_TEMPORARY, unix.IFA_F_TENTATIVE | unix.IFA_F_DEPRECATED} {
		local, err = h.addressOn(link, unix.AF_INET6, func(a netlink.Addr) bool {
			ip := prefixOf(a.IPNet).Addr()
			return a.Flags&unfit == 0 && ip.IsGlobalUnicast() && !ip.IsPrivate()
		})
		if err != nil || local.IsValid() {
			break
		}
	}
	if err != nil || !local.IsValid() {
		return netip.Addr{}, netip.Addr{}, err
	}
	if gateway.IsLinkLocalUnicast() {
		device, err := h.rt.LinkByIndex(link)
		if err != nil {
			return netip.Addr{}, netip.Addr{}, fmt.Errorf("device of the default route: %w", err)
		}
		gateway = gateway.WithZone(device.Attrs().Name)
	}
	return gateway, local, nil
}

// defaultRoute returns the router of a family's best default route, and the device towards it.
func (h *Host) defaultRoute(family int) (gateway netip.Addr, link int, err error) {
	routes, err := dump(func() ([]netlink.Route, error) { return h.rt.RouteList(nil, family) })
	if err != nil {
		return gateway, 0, fmt.Errorf("list routes: %w", err)
	}
	var best netlink.Route
	for _, r := range routes {
		if len(r.MultiPath) > 0 && len(r.Gw) == 0 {
			r.Gw, r.LinkIndex = r.MultiPath[0].Gw, r.MultiPath[0].LinkIndex
		}
		p := prefixOf(r.Dst)
		if len(r.Gw) == 0 || (p.IsValid() && p.Bits() != 0) || (gateway.IsValid() && r.Priority >= best.Priority) {
			continue
		}
		best = r
		gateway, _ = netip.AddrFromSlice(r.Gw)
	}
	return gateway.Unmap(), best.LinkIndex, nil
}

// addressOn returns the first address of a device that fits.
func (h *Host) addressOn(link, family int, fits func(netlink.Addr) bool) (netip.Addr, error) {
	all, err := dump(func() ([]netlink.Addr, error) { return h.rt.AddrList(nil, family) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range all {
		if a.LinkIndex == link && fits(a) {
			return prefixOf(a.IPNet).Addr(), nil
		}
	}
	return netip.Addr{}, nil
}

// Clashes implements Network.
func (h *Host) Clashes(mesh proto.Mesh) ([]string, error) {
	f := facts{ours: h.device()}
	var err error
	if f.addrs, err = h.addresses(); err != nil {
		return nil, err
	}
	links, err := dump(h.rt.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		f.devices = append(f.devices, l.Attrs().Name)
	}
	if f.routes, err = h.foreignRoutes(mesh, names); err != nil {
		return nil, err
	}
	if f.servers, err = h.nameServers(); err != nil {
		return nil, err
	}
	if h.guard != nil {
		all, err := h.guard.list()
		if err != nil && !errors.Is(err, unix.EPERM) {
			return nil, err
		}
		for _, i := range all {
			if h.runs(i) {
				f.guards = append(f.guards, i)
			}
		}
	}
	return clashes(mesh, f), nil
}

// foreignRoutes returns default routes and routes into the mesh's ranges, from every table except the local table, whose routes
// follow from addresses.
func (h *Host) foreignRoutes(mesh proto.Mesh, names map[int]string) ([]route, error) {
	var out []route
	for _, f := range families {
		filter := netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		got, err := dump(func() ([]netlink.Route, error) {
			return h.rt.RouteListFiltered(f, &filter, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range got {
			p := prefixOf(r.Dst)
			whole := !p.IsValid() || p.Bits() == 0
			if r.Protocol == RouteProtocol || r.Table == unix.RT_TABLE_LOCAL ||
				!whole && !p.Overlaps(mesh.V4) && !p.Overlaps(mesh.V6) {
				continue
			}
			gw, _ := netip.AddrFromSlice(r.Gw)
			out = append(out, route{dst: p, gateway: gw.Unmap(), device: names[r.LinkIndex], table: r.Table})
			for _, hop := range r.MultiPath {
				gw, _ := netip.AddrFromSlice(hop.Gw)
				out = append(out, route{dst: p, gateway: gw.Unmap(), device: names[hop.LinkIndex], table: r.Table})
			}
		}
	}
	return out, nil
}

// nameServers returns the host's DNS servers; a host without a resolv.conf has none.
func (h *Host) nameServers() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, path := range h.resolv {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the DNS servers: %w", err)
		}
		text, err := io.ReadAll(io.LimitReader(f, 64<<10))
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("read the DNS servers from %s: %w", path, err)
		}
		out = append(out, parseResolv(string(text))...)
	}
	return out, nil
}
