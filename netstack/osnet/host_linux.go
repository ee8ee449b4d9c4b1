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

// Host is the Network of a Linux host: of the network namespace of the thread that called New. Whoever works in several
// namespaces calls Up and Watch from a thread in the same one, since both open sockets.
type Host struct {
	log *slog.Logger
	rt  *netlink.Handle
	// guard is nil where nftables cannot be had, for the reason in guardErr.
	guard    guard
	guardErr error
	resolv   []string

	// Watches end with ctx, and are waited for.
	ctx     context.Context
	cancel  context.CancelFunc
	watches sync.WaitGroup

	// life serialises what begins and ends things; mu guards what is below, and is never held while waiting for the keeper.
	life   sync.Mutex
	keeper *keeper
	closed bool

	mu       sync.Mutex
	settings *settings
	notes    []setting      // what the host's settings were before we touched them, as the guard remembers as well
	known    bool           // notes hold those of the guard that was found
	spared   []netip.Prefix // networks that are reached without the mesh though a route covers them
	beyond   []netip.Prefix // networks beyond the mesh for which there may be routes of this run
	up       *Config
	before   *device // our device as it was before Up
	problems []string
}

var _ Network = (*Host)(nil)

// device is what Up changes of a device besides its addresses.
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

// open brings the config about, once everything that can be checked beforehand has been.
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
	if h.before == nil {
		h.before = describe(link)
	}
	if err := h.refuse(c); err != nil {
		return err
	}

	// What differs by device is opened here, since the keeper's thread may be in another namespace.
	h.openSettings()
	// Everything is validated; from here on the machine is touched.
	h.up = &c
	if err := h.reconcile(true); err != nil {
		return errors.Join(err, h.shut())
	}
	return nil
}

// find looks for a device, which may come and go.
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

// refuse says which other agent of this namespace stands in the way, if one does.
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

// runs says whether the agent behind an instance is there: its device goes with it, and one that was made to stay has no
// carrier without it.
func (h *Host) runs(i instance) bool {
	link, err := h.rt.LinkByName(i.device)
	return err == nil && link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0
}

func instanceOf(c Config) instance {
	return instance{device: c.Interface, v4: c.Mesh.V4, v6: c.Mesh.V6}
}

// reconcile makes the kernel's state what h.up asks for, changing only what differs: first what closes, then what opens,
// then what is left over goes. With raise the device is taken up; without, one that somebody took down stays so and
// gets nothing.
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

// fence sets the guard: nftables, the unreachable routes, and the rules that lead to them. A guard without an agent that
// overlaps is taken over. It returns the ranges that were guarded for our device before, and those of other instances.
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
	// Throws before what they except.
	if err := h.addRoutes(append(throws(c, h.spared), unreachables(c)...)); err != nil {
		return nil, nil, err
	}
	return old, others, h.addRules(c)
}

// lead gives the device its addresses and routes.
func (h *Host) lead(c Config, link netlink.Link, old []netip.Prefix) error {
	if err := h.raise(c, link); err != nil {
		return err
	}
	if err := h.setAddrs(c, link, old); err != nil {
		return err
	}
	return h.addRoutes(ways(c, link.Attrs().Index))
}

// shut takes addresses and routes off the device and leaves the guard: nothing passes.
func (h *Host) shut() error {
	c := *h.up
	link, ok, err := h.find(c.Interface)
	if err != nil || !ok {
		return err // Without the device there is no way in.
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
		return nil // Without nftables Up has never begun, neither now nor in a run before.
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

// tearDown removes what was set for instances, last what guards. Rules and routes of ours go unless they
// belong to an instance that stays: those of one whose nftables table somebody has removed go, too.
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

// restore gives the device the state that it had before Up.
func (h *Host) restore() error {
	link, ok, err := h.find(h.before.name)
	if err != nil || !ok {
		return err // It may have gone with the one who made it, as it should.
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

// release lets go of the sockets and leaves the kernel's state as it is.
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
