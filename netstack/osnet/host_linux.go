package osnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is the Network of a Linux host: of the network namespace of the thread that called New. A program that uses several
// namespaces must call Up and Watch from a thread in the same one, since both open sockets.
type Host struct {
	log *slog.Logger
	rt  *netlink.Handle
	// guard is nil if nftables is not available, for the reason in guardErr.
	guard    guard
	guardErr error
	resolv   []string

	// Watches end with ctx, and Close waits for them.
	ctx     context.Context
	cancel  context.CancelFunc
	watches sync.WaitGroup

	// life serializes Up, Down, Watch and Close; mu guards the fields below, and is never held while waiting for the keeper.
	life   sync.Mutex
	keeper *keeper
	closed bool

	mu       sync.Mutex
	settings *settings
	notes    []setting      // previous values of the host's settings, which the guard records as well
	known    bool           // notes include those of an existing guard
	spared   []netip.Prefix // networks reached without the mesh although a route covers them
	beyond   []netip.Prefix // networks beyond the mesh for which this run may have set routes
	up       *Config
	before   *device // our device as it was before Up
	problems []string
}

var _ Network = (*Host)(nil)

// device is the state of a device, besides its addresses, that Up changes.
type device struct {
	name string
	mtu  int
	up   bool
}

// New opens the sockets to the kernel. It changes nothing, and needs no privileges.
func New(log *slog.Logger) (*Host, error) {
	rt, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a routing socket: %w", err)
	}
	h := &Host{log: log, rt: rt, resolv: resolvConfs, settings: newSettings()}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.guard, h.guardErr = newNFT()
	return h, nil
}

// Up implements Network.
func (h *Host) Up(c Config) error {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return err
	}
	h.life.Lock()
	defer h.life.Unlock()
	if h.closed {
		return errClosed
	}
	if err := h.open(c); err != nil {
		return err
	}
	if h.keeper == nil {
		k, err := newKeeper(h)
		if err != nil {
			h.mu.Lock()
			defer h.mu.Unlock()
			return errors.Join(fmt.Errorf("watch over the guard: %w", err), h.shut())
		}
		h.keeper = k
	}
	return nil
}

// open applies the config, once everything that can be checked beforehand has been.
func (h *Host) open(c Config) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up != nil && h.up.Interface != c.Interface {
		return fmt.Errorf("already up on %s: call Down before Up on %s", h.up.Interface, c.Interface)
	}
	if h.guard == nil {
		return h.guardErr
	}
	link, ok, err := h.find(c.Interface)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("there is no device %s: open the TUN device before Up", c.Interface)
	}
	if err := h.refuse(c); err != nil {
		return err
	}
	if h.before == nil {
		h.before = describe(link)
	}

	// Settings that differ by device are opened here, since the keeper's thread may be in another namespace.
	h.openSettings()
	// Everything is validated; from here on the host is changed.
	h.up = &c
	if err := h.reconcile(true); err != nil {
		return errors.Join(err, h.shut())
	}
	return nil
}

// find looks up a device, which may come and go.
func (h *Host) find(name string) (netlink.Link, bool, error) {
	link, err := h.rt.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("find the device %s: %w", name, err)
	}
	return link, true, nil
}

func describe(link netlink.Link) *device {
	a := link.Attrs()
	return &device{name: a.Name, mtu: a.MTU, up: a.RawFlags&unix.IFF_UP != 0}
}

// refuse returns an error if another agent in this namespace is in the way.
func (h *Host) refuse(c Config) error {
	all, err := h.guard.list()
	if err != nil {
		return err
	}
	mine := instanceOf(c)
	for _, other := range all {
		if other.device != mine.device && other.overlaps(mine) && h.runs(other) {
			return fmt.Errorf("another agent of this host uses %v on %s, which overlaps with this mesh's %v: "+
				"stop it, or run one of them in a network namespace of its own", other.ranges(), other.device, mine.ranges())
		}
	}
	return nil
}

// runs reports whether the agent of an instance is running: its device disappears with it, or, if it was made persistent, loses
// its carrier.
func (h *Host) runs(i instance) bool {
	link, err := h.rt.LinkByName(i.device)
	return err == nil && link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

func instanceOf(c Config) instance {
	return instance{device: c.Interface, v4: c.Mesh.V4, v6: c.Mesh.V6}
}

// reconcile makes the kernel's state what h.up asks for, changing only what differs: first what closes, then what opens, and
// last it removes leftovers. With raise it brings the device up; without, a device that somebody took down stays down and gets
// nothing.
func (h *Host) reconcile(raise bool) error {
	c := *h.up
	h.problems = nil
	old, others, err := h.fence(c)
	if err != nil {
		return err
	}
	link, ok, err := h.find(c.Interface)
	switch {
	case err != nil:
		return err
	case !ok:
		h.problem("the device %s is gone: nothing passes", c.Interface)
		return h.tidy(c, old, others, 0)
	case !raise && link.Attrs().RawFlags&unix.IFF_UP == 0:
		h.problem("the device %s was taken down: nothing passes until `ip link set %s up`", c.Interface, c.Interface)
		return h.tidy(c, old, others, 0)
	}
	if err := h.lead(c, link, old); err != nil {
		return err
	}
	return h.tidy(c, old, others, link.Attrs().Index)
}

func (h *Host) problem(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(h.problems, text) {
		h.problems = append(h.problems, text)
	}
}

// fence sets the guard: nftables, the unreachable routes, and the rules that lead to them. It takes over an overlapping guard
// without an agent. It returns the ranges that were guarded for our device before, and those of other instances.
func (h *Host) fence(c Config) (old, others []netip.Prefix, err error) {
	all, err := h.guard.list()
	if err != nil {
		return nil, nil, err
	}
	mine := instanceOf(c)
	taken := func(i instance) bool { return i.device != mine.device && i.overlaps(mine) && !h.runs(i) }
	for _, i := range all {
		if i.device == mine.device && !h.known || taken(i) {
			if err := h.adopt(i.device); err != nil {
				return nil, nil, err
			}
		}
	}
	h.known = true
	if err := h.setGuard(c); err != nil {
		return nil, nil, err
	}
	for _, i := range all {
		switch {
		case i.device == mine.device:
			old = i.ranges()
		case taken(i):
			if err := h.guard.remove(i.device); err != nil {
				return nil, nil, err
			}
		default:
			others = append(others, i.ranges()...)
		}
	}
	if h.spared, err = h.nearer(c); err != nil {
		return nil, nil, err
	}
	// Add throw routes before the routes that they except.
	if err := h.addRoutes(append(throws(c, h.spared), unreachables(c)...)); err != nil {
		return nil, nil, err
	}
	return old, others, h.addRules(c)
}

// lead assigns addresses and routes to the device.
func (h *Host) lead(c Config, link netlink.Link, old []netip.Prefix) error {
	if err := h.raise(c, link); err != nil {
		return err
	}
	if err := h.setAddrs(c, link, old); err != nil {
		return err
	}
	return h.addRoutes(ways(c, link.Attrs().Index))
}

// shut removes addresses and routes from the device and keeps the guard: nothing passes.
func (h *Host) shut() error {
	c := *h.up
	link, ok, err := h.find(c.Interface)
	if err != nil || !ok {
		return err // without the device nothing can pass
	}
	return errors.Join(
		h.dropRoutes(func(r netlink.Route) bool { return r.LinkIndex == link.Attrs().Index && r.Type == unix.RTN_UNICAST }),
		h.dropAddrs(link, c.Mesh.V4, c.Mesh.V6))
}

// Down implements Network.
func (h *Host) Down() error {
	h.life.Lock()
	defer h.life.Unlock()
	if h.closed {
		return nil
	}
	return h.down()
}

func (h *Host) down() error {
	if h.keeper != nil {
		h.keeper.close()
		h.keeper = nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.guard == nil {
		return nil // without nftables Up has never succeeded, in this run or an earlier one
	}
	all, err := h.guard.list()
	if err != nil {
		return err
	}
	var gone, stay []instance
	var errs []error
	for _, i := range all {
		switch {
		case h.up != nil && i.device == h.up.Interface, h.up == nil && !h.runs(i):
			gone = append(gone, i)
		case h.up == nil:
			errs = append(errs, fmt.Errorf("an agent runs on %s and keeps %v: stop it first", i.device, i.ranges()))
			stay = append(stay, i)
		default:
			stay = append(stay, i)
		}
	}
	return errors.Join(append(errs, h.tearDown(gone, stay))...)
}

// tearDown removes what was set for instances, and the guard last. Our rules and routes are removed unless they belong to an
// instance in stay: also those of an instance whose nftables table somebody has removed.
func (h *Host) tearDown(gone, stay []instance) error {
	var errs []error
	if h.up != nil {
		errs = append(errs, h.shut(), h.restore())
	}
	var own, others []netip.Prefix
	for _, i := range gone {
		own = append(own, i.ranges()...)
		link, ok, err := h.find(i.device)
		if ok {
			err = h.dropAddrs(link, i.ranges()...)
		}
		errs = append(errs, err, h.adopt(i.device))
	}
	errs = append(errs, h.putBack(nil))
	for _, i := range stay {
		others = append(others, i.ranges()...)
	}
	errs = append(errs,
		h.dropRules(func(r netlink.Rule) bool { return !theirs(r, others) }),
		h.dropRoutes(func(r netlink.Route) bool { return !h.leaves(r, own, others, 0) }))
	for _, i := range gone {
		errs = append(errs, h.guard.remove(i.device))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	h.up, h.before, h.problems, h.spared, h.beyond, h.known = nil, nil, nil, nil, nil, false
	return nil
}

// restore returns the device to its state before Up.
func (h *Host) restore() error {
	link, ok, err := h.find(h.before.name)
	if err != nil || !ok {
		return err // it may have disappeared with its creator, as it should
	}
	now := describe(link)
	if !h.before.up && now.up {
		if err := h.rt.LinkSetDown(link); err != nil {
			return fmt.Errorf("take the device %s down: %w", now.name, err)
		}
	}
	if now.mtu != h.before.mtu {
		if err := h.rt.LinkSetMTU(link, h.before.mtu); err != nil {
			return fmt.Errorf("set the MTU of %s back to %d: %w", now.name, h.before.mtu, err)
		}
	}
	return nil
}

// Problems implements Network.
func (h *Host) Problems() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.problems)
}

// Close implements Network.
func (h *Host) Close() error {
	h.life.Lock()
	defer h.life.Unlock()
	if h.closed {
		return nil
	}
	var err error
	if h.keeper != nil || h.up != nil {
		err = h.down()
	}
	return errors.Join(err, h.release())
}

// release closes the sockets and leaves the kernel's state as it is.
func (h *Host) release() error {
	h.closed = true
	h.cancel()
	h.watches.Wait()
	if h.keeper != nil {
		h.keeper.close()
		h.keeper = nil
	}
	h.rt.Close()
	h.settings.close()
	if h.guard != nil {
		return h.guard.close()
	}
	return nil
}
