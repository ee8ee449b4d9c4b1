package filter

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestRoutesBehindPeers lets node 2 serve a network, node 3 a part of it, and node 4 the internet.
func TestRoutesBehindPeers(t *testing.T) {
	office, lab, all := netip.MustParsePrefix("10.33.0.0/16"), netip.MustParsePrefix("10.33.7.0/24"), netip.MustParsePrefix("0.0.0.0/0")
	w := newWorld(t, func(r *Ruleset) {
		r.Routes = []Route{{office, 2}, {lab, 3}, {all, 4}, {netip.MustParsePrefix("10.33.9.0/24"), 0}}
		r.rule(proto.In, everything...)
		r.rule(proto.Out, tcpPorts(1, 65535))
		r.rule(proto.In, tcpPorts(22, 22)).Peers = proto.Selector{Prefixes: []netip.Prefix{office}}
		r.rule(proto.Out, tcpPorts(80, 80)).Peers = proto.Selector{Prefixes: []netip.Prefix{lab, netip.MustParsePrefix("192.0.2.0/24")}}
		deny(r.rule(proto.In, tcpPorts(22, 22))).Peers = proto.Selector{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.33.1.128/25")}}
	})
	in := func(want Reason, from proto.NodeID, src string, port uint16) {
		t.Helper()
		pkt := tcp(netip.MustParseAddr(src), 4000, v4(1), port, syn)
		w.want(want, inFrom(w.Filter, from, pkt), pkt)
	}
	in(Permitted, 2, "10.33.1.1", 22)
	in(Forbidden, 2, "10.33.1.200", 22)
	in(NoService, 2, "10.33.1.1", 23) // node 2 may, hosts behind it may not
	in(Permitted, 3, "10.33.7.1", 22)
	in(Spoofed, 2, "10.33.7.1", 22) // the longer prefix wins
	in(Spoofed, 3, "10.33.1.1", 22)
	in(Spoofed, 4, "10.33.1.1", 22)
	in(Spoofed, 2, "10.33.9.1", 22) // nobody's
	in(Spoofed, 2, v4(3).String(), 22)
	in(Spoofed, 4, "100.64.0.99", 22) // the internet includes no address of the mesh
	in(NoRule, 4, "192.0.2.1", 22)

	out := func(want Reason, dst string, port uint16) {
		t.Helper()
		w.wantOut(want, tcp(v4(1), 4000, netip.MustParseAddr(dst), port, syn))
	}
	out(Permitted, "10.33.7.2", 80)
	out(NoService, "10.33.7.2", 81)
	out(Permitted, "192.0.2.1", 80)
	out(NoRule, "10.33.1.2", 80)
	out(UnknownPeer, "10.33.9.1", 80)
	out(Multicast, "224.0.0.1", 80)
	for _, r := range w.records() {
		if r.Kind == FlowStart && r.Local.Addr() == v4(1) && r.Remote.Addr() == netip.MustParseAddr("10.33.7.2") && r.Peer.Name != "node3" {
			t.Errorf("%v is behind %q", r.Remote, r.Peer.Name)
		}
	}

	// The flow dies when the route moves to another node.
	w.wantIn(Permitted, tcp(netip.MustParseAddr("10.33.7.2"), 80, v4(1), 4000, synAck))
	w.rules.Routes[1].Node = 2
	w.install()
	w.wantIn(Revoked, tcp(netip.MustParseAddr("10.33.7.2"), 80, v4(1), 4000, ack))
	w.wantIn(Permitted, tcp(netip.MustParseAddr("10.33.1.1"), 4000, v4(1), 22, ack))
	if _, toPeer := w.sweep(); len(toPeer) != 0 {
		t.Error("the router that the route goes to now is told of what it never saw")
	}
}

// TestServedRoutesOpen lets hosts behind this node open connections into the mesh.
func TestServedRoutesOpen(t *testing.T) {
	served := netip.MustParsePrefix("10.33.0.0/16")
	w := newWorld(t, func(r *Ruleset) {
		r.rule(proto.Out, tcpPorts(22, 22)).Local = []netip.Prefix{served}
		r.rule(proto.In, tcpPorts(80, 80)).Local = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	host := netip.MustParseAddr("10.33.1.1")
	w.wantOut(Permitted, tcp(host, 1, v4(2), 22, syn))
	w.wantOut(NoService, tcp(host, 1, v4(2), 23, syn))
	w.wantOut(ForeignSource, tcp(netip.MustParseAddr("10.34.1.1"), 1, v4(2), 22, syn))
	w.wantIn(Permitted, tcp(v4(2), 22, host, 1, synAck))
	w.wantIn(Permitted, tcp(v4(2), 1, host, 80, syn))
}

func TestRoutesRefused(t *testing.T) {
	p := netip.MustParsePrefix("10.33.0.0/16")
	for want, routes := range map[string][]Route{
		"twice":        {{p, 2}, {p, 3}},
		"not a prefix": {{netip.PrefixFrom(netip.MustParseAddr("10.33.0.1"), 16), 2}},
	} {
		r := testRuleset(3)
		r.Routes = routes
		if _, err := Compile(r); !errors.Is(err, ErrRuleset) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", routes, err)
		}
	}
}
