package main

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestUpAsksForWhatWasGiven(t *testing.T) {
	yes, no, none, exit := true, false, "", "gate"
	for _, c := range []struct {
		args []string
		want *redoubtv1.RoutingChange
	}{
		{nil, nil},
		{[]string{"--accept-routes"}, &redoubtv1.RoutingChange{Accept: &yes}},
		{[]string{"--accept-routes=false", "--exit-node="}, &redoubtv1.RoutingChange{Accept: &no, ExitNode: &none}},
		{[]string{"--advertise-routes="}, &redoubtv1.RoutingChange{Advertise: &redoubtv1.RoutingChange_Prefixes{}}},
		{
			[]string{"--advertise-routes", "10.1.0.0/16, fd00:1::/64", "--advertise-exit-node", "--snat-subnet-routes=false"},
			&redoubtv1.RoutingChange{
				Advertise:         &redoubtv1.RoutingChange_Prefixes{Prefixes: []string{"10.1.0.0/16", "fd00:1::/64"}},
				AdvertiseExitNode: &yes, Snat: &no,
			},
		},
		{[]string{"--exit-node", "gate", "--exit-node-allow-lan"}, &redoubtv1.RoutingChange{ExitNode: &exit, ExitNodeAllowLan: &yes}},
	} {
		f, socket := fake(t, status())
		if r := redoubt(t, "", append([]string{"up", "--socket", socket}, c.args...)...); r.code != 0 {
			t.Errorf("%q: %+v", c.args, r)
		}
		if got := f.Asked().GetRouting(); !proto.Equal(got, c.want) {
			t.Errorf("%q asks for %v, want %v", c.args, got, c.want)
		}
	}
	for text, says := range map[string]string{
		"10.1.0.1/16": "did you mean 10.1.0.0/16?", "0.0.0.0/0": "--advertise-exit-node", "10.1.0.0": "want networks", "x": "want networks",
	} {
		f, socket := fake(t, status())
		r := redoubt(t, "", "up", "--socket", socket, "--advertise-routes", text)
		if r.code != exitUsage || !strings.Contains(r.err, says) || f.Asked() != nil {
			t.Errorf("%s: %+v", text, r)
		}
	}
}

// beyond returns the status of a node with all kinds of routing beyond the mesh, except an exit node.
func beyond() *redoubtv1.Status {
	st := status()
	st.Routing = &redoubtv1.Routing{
		Offered: []*redoubtv1.OfferedRoute{
			{Prefix: "0.0.0.0/0", Served: true}, {Prefix: "10.1.0.0/16", Served: true}, {Prefix: "10.2.0.0/16"}, {Prefix: "::/0", Served: true},
		},
		Routes: []*redoubtv1.PeerRoute{
			{Prefix: "0.0.0.0/0", PeerId: "n0000000000004", PeerName: "db-1"},
			{Prefix: "10.8.0.0/16", PeerId: "n0000000000004", PeerName: "db-1", Used: true},
			{Prefix: "fd00:8::/64", PeerId: "n0000000000006", PeerName: "a-machine-with-a-name-of-some-length", Used: true},
		},
		Snat: true, Accept: true,
	}
	return st
}

func TestStatusBeyondTheMesh(t *testing.T) {
	st := beyond()
	text := render(st, noon, false)
	golden(t, "status-beyond.txt", text)
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > width {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	_, socket := fake(t, st)
	golden(t, "status-beyond.json", redoubt(t, "", "status", "--json", "--socket", socket).out)
	for _, c := range []struct {
		exit *redoubtv1.ExitNode
		want string
	}{
		{&redoubtv1.ExitNode{Wanted: "gate", PeerName: "gate", Ipv4: true, Ipv6: true}, "exit node   gate, the local network is cut off\n"},
		{&redoubtv1.ExitNode{Wanted: "gate", PeerName: "gate", Ipv4: true, AllowLan: true}, "exit node   gate for IPv4 only, IPv6 is blocked, the local network is reached directly\n"},
		{&redoubtv1.ExitNode{Wanted: "gate", PeerName: "gate", Ipv6: true}, "exit node   gate for IPv6 only, IPv4 is blocked, the local network is cut off\n"},
		{&redoubtv1.ExitNode{Wanted: "gate"}, "exit node   gate is not reachable, Internet traffic is blocked, the local network is cut off\n"},
	} {
		st.Routing.ExitNode = c.exit
		if text := render(st, noon, false); !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(c.want), " ")) {
			t.Errorf("%v: %s", c.exit, text)
		}
	}
	st.Routing.Accept, st.Routing.Routes[1].Used, st.Routing.Routes[2].Used = false, false, false
	if text := render(st, noon, false); !strings.Contains(text, "none of the 2 that peers serve") {
		t.Error(text)
	}
}
