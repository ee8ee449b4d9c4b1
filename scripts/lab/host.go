//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
)

// Host is a machine with its own network, name and /run, and the processes in it.
type Host struct {
	Name string
	// Ports are its network interfaces, eth0 first.
	Ports []*Port
	// RunDir is the directory that its processes see as /run.
	RunDir string
	// Mounts maps paths that processes see, such as /etc or /var/lib, to directories of this host's own. It affects only
	// processes of this host that start later.
	Mounts map[string]string

	world *World
	ns    *namespace
}

// Port is a cable between a host and a LAN.
type Port struct {
	Device string // eth0, ...
	LAN    *LAN
	V4, V6 netip.Addr
	MAC    net.HardwareAddr

	host *Host
	far  netlink.Link // the end at the router's bridge
}

// AddHost adds a host with a cable to each LAN. Its default routes use the first.
func (w *World) AddHost(name string, lans ...*LAN) (*Host, error) {
	if _, ok := w.Host(name); ok {
		return nil, fmt.Errorf("there is a host %s already", name)
	}
	h := &Host{Name: name, RunDir: filepath.Join(w.Dir, name, "run"), world: w}
	if err := os.MkdirAll(h.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directories of host %s: %w", name, err)
	}
	var err error
	if h.ns, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hosts = append(w.hosts, h)
	for _, l := range lans {
		if err := h.plug(l); err != nil {
			return nil, fmt.Errorf("host %s: plug it into LAN %s: %w", name, l.Name, err)
		}
	}
	return h, nil
}

// plug connects the host to a LAN. The pair is created with one end in each namespace, so that its names never appear
// elsewhere.
func (h *Host) plug(l *LAN) error {
	n := l.next
	l.next++
	if n > 250 {
		return errors.New("a LAN has at most 240 hosts")
	}
	return h.plugAt(l, n)
}

// plugAt connects the host to a LAN with the nth addresses there.
func (h *Host) plugAt(l *LAN, n int) error {
	p := &Port{Device: "eth" + strconv.Itoa(len(h.Ports)), LAN: l, host: h}
	v4, v6 := l.V4.Addr().As4(), l.V6.Addr().As16()
	v4[3], v6[15] = byte(n), byte(n)
	p.V4, p.V6 = netip.AddrFrom4(v4), netip.AddrFrom16(v6)

	attrs := netlink.NewLinkAttrs()
	attrs.Name = "p" + strconv.Itoa(l.number) + "-" + strconv.Itoa(n)
	rt := h.world.router.rt
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.Device, PeerNamespace: netlink.NsFd(int(h.ns.file.Fd()))}
	if err := rt.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the cable: %w", err)
	}
	p.far = veth
	near, err := h.ns.rt.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("find its end %s: %w", p.Device, err)
	}
	p.MAC = near.Attrs().HardwareAddr
	if err := addAddr(h.ns.rt, near, netip.PrefixFrom(p.V4, l.V4.Bits())); err != nil {
		return err
	}
	if err := addAddr(h.ns.rt, near, netip.PrefixFrom(p.V6, l.V6.Bits())); err != nil {
		return err
	}
	if err := errors.Join(rt.LinkSetUp(veth), h.ns.rt.LinkSetUp(near)); err != nil {
		return fmt.Errorf("take the cable up: %w", err)
	}
	// The bridge forwards at once if the port is up when it is attached, and only after a moment otherwise.
	if err := errors.Join(carrier(rt, attrs.Name), carrier(h.ns.rt, p.Device)); err != nil {
		return err
	}
	if err := rt.LinkSetMaster(veth, l.bridge); err != nil {
		return fmt.Errorf("plug the cable into the bridge: %w", err)
	}
	h.Ports = append(h.Ports, p)
	if len(h.Ports) > 1 {
		return nil
	}
	return h.defaultRoutes(p)
}

// carrier waits until the kernel reports that a device is up.
func carrier(rt *netlink.Handle, device string) error {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		link, err := rt.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
	}
	return fmt.Errorf("%s has no carrier after 30 s", device)
}

// defaultRoutes sets the default routes to the router of a port's LAN.
func (h *Host) defaultRoutes(p *Port) error {
	near, err := h.ns.rt.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("find %s: %w", p.Device, err)
	}
	for _, router := range []netip.Prefix{p.LAN.V4, p.LAN.V6} {
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if router.Addr().Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		err := h.ns.rt.RouteReplace(&netlink.Route{
			LinkIndex: near.Attrs().Index, Dst: netOf(all), Gw: router.Addr().AsSlice(),
		})
		if err != nil {
			return fmt.Errorf("set the default route by %v: %w", router.Addr(), err)
		}
	}
	return nil
}

// V4 returns the IPv4 address of eth0.
func (h *Host) V4() netip.Addr { return h.Ports[0].V4 }

// V6 returns the IPv6 address of eth0.
func (h *Host) V6() netip.Addr { return h.Ports[0].V6 }

// Do runs f on a thread in the host's network. Sockets that f opens stay there; goroutines that it starts do not run there.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// Netlink returns a routing socket in the host's network.
func (h *Host) Netlink() *netlink.Handle { return h.ns.rt }

// Sysctl sets a kernel setting in the host's network, such as net.ipv4.conf.eth0.rp_filter.
func (h *Host) Sysctl(name, value string) error {
	return h.Do(func() error { return sysctl(name, value) })
}

// Cut breaks the cable in the middle: both ends keep their carrier, but no packet arrives.
func (p *Port) Cut() error {
	if err := p.host.world.router.rt.LinkSetNoMaster(p.far); err != nil {
		return fmt.Errorf("cut %s of %s: %w", p.Device, p.host.Name, err)
	}
	return nil
}

// Unplug pulls the cable: the host loses its carrier.
func (p *Port) Unplug() error {
	if err := p.host.world.router.rt.LinkSetDown(p.far); err != nil {
		return fmt.Errorf("unplug %s of %s: %w", p.Device, p.host.Name, err)
	}
	return nil
}

// Heal undoes Cut and Unplug.
func (p *Port) Heal() error {
	rt := p.host.world.router.rt
	if err := errors.Join(rt.LinkSetMaster(p.far, p.LAN.bridge), rt.LinkSetUp(p.far)); err != nil {
		return fmt.Errorf("heal %s of %s: %w", p.Device, p.host.Name, err)
	}
	return nil
}

// Renumber gives the port different addresses in its LAN, as if its lease had run out: host is the last byte of both.
func (p *Port) Renumber(host byte) error {
	rt := p.host.ns.rt
	near, err := rt.LinkByName(p.Device)
	if err != nil {
		return fmt.Errorf("find %s of %s: %w", p.Device, p.host.Name, err)
	}
	v4, v6 := p.V4.As4(), p.V6.As16()
	v4[3], v6[15] = host, host
	v4bits, v6bits := p.LAN.V4.Bits(), p.LAN.V6.Bits()
	for _, old := range []netip.Prefix{netip.PrefixFrom(p.V4, v4bits), netip.PrefixFrom(p.V6, v6bits)} {
		if err := rt.AddrDel(near, &netlink.Addr{IPNet: netOf(old)}); err != nil {
			return fmt.Errorf("take %v from %s: %w", old, p.host.Name, err)
		}
	}
	p.V4, p.V6 = netip.AddrFrom4(v4), netip.AddrFrom16(v6)
	for _, now := range []netip.Prefix{netip.PrefixFrom(p.V4, v4bits), netip.PrefixFrom(p.V6, v6bits)} {
		if err := addAddr(rt, near, now); err != nil {
			return err
		}
	}
	return p.host.defaultRoutes(p)
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
