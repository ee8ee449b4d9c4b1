package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// realm is a network in which every address has one owner: the Internet itself, or the network behind a NAT.
type realm struct {
	gateway *NAT // to the next realm; the Internet itself has none
	owners  map[netip.Addr]owner
}

// owner is a host, or the NAT through which an address is reached.
type owner struct {
	host *Host
	nat  *NAT
}

func (o owner) name() string {
	if o.host != nil {
		return "host " + o.host.name
	}
	return "NAT " + o.nat.name
}

// carrier is the range between a provider's NATs and its customers (RFC 6598).
var carrier = netip.MustParsePrefix("100.64.0.0/10")

// translated reports whether an address is meaningful only within its own realm. Others are routed to their realm.
func translated(a netip.Addr) bool {
	return a.IsPrivate() || carrier.Contains(a) || a.IsLinkLocalUnicast()
}

// take assigns an address to an owner, and announces it to the outer realms.
func (r *realm) take(a netip.Addr, o owner) {
	if was, ok := r.owners[a]; ok {
		panic(fmt.Sprintf("sim: %s wants %s, which %s has", o.name(), a, was.name()))
	}
	r.owners[a] = o
	if r.gateway != nil && !translated(a) {
		r.gateway.outside.take(a, owner{nat: r.gateway})
	}
}

func (r *realm) drop(a netip.Addr) {
	delete(r.owners, a)
	if r.gateway != nil && !translated(a) {
		r.gateway.outside.drop(a)
	}
}

// hosts calls f for every host in the realm and behind it.
func (r *realm) hosts(f func(*Host)) {
	for _, o := range r.owners {
		switch {
		case o.host != nil:
			f(o.host)
		case o.nat.outside == r:
			o.nat.inside.hosts(f)
		}
	}
}

// datagram is in transit from one socket to another.
type datagram struct {
	sender    *Host
	asked     netip.AddrPort // the destination that the sender gave
	from, dst netip.AddrPort // as translated so far
	whole     bool           // it must not be fragmented
	data      []byte
	due       time.Time
}

// size returns the size of the IP packet.
func (d *datagram) size() int {
	if d.dst.Addr().Is4() {
		return headerLen4 + 8 + len(d.data)
	}
	return headerLen6 + 8 + len(d.data)
}

// fits reports whether it gets through a link. If it is too large, its sender learns that from ICMP, if the link lets it pass.
func (d *datagram) fits(l Link) bool {
	if l.MTU == 0 || d.size() <= l.MTU || (!d.whole && !l.NoFragments) {
		return true
	}
	if d.whole && !l.NoICMP {
		d.sender.learn(d.asked.Addr(), l.MTU)
	}
	return false
}

// carry delivers a datagram to its socket, or to the NAT that judges it on arrival.
func (n *Internet) carry(d datagram) {
	h, now := d.sender, time.Now()
	if d.dst.Addr().IsLoopback() || h.realm.owners[d.dst.Addr()].host == h {
		if c := h.udp[d.dst.Port()]; c != nil {
			d.due = now
			c.arrive(d)
		}
		return
	}
	if h.asleep {
		return
	}
	var outer *NAT
	var delay time.Duration
	for at := h.realm; ; {
		o := at.owners[d.dst.Addr()]
		switch {
		case o.nat != nil && o.nat == outer:
			n.see(at, &d)
			if outer.cfg.Hairpin {
				outer.await(d, now.Add(outer.lan().Latency))
			}
			return
		case o != (owner{}) || at.gateway == nil:
			n.see(at, &d)
			n.enter(at, d, delay)
			return
		}
		outer = at.gateway
		outer.settle()
		if !outer.out(&d, now) || !outer.uplink().passes(&d) {
			return
		}
		delay += outer.uplink().delay()
		at = outer.outside
	}
}

// enter delivers a datagram to its destination in a realm, if there is one.
func (n *Internet) enter(at *realm, d datagram, delay time.Duration) {
	switch o := at.owners[d.dst.Addr()]; {
	case o.host != nil:
		n.direct(o.host, d, delay)
	case o.nat != nil:
		if to := o.nat.probable(d.dst); to != nil {
			o.nat.await(d, time.Now().Add(delay+n.between(d.sender, to).delay()+o.nat.depth(to)))
		}
	}
}

// direct delivers to a host in the realm that the datagram has reached.
func (n *Internet) direct(to *Host, d datagram, delay time.Duration) {
	l := n.between(d.sender, to)
	if l.passes(&d) {
		d.due = time.Now().Add(delay + l.delay())
		to.deliver(d)
		l.again(to, d)
	}
}

// deliver puts a datagram into its socket.
func (h *Host) deliver(d datagram) {
	if c := h.udp[d.dst.Port()]; c != nil && !h.asleep {
		c.arrive(d)
	}
}

// await holds a datagram until it arrives at the NAT.
func (t *NAT) await(d datagram, due time.Time) {
	d.due = due
	i := len(t.arriving)
	for i > 0 && t.arriving[i-1].due.After(due) {
		i--
	}
	t.arriving = slices.Insert(t.arriving, i, d)
	t.inside.hosts(func(h *Host) {
		for _, c := range h.udp {
			c.moved.fire()
		}
	})
}

// settle judges the datagrams that have arrived by now. It must be called before looking at the NAT's state or at anything
// behind it.
func (t *NAT) settle() {
	if t.outside.gateway != nil {
		t.outside.gateway.settle()
	}
	now := time.Now()
	for len(t.arriving) > 0 && !t.arriving[0].due.After(now) {
		d := t.arriving[0]
		t.arriving = slices.Delete(t.arriving, 0, 1)
		if !t.uplink().passes(&d) || !t.in(&d, d.due) {
			continue
		}
		switch o := t.inside.owners[d.dst.Addr()]; {
		case o.nat != nil:
			o.nat.await(d, d.due)
		case o.host != nil:
			if l := t.net.between(d.sender, o.host); l.passes(&d) {
				o.host.deliver(d)
				l.again(o.host, d)
			}
		}
	}
}

// probable returns the host that a datagram to an external address will reach; if that is not known yet, any host.
func (t *NAT) probable(dst netip.AddrPort) *Host {
	if m := t.inward[dst]; m != nil {
		dst = m.inside
	}
	switch o := t.inside.owners[dst.Addr()]; {
	case o.host != nil:
		return o.host
	case o.nat != nil && o.nat.outside == t.inside:
		return o.nat.probable(dst)
	}
	var first *Host
	t.inside.hosts(func(h *Host) {
		if first == nil || h.number < first.number {
			first = h
		}
	})
	return first
}

// depth returns the latency of all uplinks from outside the NAT to a host behind it.
func (t *NAT) depth(h *Host) time.Duration {
	var sum time.Duration
	for at := h.realm.gateway; ; at = at.outside.gateway {
		sum += at.uplink().delay()
		if at == t {
			return sum
		}
	}
}
