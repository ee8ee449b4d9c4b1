package osnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	rtnl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/redoubt-mesh/redoubt/proto"
)

// listener turns the kernel's change notifications into events.
type listener struct {
	conns  []*rtnl.Conn
	events chan struct{}
	wg     sync.WaitGroup
}

// source is a netlink family and the multicast groups to join.
type source struct {
	family int
	groups []uint32
	// concerns filters messages; nil accepts all.
	concerns func(rtnl.Message) bool
}

// listen opens the sockets in the network namespace of the calling thread. The events channel is closed once all sockets are.
func listen(sources ...source) (*listener, error) {
	l := &listener{events: make(chan struct{}, 1)}
	for _, s := range sources {
		conn, err := rtnl.Dial(s.family, nil)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open a netlink socket of family %d: %w", s.family, err), l.hangUp())
		}
		l.conns = append(l.conns, conn)
		for _, g := range s.groups {
			if err := conn.JoinGroup(g); err != nil {
				return nil, errors.Join(fmt.Errorf("join group %d of netlink family %d: %w", g, s.family, err), l.hangUp())
			}
		}
	}
	for i, s := range sources {
		l.wg.Go(func() { l.receive(l.conns[i], s.concerns) })
	}
	go func() {
		l.wg.Wait()
		close(l.events)
	}()
	return l, nil
}

// receive returns when the socket is closed. A socket that overflowed has lost messages, which counts as a change.
func (l *listener) receive(conn *rtnl.Conn, concerns func(rtnl.Message) bool) {
	for {
		msgs, err := conn.Receive()
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		hit := err != nil || concerns == nil
		for _, m := range msgs {
			hit = hit || concerns(m)
		}
		if hit {
			select {
			case l.events <- struct{}{}:
			default:
			}
		}
	}
}

func (l *listener) hangUp() error {
	var errs []error
	for _, c := range l.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// keeper keeps the guard and the routes in force while an agent runs, whatever others do to them.
type keeper struct {
	l    *listener
	done chan struct{}
	stop chan struct{}
}

// retryInterval is the delay before another attempt to restore the guard.
const retryInterval = time.Second

func newKeeper(h *Host) (*keeper, error) {
	l, err := listen(
		source{unix.NETLINK_ROUTE, []uint32{
			unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
		}, touchesOurs},
		source{unix.NETLINK_NETFILTER, []uint32{unix.NFNLGRP_NFTABLES}, nil},
	)
	if err != nil {
		return nil, err
	}
	k := &keeper{l: l, done: make(chan struct{}), stop: make(chan struct{})}
	go k.run(h)
	return k, nil
}

// touchesOurs ignores routes that are not ours: a router's table may change a thousand times a second.
func touchesOurs(m rtnl.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[5] == RouteProtocol
	}
	return true
}

// touchesUnderlay ignores routes that are not default routes.
func touchesUnderlay(m rtnl.Message) bool {
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[1] == 0
	}
	return true
}

func (k *keeper) run(h *Host) {
	defer close(k.done)
	fold(k.l.events, FoldInterval, func() bool {
		for !h.keep() {
			select {
			case <-k.stop:
				return false
			case <-time.After(retryInterval):
			}
		}
		return true
	})
	select {
	case <-k.stop:
	default:
		h.log.Error("the kernel stopped telling of changes: the guard stays, but is not restored if somebody removes it")
	}
}

// close ends the keeper and waits for it.
func (k *keeper) close() {
	close(k.stop)
	// Errors from closing a socket that only listened do not matter.
	_ = k.l.hangUp()
	<-k.done
}

// keep checks that everything is in place and repairs what is not. If that fails it closes the way into the mesh, because the
// host may no longer be guarded.
func (h *Host) keep() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up == nil {
		return true
	}
	err := h.reconcile(false)
	if err == nil {
		return true
	}
	h.problem("the guard against bypass could not be restored, so nothing passes: %v", err)
	if err := h.shut(); err != nil {
		h.log.Error("close the way into the mesh", "interface", h.up.Interface, "err", err)
	}
	return false
}

// Watch implements Network.
func (h *Host) Watch(ctx context.Context) (<-chan struct{}, error) {
	h.life.Lock()
	defer h.life.Unlock()
	if h.closed {
		return nil, errClosed
	}
	l, err := listen(source{unix.NETLINK_ROUTE, []uint32{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	}, touchesUnderlay})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = l.hangUp() })
	unclose := context.AfterFunc(h.ctx, func() { _ = l.hangUp() })
	out := make(chan struct{}, 1)
	last := h.underlay()
	h.watches.Go(func() {
		defer close(out)
		defer stop()
		defer unclose()
		fold(l.events, FoldInterval, func() bool {
			now := h.underlay()
			if now == last {
				return false
			}
			last = now
			select {
			case out <- struct{}{}:
			default: // the pending report stands for this one
			}
			return true
		})
	})
	return out, nil
}

// underlay describes in one string what endpoints and sockets depend on: addresses, and the default routes. Other changes, such
// as lifetimes renewed by router advertisements, do not count.
func (h *Host) underlay() string {
	var b strings.Builder
	addrs, err := h.addresses()
	if err != nil {
		return err.Error()
	}
	for _, a := range addrs {
		fmt.Fprintln(&b, a.device, a.prefix, a.up, a.deprecated)
	}
	for _, f := range families {
		routes, err := dump(func() ([]netlink.Route, error) { return h.rt.RouteList(nil, f) })
		if err != nil {
			return err.Error()
		}
		for _, r := range routes {
			if p := prefixOf(r.Dst); p.IsValid() && p.Bits() != 0 {
				continue
			}
			fmt.Fprintln(&b, f, r.Gw, r.LinkIndex, r.Priority)
			for _, hop := range r.MultiPath {
				fmt.Fprintln(&b, hop.Gw, hop.LinkIndex)
			}
		}
	}
	return b.String()
}

// Endpoints implements Network.
func (h *Host) Endpoints(mesh proto.Mesh) ([]netip.Addr, error) {
	addrs, err := h.addresses()
	if err != nil {
		return nil, err
	}
	return usable(addrs, mesh), nil
}
