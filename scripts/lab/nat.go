//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NATConfig describes the behaviour of a NAT. The zero value is an easy NAT: the kernel keeps the port of a host behind it
// for all destinations, and lets in only replies from those.
type NATConfig struct {
	Hard     bool   // a different random port for each destination address and port
	BlockUDP bool   // no UDP gets out
	TCPPort  uint16 // the only port that TCP gets out to; 0 means all
	V6       bool   // IPv6 is routed, but only replies get in; otherwise there is no IPv6
	MTU      int    // of the uplink, which drops larger packets without ICMP errors; 0: 1500. Fixed once added
}

// NAT is a router with a LAN behind it that the rest of the world cannot reach.
type NAT struct {
	*Host
	Inside *LAN
	cfg    NATConfig
}

// AddNAT adds a router between a LAN and a new one. The new one is 192.168.n.0/24 and 2001:db8:99:n::/64; the router has the
// first address in it. A NAT whose outside LAN is behind another NAT is behind a carrier-grade NAT.
func (w *World) AddNAT(name string, outside *LAN, cfg NATConfig) (*NAT, error) {
	inside, err := w.addLAN(name, nil)
	if err != nil {
		return nil, err
	}
	h, err := w.AddHost(name, outside)
	if err != nil {
		return nil, err
	}
	t := &NAT{Host: h, Inside: inside, cfg: cfg}
	inside.gateway = t
	w.mu.Lock()
	err = h.plugAt(inside, 1)
	w.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("NAT %s: %w", name, err)
	}
	err = h.Do(func() error {
		return errors.Join(sysctl("net.ipv4.ip_forward", "1"), sysctl("net.ipv6.conf.all.forwarding", "1"), t.rules())
	})
	if err == nil && cfg.MTU != 0 {
		err = t.narrow(cfg.MTU)
	}
	if err == nil && cfg.V6 {
		err = outside.route(inside.V6, h.V6())
	}
	if err != nil {
		return nil, fmt.Errorf("NAT %s: %w", name, err)
	}
	return t, nil
}

// route makes the router of a LAN, and all routers before it, send packets for a network through a host on the LAN.
func (l *LAN) route(to netip.Prefix, by netip.Addr) error {
	rt := l.world.router.rt
	if l.gateway != nil {
		rt = l.gateway.ns.rt
		next := l.gateway.V6()
		if to.Addr().Is4() {
			next = l.gateway.V4()
		}
		if err := l.gateway.Ports[0].LAN.route(to, next); err != nil {
			return err
		}
	}
	return rt.RouteAdd(&netlink.Route{Dst: netOf(to.Masked()), Gw: by.AsSlice()})
}

// narrow sets the MTU of the uplink.
func (t *NAT) narrow(mtu int) error {
	link, err := t.Netlink().LinkByName(t.Ports[0].Device)
	if err != nil {
		return err
	}
	return t.Netlink().LinkSetMTU(link, mtu)
}

// RoutesV6 reports whether IPv6 is routed.
func (t *NAT) RoutesV6() bool { return t.cfg.V6 }

// AlsoAt routes an additional IPv4 address to the NAT.
func (t *NAT) AlsoAt(a netip.Addr) error {
	return t.Ports[0].LAN.route(netip.PrefixFrom(a, a.BitLen()), t.V4())
}

// Reboot forgets all mappings.
func (t *NAT) Reboot() error {
	return t.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// Configure changes its behaviour from now on; existing mappings stay.
func (t *NAT) Configure(cfg NATConfig) error {
	t.cfg = cfg
	return t.Do(t.rules)
}

// rules installs these rules atomically:
//
//	table inet nat {
//	  chain post    { type nat hook postrouting;  meta nfproto ipv4 oifname "eth0" masquerade }
//	  chain input   { type filter hook input;  meta l4proto udp iifname "eth0" drop }
//	  chain output  { type filter hook output;  meta l4proto icmp drop; meta l4proto icmpv6 icmpv6 type 2 drop }    with MTU
//	  chain forward { type filter hook forward; policy drop
//	                  ct state established,related accept
//	                  ct status dnat accept                      for programs that open ports
//	                  meta nfproto ipv6 drop                     without V6
//	                  iifname "eth0" drop
//	                  meta l4proto udp drop                      with BlockUDP
//	                  meta l4proto tcp tcp dport != 443 drop     with TCPPort
//	                  accept }
//	}
//
// What is dropped on input leaves no conntrack entry. If it did, as a connection of the router itself, a packet from the
// inside to the same endpoint would be mapped to another port, and hole punching would fail.
func (t *NAT) rules() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "nat", Family: nftables.TableFamilyINet}
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	drop := nftables.ChainPolicyDrop
	post := c.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	input := c.AddChain(&nftables.Chain{
		Name: "input", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	add := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(exprs...)})
	}
	verdict := func(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
	add(post, meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}), meta(expr.MetaKeyOIFNAME, outside()),
		[]expr.Any{&expr.Masq{FullyRandom: t.cfg.Hard}})
	add(input, meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP}), meta(expr.MetaKeyIIFNAME, outside()), verdict(expr.VerdictDrop))
	if t.cfg.MTU != 0 {
		output := c.AddChain(&nftables.Chain{
			Name: "output", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		add(output, meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMP}), verdict(expr.VerdictDrop))
		add(output, meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_ICMPV6}), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Len: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{packetTooBig}},
		}, verdict(expr.VerdictDrop))
	}
	known := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	add(forward, []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: known, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}, verdict(expr.VerdictAccept))
	add(forward, []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(statusDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}, verdict(expr.VerdictAccept))
	if !t.cfg.V6 {
		add(forward, meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6}), verdict(expr.VerdictDrop))
	}
	add(forward, meta(expr.MetaKeyIIFNAME, outside()), verdict(expr.VerdictDrop))
	if t.cfg.BlockUDP {
		add(forward, meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP}), verdict(expr.VerdictDrop))
	}
	if t.cfg.TCPPort != 0 {
		add(forward, meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP}), []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.BigEndian.PutUint16(t.cfg.TCPPort)},
		}, verdict(expr.VerdictDrop))
	}
	add(forward, verdict(expr.VerdictAccept))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set the rules: %w", err)
	}
	return nil
}

// packetTooBig is an ICMPv6 type (RFC 4443, section 3.2).
const packetTooBig = 2

// statusDNAT is the kernel's IPS_DST_NAT.
const statusDNAT = 1 << 5

func meta(key expr.MetaKey, is []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: is}}
}

// outside returns the name of the outside interface as the kernel compares it.
func outside() []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, "eth0")
	return b
}
