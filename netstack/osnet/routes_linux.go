package osnet

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// throwMetric is the metric of exceptions, wayMetric of routes over the device, worstMetric of the unreachable routes
	// beneath them.
	throwMetric = 50
	wayMetric   = 100
	worstMetric = math.MaxInt32
	// addrGenNone keeps the kernel from giving the device a link-local address, which no peer could reach.
	addrGenNone = 1
)

var families = []int{unix.AF_INET, unix.AF_INET6}

// unreachables returns routes that block the mesh's ranges, and whatever else must not take another path, when there is no
// device.
func unreachables(c Config) []netlink.Route {
	var out []netlink.Route
	for _, p := range append([]netip.Prefix{c.Mesh.V4, c.Mesh.V6}, c.held()...) {
		out = append(out, netlink.Route{
			Dst: netOf(p), Table: c.Table, Protocol: RouteProtocol, Priority: worstMetric, Type: unix.RTN_UNREACHABLE,
		})
	}
	return out
}

// throws returns routes that pass traffic to networks reached without the mesh on to the host's own tables.
func throws(c Config, spared []netip.Prefix) []netlink.Route {
	var out []netlink.Route
	for _, p := range spared {
		out = append(out, netlink.Route{
			Dst: netOf(p), Table: c.Table, Protocol: RouteProtocol, Priority: throwMetric, Type: unix.RTN_THROW,
		})
	}
	return out
}

// ways returns routes to the device for the mesh's ranges and for what is reached through peers, with the node's own source
// address.
func ways(c Config, index int) []netlink.Route {
	var out []netlink.Route
	for _, p := range append([]netip.Prefix{c.Mesh.V4, c.Mesh.V6}, c.led()...) {
		src, scope := c.Addrs.V6, netlink.SCOPE_UNIVERSE
		if p.Addr().Is4() {
			src, scope = c.Addrs.V4, netlink.SCOPE_LINK
		}
		out = append(out, netlink.Route{
			Dst: netOf(p), Src: src.AsSlice(), LinkIndex: index, Scope: scope,
			Table: c.Table, Protocol: RouteProtocol, Priority: wayMetric, Type: unix.RTN_UNICAST,
		})
	}
	return out
}

// rules returns the rules that select our table, except for packets of underlay sockets: those must never loop into the mesh.
func rules(c Config) []netlink.Rule {
	var out []netlink.Rule
	for _, p := range []netip.Prefix{c.Mesh.V4, c.Mesh.V6} {
		marked := netlink.NewRule()
		marked.Priority, marked.Protocol, marked.Dst, marked.Family = RulePriority, RouteProtocol, netOf(p), familyOf(p)
		marked.Mark, marked.Type = Mark, nl.FR_ACT_UNREACHABLE
		to := netlink.NewRule()
		to.Priority, to.Protocol, to.Dst, to.Family = RulePriority+1, RouteProtocol, netOf(p), familyOf(p)
		to.Table = c.Table
		out = append(out, *marked, *to)
	}
	if !c.leads() {
		return out
	}
	for _, family := range families {
		beyond := netlink.NewRule()
		beyond.Priority, beyond.Protocol, beyond.Family, beyond.Table = RulePriority+2, RouteProtocol, family, c.Table
		beyond.Mark, beyond.Invert = Mark, true
		out = append(out, *beyond)
	}
	return out
}

// sameRoute compares the attributes of a route that we set. The kernel assigns the device lo to IPv6 unreachable routes.
func sameRoute(a, b netlink.Route) bool {
	return prefixOf(a.Dst) == prefixOf(b.Dst) && a.Table == b.Table && a.Priority == b.Priority && a.Type == b.Type &&
		a.Protocol == b.Protocol && a.Src.Equal(b.Src) && a.Gw == nil && b.Gw == nil &&
		(a.Type != unix.RTN_UNICAST || a.LinkIndex == b.LinkIndex)
}

// sameIPRule compares the attributes of a rule that we set and the kernel reports; the rule's action follows from its priority.
func sameIPRule(a, b netlink.Rule) bool {
	return prefixOf(a.Dst) == prefixOf(b.Dst) && a.Priority == b.Priority && a.Table == b.Table && a.Mark == b.Mark &&
		a.Protocol == b.Protocol && a.Invert == b.Invert && a.Src == nil && b.Src == nil && a.IifName == b.IifName
}

// addRoutes adds the routes that are missing.
func (h *Host) addRoutes(want []netlink.Route) error {
	have, err := h.ourRoutes()
	if err != nil {
		return err
	}
	there := make(map[netip.Prefix][]netlink.Route, len(have))
	for _, r := range have {
		there[prefixOf(r.Dst)] = append(there[prefixOf(r.Dst)], r)
	}
	for _, r := range want {
		p := prefixOf(r.Dst)
		if slices.ContainsFunc(there[p], func(x netlink.Route) bool { return sameRoute(x, r) }) {
			continue
		}
		if err := h.family(familyOf(p), h.rt.RouteReplace(&r)); err != nil {
			return fmt.Errorf("set the route to %v in table %d: %w", r.Dst, r.Table, err)
		}
		if !h.up.Mesh.Contains(p.Addr()) && !slices.Contains(h.beyond, p) {
			h.beyond = append(h.beyond, p)
		}
	}
	return nil
}

// addRules adds the rules that are missing.
func (h *Host) addRules(c Config) error {
	have, err := h.ourRules()
	if err != nil {
		return err
	}
	for _, r := range rules(c) {
		if slices.ContainsFunc(have, func(x netlink.Rule) bool { return sameIPRule(x, r) }) {
			continue
		}
		err := h.rt.RuleAdd(&r)
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
		if err := h.family(r.Family, err); err != nil {
			return fmt.Errorf("set the routing rule %d to %v: %w", r.Priority, r.Dst, err)
		}
	}
	return nil
}

// family turns errors that mean that this host has no IPv6 into a problem, since IPv4 works without it, and returns all others.
func (h *Host) family(family int, err error) error {
	if err == nil || family == unix.AF_INET {
		return err
	}
	switch {
	case errors.Is(err, unix.EACCES):
		h.problem("IPv6 is disabled on %s: peers are reached by IPv4 only, until "+
			"`sysctl -w net.ipv6.conf.%s.disable_ipv6=0`", h.up.Interface, h.up.Interface)
	case errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		h.problem("this kernel has no IPv6, or none with routing rules: peers are reached by IPv4 only")
	default:
		return err
	}
	return nil
}

// tidy removes everything with our protocol number that is neither wanted nor another instance's.
func (h *Host) tidy(c Config, old, others []netip.Prefix, index int) error {
	own := append(slices.Clone(old), c.Mesh.V4, c.Mesh.V6)
	wanted := map[netip.Prefix][]netlink.Route{}
	for _, r := range slices.Concat(unreachables(c), throws(c, h.spared)) {
		wanted[prefixOf(r.Dst)] = append(wanted[prefixOf(r.Dst)], r)
	}
	if index != 0 {
		for _, r := range ways(c, index) {
			wanted[prefixOf(r.Dst)] = append(wanted[prefixOf(r.Dst)], r)
		}
	}
	keepRoute := func(r netlink.Route) bool {
		return h.leaves(r, own, others, index) ||
			slices.ContainsFunc(wanted[prefixOf(r.Dst)], func(w netlink.Route) bool { return sameRoute(r, w) })
	}
	keepRule := func(r netlink.Rule) bool {
		return theirs(r, others) || slices.ContainsFunc(rules(c), func(w netlink.Rule) bool { return sameIPRule(r, w) })
	}
	return errors.Join(
		h.dropRoutes(func(r netlink.Route) bool { return !keepRoute(r) }),
		h.dropRules(func(r netlink.Rule) bool { return !keepRule(r) }))
}

// theirs reports whether a rule belongs to another instance. The rule for traffic beyond the mesh is shared by all.
func theirs(r netlink.Rule, others []netip.Prefix) bool {
	if r.Dst == nil {
		return len(others) > 0
	}
	return slices.Contains(others, prefixOf(r.Dst))
}

// leaves reports whether a route is, or may be, another instance's. Routes beyond the mesh do not show whose they are: if there
// are other instances, only those to our device or set by this run are removed.
func (h *Host) leaves(r netlink.Route, own, others []netip.Prefix, index int) bool {
	p := prefixOf(r.Dst)
	switch {
	case slices.Contains(others, p):
		return true
	case len(others) == 0, slices.Contains(own, p):
		return false
	case r.Type == unix.RTN_UNICAST:
		return r.LinkIndex != index
	}
	return !slices.Contains(h.beyond, p)
}

// dropRoutes removes those of our routes that match.
func (h *Host) dropRoutes(match func(netlink.Route) bool) error {
	have, err := h.ourRoutes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if !match(r) {
			continue
		}
		if err := h.rt.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove the route to %v from table %d: %w", r.Dst, r.Table, err))
		}
	}
	return errors.Join(errs...)
}

// dropRules removes those of our rules that match.
func (h *Host) dropRules(match func(netlink.Rule) bool) error {
	have, err := h.ourRules()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if !match(r) {
			continue
		}
		if err := h.rt.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove the routing rule %d to %v: %w", r.Priority, r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

// ourRoutes returns the routes with our protocol number, in any table.
func (h *Host) ourRoutes() ([]netlink.Route, error) {
	var out []netlink.Route
	for _, f := range families {
		got, err := dump(func() ([]netlink.Route, error) {
			filter := netlink.Route{Protocol: RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
			return h.rt.RouteListFiltered(f, &filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range got {
			if r.Protocol != RouteProtocol {
				continue
			}
			if r.Dst == nil {
				r.Dst = netOf(everything4)
				if f == unix.AF_INET6 {
					r.Dst = netOf(everything6)
				}
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// ourRules returns the rules with our protocol number and priorities.
func (h *Host) ourRules() ([]netlink.Rule, error) {
	var out []netlink.Rule
	for _, f := range families {
		got, err := dump(func() ([]netlink.Rule, error) { return h.rt.RuleList(f) })
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		for _, r := range got {
			ours := r.Protocol == RouteProtocol && r.Priority >= RulePriority && r.Priority <= RulePriority+2
			if ours && r.Family == f {
				out = append(out, r)
			}
		}
	}
	return out, nil
}

// dump repeats a listing that was interrupted by a change, up to ten times in all.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	var got []T
	var err error
	for range 10 {
		if got, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return got, err
}

// raise brings the device up with the mesh's MTU.
func (h *Host) raise(c Config, link netlink.Link) error {
	a := link.Attrs()
	if a.MTU != c.MTU {
		if err := h.rt.LinkSetMTU(link, c.MTU); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", c.Interface, c.MTU, err)
		}
	}
	if a.RawFlags&unix.IFF_UP != 0 {
		return nil
	}
	// A kernel without IPv6 refuses this, and does not need it.
	_ = h.rt.LinkSetIP6AddrGenMode(link, addrGenNone)
	if err := h.rt.LinkSetUp(link); err != nil {
		return fmt.Errorf("take the device %s up: %w", c.Interface, err)
	}
	return nil
}

// setAddrs assigns the node's addresses to the device, and removes others in this mesh's ranges or earlier ones.
func (h *Host) setAddrs(c Config, link netlink.Link, old []netip.Prefix) error {
	have, err := h.addrsOf(link)
	if err != nil {
		return err
	}
	for _, a := range c.Addrs.Slice() {
		p := netip.PrefixFrom(a, a.BitLen())
		if slices.Contains(have, p) {
			continue
		}
		addr := &netlink.Addr{IPNet: netOf(p)}
		if a.Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		err := h.rt.AddrReplace(link, addr)
		if err == nil {
			h.settle(a)
		}
		if err := h.family(familyOf(p), err); err != nil {
			return fmt.Errorf("give %s the address %v: %w", c.Interface, a, err)
		}
	}
	return h.dropAddrsBut(link, c.Addrs, append(slices.Clone(old), c.Mesh.V4, c.Mesh.V6)...)
}

// settle waits until an address is in use. The kernel activates IPv6 addresses asynchronously; a packet that arrives before is
// lost, and costs its sender a second.
func (h *Host) settle(a netip.Addr) {
	const limit, step = 200 * time.Millisecond, time.Millisecond
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(step) {
		routes, err := h.rt.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

func (h *Host) dropAddrs(link netlink.Link, ranges ...netip.Prefix) error {
	return h.dropAddrsBut(link, proto.Addrs{}, ranges...)
}

// dropAddrsBut removes the addresses of a device that lie in ranges, except those in keep.
func (h *Host) dropAddrsBut(link netlink.Link, keep proto.Addrs, ranges ...netip.Prefix) error {
	have, err := h.addrsOf(link)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range have {
		in := func(r netip.Prefix) bool { return r.Contains(p.Addr()) }
		if !slices.ContainsFunc(ranges, in) || p.IsSingleIP() && keep.Has(p.Addr()) {
			continue
		}
		err := h.rt.AddrDel(link, &netlink.Addr{IPNet: netOf(p)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("take the address %v from %s: %w", p, link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) addrsOf(link netlink.Link) ([]netip.Prefix, error) {
	got, err := dump(func() ([]netlink.Addr, error) { return h.rt.AddrList(link, unix.AF_UNSPEC) })
	if err != nil {
		return nil, fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
	}
	out := make([]netip.Prefix, 0, len(got))
	for _, a := range got {
		out = append(out, prefixOf(a.IPNet))
	}
	return out, nil
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf returns the zero prefix for nil, which is how the kernel reports default routes.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

func familyOf(p netip.Prefix) int {
	if p.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
