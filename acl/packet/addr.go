package packet

import (
	"encoding/binary"
	"net/netip"
)

// Addr is an IP address of either family in one comparable form: the two halves of an IPv6 address. IPv4 addresses are held
// as IPv4-mapped IPv6 addresses.
type Addr struct{ Hi, Lo uint64 }

const mapped = 0xffff << 32

// AddrOf converts a. An invalid address becomes the unspecified IPv6 address, which no node has.
func AddrOf(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return addr16(a.As16())
}

func addr16(b [16]byte) Addr {
	return Addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func addr4(v uint32) Addr { return Addr{0, mapped | uint64(v)} }

// Netip converts a back to a netip.Addr; mapped addresses become IPv4.
func (a Addr) Netip() netip.Addr {
	var b [16]byte
	a.put16(b[:])
	return netip.AddrFrom16(b).Unmap()
}

func (a Addr) put16(b []byte) {
	binary.BigEndian.PutUint64(b, a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
}

// Is4 reports whether a is an IPv4 address.
func (a Addr) Is4() bool { return a.Hi == 0 && a.Lo>>32 == 0xffff }

// IsGroup reports whether a is a multicast address of either family or the IPv4 limited broadcast address.
func (a Addr) IsGroup() bool {
	if a.Is4() {
		return uint32(a.Lo)>>28 == 0xe || uint32(a.Lo) == 1<<32-1
	}
	return a.Hi>>56 == 0xff
}

func (a Addr) String() string { return a.Netip().String() }
