//go:build linux

package lab

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// UDPOnlyFrom makes a host's firewall drop incoming UDP except from some IPv4 addresses:
//
//	table inet firewall {
//	  chain input { type filter hook input
//	                iifname "eth0" meta l4proto udp meta nfproto ipv4 ip saddr ... accept     for each address
//	                iifname "eth0" meta l4proto udp drop }
//	}
func (h *Host) UDPOnlyFrom(addrs ...netip.Addr) error {
	return h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "firewall", Family: nftables.TableFamilyINet})
		input := c.AddChain(&nftables.Chain{
			Name: "input", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
		})
		add := func(kind expr.VerdictKind, more ...expr.Any) {
			rule := append(meta(expr.MetaKeyIIFNAME, outside()), meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_UDP})...)
			c.AddRule(&nftables.Rule{Table: table, Chain: input, Exprs: append(append(rule, more...), &expr.Verdict{Kind: kind})})
		}
		for _, a := range addrs {
			add(expr.VerdictAccept, append(meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}),
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})...)
		}
		add(expr.VerdictDrop)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("host %s: set its firewall: %w", h.Name, err)
		}
		return nil
	})
}
