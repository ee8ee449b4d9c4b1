package sim

import (
	"net/netip"
	"slices"
	"time"
)

// way is the path of a stream from one host to another.
type way struct {
	from, to end
	port     uint16 // the stream's destination port
	crossed  []crossing
	source   netip.Addr // the source address that the other host sees
}

// end is the location of one end of a stream. If the host moves away, the stream falls silent.
type end struct {
	host  *Host
	realm *realm
	addr  netip.Addr
}

func (e end) there() bool {
	return e.addr.IsLoopback() || (!e.host.asleep && e.realm.owners[e.addr].host == e.host)
}

// crossing is a NAT that keeps state for a stream, until the NAT restarts.
type crossing struct {
	nat  *NAT
	life int
}

func (c crossing) passes(port uint16) bool {
	ports := c.nat.cfg.TCPPorts
	return c.life == c.nat.life && !c.nat.cfg.Uplink.Cut && (len(ports) == 0 || slices.Contains(ports, port))
}

// way finds the path of a new stream; nil if there is none. Streams into a NAT are possible only to routed addresses, where the
// NAT is open. The caller holds the lock.
func (n *Internet) way(h *Host, from netip.Addr, to netip.AddrPort) *way {
	w := &way{from: end{h, h.realm, from}, port: to.Port(), source: from}
	if to.Addr().IsLoopback() {
		w.to = end{h, h.realm, to.Addr()}
	}
	for at := h.realm; w.to.host == nil; {
		switch o := at.owners[to.Addr()]; {
		case o.host != nil:
			w.to = end{o.host, at, to.Addr()}
		case o.nat != nil:
			if _, routed := o.nat.inside.owners[to.Addr()]; !routed || !o.nat.cfg.Open {
				return nil
			}
			w.cross(o.nat)
			at = o.nat.inside
		case at.gateway == nil || !w.leave(at.gateway):
			return nil
		default:
			at = at.gateway.outside
		}
	}
	if _, ok := w.open(n); !ok {
		return nil
	}
	return w
}

func (w *way) cross(t *NAT) { w.crossed = append(w.crossed, crossing{t, t.life}) }

// leave goes out through a NAT.
func (w *way) leave(t *NAT) bool {
	w.cross(t)
	if !translated(w.source) {
		return true
	}
	var ok bool
	w.source, ok = t.addrFor(w.source)
	return ok
}

// seen returns the endpoint that the other host sees for a stream from a port. A NAT's external ports for streams are unrelated
// to the internal ones.
func (w *way) seen(port uint16) netip.AddrPort {
	for _, c := range w.crossed {
		if w.source != w.from.addr {
			c.nat.streams++
			port = firstEphemeral - 1 - c.nat.streams%(firstEphemeral-firstPort)
		}
	}
	return netip.AddrPortFrom(w.source, port)
}

// open reports whether packets get through now, and how long they take.
func (w *way) open(n *Internet) (time.Duration, bool) {
	if !w.from.there() || !w.to.there() {
		return 0, false
	}
	if w.from.host == w.to.host {
		return 0, true
	}
	l := n.between(w.from.host, w.to.host)
	if l.Cut {
		return 0, false
	}
	latency := l.Latency
	for _, c := range w.crossed {
		if !c.passes(w.port) {
			return 0, false
		}
		latency += c.nat.cfg.Uplink.Latency
	}
	return latency, true
}
