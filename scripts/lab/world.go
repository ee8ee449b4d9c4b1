//go:build linux

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dirPrefix, followed by the creator's pid, begins the name of a world's directory.
const dirPrefix = "redoubt-lab-"

// World is a set of LANs, a router between them, and the hosts on them.
type World struct {
	// Dir holds each host's /run and logs; it is removed with the world.
	Dir string

	lock    *os.File
	router  *namespace
	starter *starter

	mu      sync.Mutex
	lans    []*LAN
	hosts   []*Host
	closers []func() error
	closed  bool
}

// LAN is a network: a bridge with its hosts.
type LAN struct {
	Name   string
	V4, V6 netip.Prefix // with the router's address

	world   *World
	gateway *NAT // the NAT that it is behind, if any
	number  int
	bridge  *netlink.Bridge
	next    int
}

// New creates an empty world and removes what killed ones have left behind.
func New() (*World, error) {
	if err := sweep(os.TempDir()); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("make the world's directory: %w", err)
	}
	w := &World{Dir: dir, starter: newStarter()}
	if err := w.begin(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

func (w *World) begin() error {
	var err error
	if w.lock, err = lockDir(w.Dir); err != nil {
		return err
	}
	if w.router, err = newNamespace(); err != nil {
		return err
	}
	return w.router.do(func() error {
		return errors.Join(
			sysctl("net.ipv4.ip_forward", "1"),
			sysctl("net.ipv6.conf.all.forwarding", "1"))
	})
}

// lockDir locks the directory for as long as this process lives. The lock is more reliable than the pid in the name: another
// container that shares /tmp has other pids.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the world's directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the world's directory %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// sweep removes the directories of worlds whose creators have died. It leaves those that it may not touch or is unsure about.
func sweep(tmp string) error {
	old, err := filepath.Glob(filepath.Join(tmp, dirPrefix+"*"))
	if err != nil {
		return fmt.Errorf("look for worlds that were left: %w", err)
	}
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		n, err := strconv.Atoi(pid)
		if err != nil || n == os.Getpid() || !errors.Is(unix.Kill(n, 0), unix.ESRCH) {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue
		}
		err = os.RemoveAll(dir)
		_ = lock.Close()
		if err != nil {
			return fmt.Errorf("remove the world %s that was left: %w", dir, err)
		}
	}
	return nil
}

// LAN adds a network. The nth is 10.99.n.0/24 and 2001:db8:99:n::/64.
func (w *World) LAN(name string) (*LAN, error) { return w.addLAN(name, w.router) }

// addLAN adds a network. If router is nil, a NAT routes for it.
func (w *World) addLAN(name string, router *namespace) (*LAN, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.lans) + 1
	if n > 200 {
		return nil, errors.New("a world has at most 200 LANs")
	}
	first := [4]byte{10, 99, byte(n), 1}
	if router == nil {
		first = [4]byte{192, 168, byte(n), 1}
	}
	l := &LAN{
		Name: name, world: w, number: n, next: 10,
		V4: netip.PrefixFrom(netip.AddrFrom4(first), 24),
		V6: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0x99, 0, byte(n), 15: 1}), 64),
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan" + strconv.Itoa(n)
	off := false
	l.bridge = &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	rt := w.router.rt
	if err := rt.LinkAdd(l.bridge); err != nil {
		return nil, fmt.Errorf("make the bridge of LAN %s: %w", name, err)
	}
	for _, p := range []netip.Prefix{l.V4, l.V6} {
		if router == nil {
			break
		}
		if err := addAddr(rt, l.bridge, p); err != nil {
			return nil, err
		}
	}
	if err := rt.LinkSetUp(l.bridge); err != nil {
		return nil, fmt.Errorf("take the bridge of LAN %s up: %w", name, err)
	}
	w.lans = append(w.lans, l)
	return l, nil
}

// Host returns the host with a name.
func (w *World) Host(name string) (*Host, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.hosts, func(h *Host) bool { return h.Name == name })
	if i < 0 {
		return nil, false
	}
	return w.hosts[i], true
}

// onClose registers f to be called when the world is closed, in reverse order.
func (w *World) onClose(f func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closers = append(w.closers, f)
}

// Close ends all processes and servers of the world and removes it. It may be called more than once.
func (w *World) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	closers := w.closers
	hosts := w.hosts
	w.mu.Unlock()

	var errs []error
	for _, f := range slices.Backward(closers) {
		errs = append(errs, f())
	}
	w.starter.close()
	for _, h := range hosts {
		errs = append(errs, h.ns.close())
	}
	if w.router != nil {
		errs = append(errs, w.router.close())
	}
	errs = append(errs, os.RemoveAll(w.Dir))
	if w.lock != nil {
		errs = append(errs, w.lock.Close())
	}
	return errors.Join(errs...)
}

// namespace is a network namespace, kept alive by an open file, with a routing socket in it.
type namespace struct {
	file *os.File
	rt   *netlink.Handle
}

// newNamespace creates a network namespace with lo up.
func newNamespace() (*namespace, error) {
	var ns namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", forbidden(err))
		}
		var err error
		if ns.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return fmt.Errorf("hold the network namespace: %w", err)
		}
		if ns.rt, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open a routing socket: %w", err)
		}
		// Nobody else is there: duplicate address detection would only delay IPv6 by two seconds. A system without IPv6 has
		// neither setting.
		for _, who := range []string{"all", "default"} {
			if err := sysctl("net.ipv6.conf."+who+".accept_dad", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		lo, err := ns.rt.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find lo: %w", err)
		}
		return ns.rt.LinkSetUp(lo)
	})
	if err != nil {
		return nil, errors.Join(err, ns.close())
	}
	return &ns, nil
}

func (ns *namespace) close() error {
	if ns.rt != nil {
		ns.rt.Close()
	}
	if ns.file != nil {
		return ns.file.Close()
	}
	return nil
}

// do runs f on a thread in the namespace.
func (ns *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

// onThread runs f on a dedicated thread that ends with it, so that no goroutine ever runs in another network. It passes on a
// panic of f, and the end of a test in it, to the caller.
func onThread(f func() error) error {
	var err error
	var trouble any
	returned := false
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer close(done)
		defer func() { trouble = recover() }()
		err = f()
		returned = true
	}()
	<-done
	switch {
	case trouble != nil:
		panic(trouble)
	case !returned:
		runtime.Goexit()
	}
	return err
}

func addAddr(rt *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: netOf(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := rt.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("give %s the address %v: %w", link.Attrs().Name, p, err)
	}
	return nil
}

// sysctl sets a value in the network of the calling thread.
func sysctl(name, value string) error {
	// Device names may contain dots; those that this package assigns do not.
	path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}
