// Package ipam decides which overlay addresses nodes get. It does no I/O and keeps no state: the caller says which addresses
// are taken, by nodes or because they rest after a node's removal.
//
//	IPv4 range, such as 100.87.0.0/16           IPv6 prefix, a random ULA /48 (RFC 4193)
//
//	  .0.0         network                        fd12:3456:789a:0:0:0:a.b.c.d
//	  .0.1-.0.15   services of the mesh itself                        └──┬──┘
//	  .0.16        first address of a node                     the node's IPv4 address
//	  ...
//	  .255.254     last address of a node
//	  .255.255     broadcast
//
// A node's two addresses are assigned and freed together: the IPv6 address contains the IPv4 address, so both are equally
// unique and people can see which belong together.
//
// Two parts of 100.64.0.0/10 are in use elsewhere (a cloud's DNS and metadata in 100.100.0.0/16, ChromeOS containers in
// 100.115.92.0/23). No node gets an address there, unless the whole range lies there.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Rest is how long an address stays unused after its node was removed: longer than anyone caches anything for it.
const Rest = 30 * 24 * time.Hour

// ErrExhausted means that every address of the range is in use or resting.
var ErrExhausted = errors.New("the mesh's range has no free address left")

// shared is where default ranges come from: the range for carrier-grade NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

var avoided = []netip.Prefix{
	netip.MustParsePrefix("100.100.0.0/16"),
	netip.MustParsePrefix("100.115.92.0/23"),
}

// Prefix lengths that a mesh may use.
const (
	minBits = 8
	maxBits = 28
)

// Taken is the set of addresses that cannot be assigned at the moment.
type Taken interface {
	Has(v4 netip.Addr) bool
	// Len returns how many addresses of the range the set holds.
	Len() int
}

// Set is a Taken that holds its keys.
type Set map[netip.Addr]struct{}

// Has implements Taken.
func (s Set) Has(a netip.Addr) bool { _, ok := s[a]; return ok }

// Len implements Taken.
func (s Set) Len() int { return len(s) }

// RandomV4 draws a /16 of 100.64.0.0/10 that does not overlap other known users.
func RandomV4(random io.Reader) (netip.Prefix, error) {
	for {
		n, err := draw(random, 64)
		if err != nil {
			return netip.Prefix{}, err
		}
		base := shared.Addr().As4()
		base[1] += byte(n)
		p := netip.PrefixFrom(netip.AddrFrom4(base), 16)
		if !overlapsAvoided(p) {
			return p, nil
		}
	}
}

func overlapsAvoided(p netip.Prefix) bool {
	for _, a := range avoided {
		if a.Overlaps(p) {
			return true
		}
	}
	return false
}

// RandomV6 draws a unique local /48 (RFC 4193, section 3.2).
func RandomV6(random io.Reader) (netip.Prefix, error) {
	b := [16]byte{0: 0xfd}
	if _, err := io.ReadFull(random, b[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("draw an IPv6 prefix: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 48), nil
}

// inner lists the ranges that no Internet host uses: shared address space (RFC 6598) and private networks (RFC 1918).
var inner = []netip.Prefix{
	shared,
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
}

// CheckV4 returns why a range cannot be a mesh's IPv4 range, or nil if it can.
func CheckV4(p netip.Prefix) error {
	switch {
	case !p.IsValid() || !p.Addr().Is4():
		return fmt.Errorf("range %v: want an IPv4 prefix such as 100.87.0.0/16", p)
	case p != p.Masked():
		return fmt.Errorf("range %v: has bits set beyond the prefix length; did you mean %v?", p, p.Masked())
	case p.Bits() < minBits || p.Bits() > maxBits:
		return fmt.Errorf("range %v: want a prefix of /%d to /%d", p, minBits, maxBits)
	}
	if !slices.ContainsFunc(inner, func(r netip.Prefix) bool { return r.Contains(p.Addr()) && r.Bits() <= p.Bits() }) {
		return fmt.Errorf("range %v: not private, so the nodes could not reach the real owners of these addresses; "+
			"use one within 100.64.0.0/10, 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16", p)
	}
	return nil
}

// Services returns how many addresses at the start of a range are reserved for the mesh itself, including the network
// address.
func Services(p netip.Prefix) int {
	if p.Bits() <= 24 {
		return 16
	}
	return 2
}

// Capacity returns how many nodes fit in a range.
func Capacity(p netip.Prefix) int {
	first, last := span(p)
	low, high := first+Services(p), last-1
	n := high - low + 1
	for _, a := range avoided {
		if p.Bits() < a.Bits() {
			first, last := span(a)
			n -= max(0, min(high, last)-max(low, first)+1)
		}
	}
	return n
}

// span returns the first and last address of a prefix as numbers.
func span(p netip.Prefix) (first, last int) {
	first = int(number(p.Addr()))
	return first, first + 1<<(32-p.Bits()) - 1
}

// Assignable reports whether a node may have the address.
func Assignable(p netip.Prefix, a netip.Addr) bool {
	if !p.Contains(a) || !a.Is4() {
		return false
	}
	first, last := span(p)
	if n := int(number(a)); n < first+Services(p) || n == last {
		return false
	}
	for _, v := range avoided {
		if v.Contains(a) && p.Bits() < v.Bits() {
			return false
		}
	}
	return true
}

// Next returns a free pair of addresses. It starts searching at a random place, so that a mesh restored from an old backup
// does not hand out addresses assigned since.
func Next(m proto.Mesh, random io.Reader, taken Taken) (proto.Addrs, error) {
	if taken.Len() >= Capacity(m.V4) {
		return proto.Addrs{}, fmt.Errorf("%v has room for %d nodes: %w", m.V4, Capacity(m.V4), ErrExhausted)
	}
	size := uint32(1) << (32 - m.V4.Bits())
	start, err := draw(random, size)
	if err != nil {
		return proto.Addrs{}, err
	}
	base := number(m.V4.Addr())
	for i := range size {
		a := address(base + (start+i)%size)
		if Assignable(m.V4, a) && !taken.Has(a) {
			return proto.Addrs{V4: a, V6: V6(m.V6, a)}, nil
		}
	}
	return proto.Addrs{}, fmt.Errorf("%v: %w", m.V4, ErrExhausted)
}

// V6 returns the IPv6 address that belongs to an IPv4 address.
func V6(prefix netip.Prefix, v4 netip.Addr) netip.Addr {
	b := prefix.Addr().As16()
	four := v4.As4()
	copy(b[12:], four[:])
	return netip.AddrFrom16(b)
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func address(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// draw returns a random number below n, which must be a power of two.
func draw(random io.Reader, n uint32) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0, fmt.Errorf("draw an address: %w", err)
	}
	return binary.BigEndian.Uint32(b[:]) % n, nil
}
