package main

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// answerer is a STUN server on loopback that gives everybody the same answer.
func answerer(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			// A Binding response with XOR-MAPPED-ADDRESS 203.0.113.7:4660.
			a := append([]byte{1, 1, 0, 12}, b[4:20]...)
			a = append(a, 0, 0x20, 0, 8, 0, 1, 0x12^0x21, 0x34^0x12, 203^0x21, 0^0x12, 113^0xa4, 7^0x42)
			if n >= 20 {
				_, _ = c.WriteToUDPAddrPort(a, from) // after an error, the client gets no answer
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestNetcheck(t *testing.T) {
	f, socket := fake(t, status())
	one, two := answerer(t), answerer(t)
	relay := func(name string, a netip.AddrPort) *redoubtv1.UnderlayRelay {
		return &redoubtv1.UnderlayRelay{Name: name, Region: "eu", Udp: []string{a.Addr().String()}, UdpPort: uint32(a.Port()), Urls: []string{"https://127.0.0.1:1"}}
	}
	f.SetUnderlay(&redoubtv1.UnderlayResponse{
		Relays:  []*redoubtv1.UnderlayRelay{relay("fra", one), relay("nyc", two)},
		Router:  &redoubtv1.UnderlayRouter{Protocol: "PCP", External: "203.0.113.7:41641"},
		Router6: &redoubtv1.UnderlayRouter{Protocol: "PCP", External: "[2001:db8::7]:41641"},
		Paths: []*redoubtv1.UnderlayPath{
			{Peer: "server", Path: "direct", Endpoint: "198.51.100.7:59590", Mtu: 1420},
			{Peer: "nas", Path: "relay", Endpoint: "fra", Mtu: 1280, Fragments: true},
		},
	})
	r := redoubt(t, "", "--socket", socket, "netcheck")
	said := strings.Join(strings.Fields(r.out), " ")
	for _, want := range []string{
		"UDP gets out", "IPv4 203.0.113.7:4660, behind an easy NAT", "203.0.113.7:41641 by PCP", "over IPv6 [2001:db8::7]:41641 by PCP", "1500 bytes",
		"Peers server 1420 bytes inside the tunnel, direct 198.51.100.7:59590", "nas 1280 bytes inside the tunnel, relay fra, in fragments", "MTU 1500", "Relays fra (eu) UDP ", "nyc (eu) UDP ", "TCP no answer",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}
	if r.code != 0 || r.err != "" {
		t.Errorf("exit code %d, %q", r.code, r.err)
	}
	for line := range strings.Lines(r.out) {
		if len(line) > 81 {
			t.Errorf("too wide: %s", line)
		}
	}
	var j netcheckJSON
	r = redoubt(t, "", "--socket", socket, "netcheck", "--json")
	if err := json.Unmarshal([]byte(r.out), &j); err != nil || j.Firewall.External != "[2001:db8::7]:41641" || len(j.Paths) != 2 ||
		j.Paths[1] != (pathMTUJSON{"nas", "relay", "fra", 1280, true}) || j.Relays[0].MTU == nil || *j.Relays[0].MTU != 1500 {
		t.Errorf("%s: %v", r.out, err)
	}
	// Without an agent, it needs a server to ask.
	r = redoubt(t, "", "--socket", socket+"-", "netcheck")
	if r.code != exitNoAgent || !strings.Contains(r.err, "--stun") {
		t.Errorf("%+v", r)
	}
	r = redoubt(t, "", "--socket", socket+"-", "netcheck", "--port-mapping=false", "--json", "--stun", one.String(), "--stun", two.String())
	var v netcheckJSON
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || r.code != 0 || v.Kind != "easy" || len(v.Relays) != 2 || v.Relays[0].UDPms == nil || v.Relays[0].TCPms != nil {
		t.Errorf("%+v: %v", r, err)
	}
	if r = redoubt(t, "", "--socket", socket+"-", "netcheck", "--stun", "127.0.0.1:nonsense"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}
