package osnet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
	"pgregory.net/rapid"
)

func TestUsableAddresses(t *testing.T) {
	mesh := proto.Mesh{V4: prefix("100.80.0.0/16"), V6: prefix("fd12:3456:789a::/48")}
	got := usable([]address{
		{device: "lo", prefix: prefix("127.0.0.1/8"), up: true},
		{device: "lo", prefix: prefix("::1/128"), up: true},
		{device: "docker0", prefix: prefix("172.17.0.1/16"), up: true},
		{device: "eth1", prefix: prefix("10.0.0.5/8"), up: true},
		{device: "eth0", prefix: prefix("2001:db8::dead/64"), up: true, deprecated: true, way: true},
		{device: "eth0", prefix: prefix("192.168.1.5/24"), up: true, way: true},
		{device: "eth0", prefix: prefix("2001:db8::5/64"), up: true, way: true},
		{device: "eth0", prefix: prefix("2001:db8::6/64"), up: true, way: true, tentative: true},
		{device: "eth0", prefix: prefix("fe80::5/64"), up: true, way: true},
		{device: "eth0", prefix: prefix("169.254.7.7/16"), up: true, way: true},
		{device: "wlan0", prefix: prefix("192.168.2.5/24")},
		{device: "redoubt0", prefix: prefix("192.0.2.1/32"), up: true, ours: true},
		{device: "other0", prefix: prefix("100.80.3.3/32"), up: true},
		{device: "eth2", prefix: prefix("192.168.1.5/24"), up: true, way: true},
	}, mesh)
	want := "[192.168.1.5 2001:db8::5 10.0.0.5 172.17.0.1 2001:db8::dead]"
	if fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
}

func TestUsableAddressesAreFewAndNeverOverlay(t *testing.T) {
	mesh := proto.Mesh{V4: prefix("100.80.0.0/16"), V6: prefix("fd12:3456:789a::/48")}
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) address {
			b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")
			if rapid.Bool().Draw(t, "overlay") {
				b[0], b[1] = 100, 80
			}
			return address{
				device:     rapid.SampledFrom([]string{"eth0", "docker0", "wlan0"}).Draw(t, "device"),
				prefix:     netip.PrefixFrom(netip.AddrFrom4([4]byte(b)), 24),
				up:         rapid.Bool().Draw(t, "up"),
				deprecated: rapid.Bool().Draw(t, "deprecated"),
				way:        rapid.Bool().Draw(t, "way"),
			}
		}), 0, 40).Draw(t, "all")
		got := usable(all, mesh)
		if len(got) > MaxEndpoints {
			t.Fatalf("%d endpoints", len(got))
		}
		for i, a := range got {
			if mesh.Contains(a) || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || slices.Contains(got[:i], a) {
				t.Fatalf("endpoint %v of %v", a, got)
			}
		}
	})
}
