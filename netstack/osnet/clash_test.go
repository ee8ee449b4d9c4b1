package osnet

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestClashesAreNamed(t *testing.T) {
	mesh := proto.Mesh{V4: prefix("100.100.0.0/16"), V6: prefix("fd12:3456:789a::/48")}
	on := func(device, p string) address { return address{device: device, prefix: prefix(p), up: true} }
	for name, c := range map[string]struct {
		facts facts
		want  []string // one substring per text; there must be no further texts
	}{
		"nothing": {facts{
			devices: []string{"lo", "eth0", "wlan0"},
			addrs:   []address{on("eth0", "192.168.1.5/24"), on("eth0", "fd12:3456:789b::5/64")},
			routes: []route{
				{gateway: netip.MustParseAddr("192.168.1.1"), device: "eth0", table: 254},
				{dst: prefix("0.0.0.0/1"), device: "tun0", table: 254}, // half of a VPN's default route
			},
			servers: []netip.Addr{netip.MustParseAddr("192.168.1.1")},
		}, nil},
		"cloud DNS": {
			facts{servers: []netip.Addr{netip.MustParseAddr("100.100.2.136")}},
			[]string{"the DNS server 100.100.2.136 lies in the mesh's range 100.100.0.0/16: names will not be found"},
		},
		"carrier's NAT": {
			facts{
				addrs:  []address{on("wwan0", "100.100.7.8/30")},
				routes: []route{{gateway: netip.MustParseAddr("100.100.7.9"), device: "wwan0", table: 254}},
			},
			[]string{
				"the default gateway 100.100.7.9 on wwan0 lies in the mesh's range",
				"wwan0 has the address 100.100.7.8/30 in the mesh's range",
			},
		},
		"a network around": {
			facts{addrs: []address{on("eth0", "100.64.0.7/10")}},
			[]string{"eth0 is in the network 100.64.0.0/10, which overlaps"},
		},
		"a device and its route are one clash": {
			facts{
				addrs:  []address{on("eth0", "100.100.3.7/24")},
				routes: []route{{dst: prefix("100.100.3.0/24"), device: "eth0", table: 254}},
			},
			[]string{"eth0 has the address 100.100.3.7/24"},
		},
		"routes": {
			facts{routes: []route{
				{dst: prefix("100.100.0.0/16"), gateway: netip.MustParseAddr("10.0.0.1"), device: "eth1", table: 254},
				{dst: prefix("100.100.5.0/24"), device: "wt0", table: 7120},
				{dst: prefix("fd12:3456:789a:1::/64"), device: "eth0", table: 254},
			}},
			[]string{
				"the route to 100.100.0.0/16 by 10.0.0.1 on eth1 (table 254)",
				"the route to 100.100.5.0/24 on wt0 (NetBird) (table 7120)",
				"the route to fd12:3456:789a:1::/64 on eth0",
			},
		},
		"Tailscale": {
			facts{devices: []string{"tailscale0", "eth0"}},
			[]string{"tailscale0: Tailscale drops packets from 100.64.0.0/10"},
		},
		"another agent": {
			facts{guards: []instance{{device: "redoubt1", v4: prefix("100.100.0.0/17"), v6: prefix("fd00::/48")}}},
			[]string{"another agent of this host guards 100.100.0.0/17 for redoubt1"},
		},
		"ourselves": {facts{
			ours:   "redoubt0",
			addrs:  []address{{device: "redoubt0", prefix: prefix("100.100.0.5/32"), ours: true}},
			guards: []instance{{device: "redoubt0", v4: mesh.V4, v6: mesh.V6}},
		}, nil},
	} {
		got := clashes(mesh, c.facts)
		if len(got) != len(c.want) {
			t.Errorf("%s: %d texts, want %d:\n%s", name, len(got), len(c.want), strings.Join(got, "\n"))
		}
		for _, want := range c.want {
			if !strings.Contains(strings.Join(got, "\n"), want) {
				t.Errorf("%s: no text says %q:\n%s", name, want, strings.Join(got, "\n"))
			}
		}
	}
}

func TestClashesAreBounded(t *testing.T) {
	mesh := proto.Mesh{V4: prefix("100.100.0.0/16"), V6: prefix("fd12:3456:789a::/48")}
	var f facts
	for i := range 200 {
		f.routes = append(f.routes, route{dst: prefix(fmt.Sprintf("100.100.%d.0/24", i)), device: "eth0"})
	}
	if got := clashes(mesh, f); len(got) != MaxClashes {
		t.Errorf("%d texts", len(got))
	}
}

func TestMeshDevices(t *testing.T) {
	for device, want := range map[string]string{
		"tailscale0": "Tailscale", "wt0": "NetBird", "nebula1": "Nebula", "ztabcdef12": "ZeroTier", "nm-office": "Netmaker",
		"CloudflareWARP": "Cloudflare WARP", "eth0": "", "wtap": "", "hamster": "", "redoubt0": "",
	} {
		if got := productOf(device); got != want {
			t.Errorf("%s: %q, want %q", device, got, want)
		}
	}
}

func FuzzParseResolv(f *testing.F) {
	f.Add("# comment\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\nsearch example.com\n")
	f.Add("nameserver\nnameserver x\noptions edns0\nnameserver ::ffff:10.0.0.1")
	f.Fuzz(func(t *testing.T, text string) {
		got := parseResolv(text)
		if len(got) > 8 {
			t.Errorf("%d servers", len(got))
		}
		for _, a := range got {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Errorf("server %v", a)
			}
		}
	})
}

func TestParseResolv(t *testing.T) {
	got := parseResolv("# nameserver 1.1.1.1\nnameserver 192.168.1.1 # home\nnameserver fe80::1%eth0\nnameserver ::ffff:10.0.0.1")
	if want := "[192.168.1.1 fe80::1 10.0.0.1]"; fmt.Sprint(got) != want {
		t.Errorf("servers %v, want %v", got, want)
	}
}
