package ipam

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
)

func mesh(v4 string) proto.Mesh {
	return proto.Mesh{V4: netip.MustParsePrefix(v4), V6: netip.MustParsePrefix("fd12:3456:789a::/48")}
}

// ranges are small enough to be filled; some overlap the avoided ranges.
var ranges = []string{"100.64.0.0/24", "10.1.2.0/25", "192.168.7.16/28", "100.115.92.0/22", "100.115.93.0/24", "100.100.3.0/24"}

func TestFillsARangeAndNeverGivesTwice(t *testing.T) {
	for _, r := range ranges {
		m, used := mesh(r), Set{}
		v6 := map[netip.Addr]bool{}
		for range Capacity(m.V4) {
			a, err := Next(m, rand.Reader, used)
			if err != nil {
				t.Fatalf("%s with %d of %d: %v", r, len(used), Capacity(m.V4), err)
			}
			if used.Has(a.V4) || v6[a.V6] || !Assignable(m.V4, a.V4) || !m.V6.Contains(a.V6) {
				t.Fatalf("%s: gave %v", r, a)
			}
			used[a.V4], v6[a.V6] = struct{}{}, true
		}
		if _, err := Next(m, rand.Reader, used); !errors.Is(err, ErrExhausted) {
			t.Errorf("%s when full: %v, want ErrExhausted", r, err)
		}
	}
}

func TestNeverGivesWhatIsTaken(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := mesh(rapid.SampledFrom(ranges).Draw(rt, "range"))
		base := number(m.V4.Addr())
		size := uint32(1) << (32 - m.V4.Bits())
		used := Set{}
		for _, n := range rapid.SliceOf(rapid.Uint32Range(0, size-1)).Draw(rt, "taken") {
			if a := address(base + n); Assignable(m.V4, a) {
				used[a] = struct{}{}
			}
		}
		seed := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(rt, "random")
		a, err := Next(m, bytes.NewReader(seed), used)
		switch {
		case len(used) == Capacity(m.V4):
			if !errors.Is(err, ErrExhausted) {
				rt.Fatalf("full: %v, want ErrExhausted", err)
			}
		case err != nil:
			rt.Fatal(err)
		case used.Has(a.V4) || !Assignable(m.V4, a.V4) || a.V6 != V6(m.V6, a.V4):
			rt.Fatalf("gave %v", a)
		}
	})
}

func TestCapacityCountsTheAssignable(t *testing.T) {
	for _, r := range append(ranges, "100.64.0.0/10", "100.100.0.0/15") {
		p := netip.MustParsePrefix(r)
		count := 0
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			if Assignable(p, a) {
				count++
			}
		}
		if count != Capacity(p) {
			t.Errorf("%s: %d assignable, capacity %d", r, count, Capacity(p))
		}
	}
}

func TestAssignable(t *testing.T) {
	for _, c := range []struct {
		p, a string
		want bool
	}{
		{"100.87.0.0/16", "100.87.0.0", false},
		{"100.87.0.0/16", "100.87.0.15", false},
		{"100.87.0.0/16", "100.87.0.16", true},
		{"100.87.0.0/16", "100.87.255.254", true},
		{"100.87.0.0/16", "100.87.255.255", false},
		{"100.87.0.0/16", "100.88.0.20", false},
		{"100.87.0.0/16", "fd12::1", false},
		{"10.0.0.16/28", "10.0.0.17", false},
		{"10.0.0.16/28", "10.0.0.18", true},
		{"100.64.0.0/10", "100.100.100.100", false},
		{"100.64.0.0/10", "100.115.93.7", false},
		{"100.64.0.0/10", "100.115.94.7", true},
		{"100.100.0.0/16", "100.100.100.100", true},
	} {
		if got := Assignable(netip.MustParsePrefix(c.p), netip.MustParseAddr(c.a)); got != c.want {
			t.Errorf("%s in %s: %v, want %v", c.a, c.p, got, c.want)
		}
	}
}

func TestRandomRanges(t *testing.T) {
	seen := map[netip.Prefix]bool{}
	for range 2000 {
		p, err := RandomV4(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if p.Bits() != 16 || !shared.Contains(p.Addr()) || CheckV4(p) != nil || overlapsAvoided(p) {
			t.Fatalf("drew %v", p)
		}
		seen[p] = true
	}
	if len(seen) != 62 {
		t.Errorf("2000 draws gave %d ranges, want all 62", len(seen))
	}
	a, err1 := RandomV6(rand.Reader)
	b, err2 := RandomV6(rand.Reader)
	if err1 != nil || err2 != nil || a == b || a.Bits() != 48 || a != a.Masked() || a.Addr().As16()[0] != 0xfd {
		t.Errorf("drew %v and %v (%v, %v)", a, b, err1, err2)
	}
}

func TestCheckV4(t *testing.T) {
	for _, good := range []string{"100.87.0.0/16", "10.0.0.0/8", "192.168.4.0/22", "10.9.8.16/28", "172.31.0.0/16", "100.64.0.0/10"} {
		if err := CheckV4(netip.MustParsePrefix(good)); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{
		"100.87.1.0/16", "10.0.0.0/7", "10.0.0.0/29", "127.0.0.0/8", "224.0.0.0/16", "169.254.0.0/16", "0.0.0.0/8", "240.0.0.0/8", "fd00::/48",
		"8.8.8.0/24", "100.0.0.0/8", "100.128.0.0/16", "172.0.0.0/8", "172.32.0.0/16", "192.168.0.0/15", "192.0.0.0/8", "198.18.0.0/16",
	} {
		if err := CheckV4(netip.MustParsePrefix(bad)); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if CheckV4(netip.Prefix{}) == nil {
		t.Error("the zero prefix was taken")
	}
}

func TestWithoutRandomnessNothingIsGiven(t *testing.T) {
	empty := bytes.NewReader(nil)
	_, err1 := Next(mesh("10.0.0.0/24"), empty, Set{})
	_, err2 := RandomV4(empty)
	_, err3 := RandomV6(empty)
	if err1 == nil || err2 == nil || err3 == nil {
		t.Errorf("without randomness: %v, %v, %v", err1, err2, err3)
	}
}

// most is a Taken with only one free address, as in a large range that is nearly full.
type most struct{ free netip.Addr }

func (m most) Has(a netip.Addr) bool { return a != m.free }
func (m most) Len() int              { return math.MinInt }

func TestFindsTheLastOne(t *testing.T) {
	m := mesh("100.87.0.0/16")
	last := netip.MustParseAddr("100.87.0.16")
	if a, err := Next(m, rand.Reader, most{last}); err != nil || a.V4 != last {
		t.Errorf("gave %v (%v), want %v", a, err, last)
	}
}

func BenchmarkNext(b *testing.B) {
	m, used := mesh("100.87.0.0/16"), Set{}
	for len(used) < Capacity(m.V4)*9/10 {
		a, err := Next(m, rand.Reader, used)
		if err != nil {
			b.Fatal(err)
		}
		used[a.V4] = struct{}{}
	}
	for b.Loop() {
		if _, err := Next(m, rand.Reader, used); err != nil {
			b.Fatal(err)
		}
	}
}
