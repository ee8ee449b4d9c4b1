package acl

import (
	"net/netip"
	"slices"
)

// addrRange is an inclusive range of addresses of one family.
type addrRange struct{ first, last netip.Addr }

func rangeOf(p netip.Prefix) addrRange { return addrRange{p.Masked().Addr(), lastAddr(p)} }

// lastAddr returns the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < 8*len(b); bit++ {
		b[bit/8] |= 1 << (7 - bit%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ranges is a set of addresses: sorted, without ranges that overlap or adjoin.
type ranges []addrRange

// add returns the union of two sets. The cost depends on the number of ranges in both, not on their size.
func (rs ranges) add(more ranges) ranges {
	all := append(slices.Clone(rs), more...)
	slices.SortFunc(all, func(a, b addrRange) int { return a.first.Compare(b.first) })
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && touches(out[n-1], r) {
			if out[n-1].last.Less(r.last) {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// touches reports whether b, which begins no earlier than a, overlaps or adjoins a.
func touches(a, b addrRange) bool {
	return a.first.BitLen() == b.first.BitLen() && (b.first.Compare(a.last) <= 0 || a.last.Next() == b.first)
}

// remove returns the addresses of rs that are not in less.
func (rs ranges) remove(less ranges) ranges {
	var out ranges
	i := 0
	for _, r := range rs {
		for i < len(less) && less[i].last.Less(r.first) {
			i++
		}
		gone := false
		for j := i; j < len(less) && less[j].first.Compare(r.last) <= 0; j++ {
			if r.first.Less(less[j].first) {
				out = append(out, addrRange{r.first, less[j].first.Prev()})
			}
			if less[j].last.Compare(r.last) >= 0 {
				gone = true
				break
			}
			r.first = less[j].last.Next()
		}
		if !gone {
			out = append(out, r)
		}
	}
	return out
}

// prefixes returns the fewest prefixes that cover the set exactly, sorted.
func (rs ranges) prefixes() []netip.Prefix {
	var out []netip.Prefix
	for _, r := range rs {
		for first := r.first; ; {
			bits := first.BitLen()
			for bits > 0 {
				p := netip.PrefixFrom(first, bits-1)
				if p.Masked().Addr() != first || r.last.Less(lastAddr(p)) {
					break
				}
				bits--
			}
			p := netip.PrefixFrom(first, bits)
			out = append(out, p)
			last := lastAddr(p)
			if last == r.last {
				break
			}
			first = last.Next()
		}
	}
	return out
}

// internet is what autogroup:internet covers: every address that is not private, link-local, or in the range of meshes.
var internet = func() ranges {
	var all, out ranges
	for _, s := range []string{"0.0.0.0/0", "2000::/3"} {
		all = all.add(ranges{rangeOf(netip.MustParsePrefix(s))})
	}
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
		"224.0.0.0/3",
	} {
		out = out.add(ranges{rangeOf(netip.MustParsePrefix(s))})
	}
	return all.remove(out)
}()

var internetPrefixes = internet.prefixes()
