package filter

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// outsideCases are rules and packets, and which of the packets another filter passes.
type outsideCases struct {
	Protos []uint8
	Local  []string
	Caps   map[string][]string
	Rules  []struct {
		Srcs, Dsts, Caps []string
		Proto            []uint8
	}
	Packets []struct {
		Proto        uint8
		Src, Dst     string
		Sport, Dport uint16
		Accept       bool
	}
}

// ruleset turns the cases into the ruleset of one node that serves the local addresses and whose only peer is a router for all
// addresses.
func (c *outsideCases) ruleset(tb testing.TB) Ruleset {
	r := testRuleset(1)
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		r.Routes = append(r.Routes, Route{netip.MustParsePrefix(all), r.Peers[0].ID})
	}
	prefix := func(s string) netip.Prefix {
		if p, err := netip.ParsePrefix(s); err == nil {
			return p
		}
		a := netip.MustParseAddr(s)
		return netip.PrefixFrom(a, a.BitLen())
	}
	for i, rule := range c.Rules {
		var peers []netip.Prefix
		for _, s := range rule.Srcs {
			peers = append(peers, prefix(s))
		}
		for holder, caps := range c.Caps {
			if slices.ContainsFunc(rule.Caps, func(s string) bool { return slices.Contains(caps, s) }) {
				peers = append(peers, prefix(holder))
			}
		}
		protos := rule.Proto
		if protos == nil {
			protos = c.Protos
		}
		for _, d := range rule.Dsts {
			at := strings.LastIndexByte(d, ':')
			dst, ports := prefix(d[:at]), d[at+1:]
			var local []netip.Prefix
			for _, l := range c.Local {
				switch l := prefix(l); {
				case covers(dst, l):
					local = append(local, l)
				case covers(l, dst):
					local = append(local, dst)
				}
			}
			first, last := uint16(0), uint16(65535)
			if ports != "*" {
				from, to, isRange := strings.Cut(ports, "-")
				if !isRange {
					to = from
				}
				first, last = port(tb, from), port(tb, to)
			}
			var services []proto.Service
			for _, p := range protos {
				if proto.HasPorts(p) {
					services = append(services, proto.Service{Proto: p, First: first, Last: last})
				} else {
					services = append(services, whole(p))
				}
			}
			r.Rules = append(r.Rules, proto.Rule{
				Origin: proto.Origin{Path: fmt.Sprintf("rules[%d]", i), Line: i + 1}, Direction: proto.In,
				Peers: proto.Selector{Prefixes: peers}, Local: local, Services: services,
			})
		}
	}
	return r
}

func port(tb testing.TB, s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		tb.Fatal(err)
	}
	return uint16(n)
}

// TestOutsideCases compares the filter with the verdicts of another one on the same rules. The only expected difference: the
// other one passes whatever does not open a TCP connection, echo replies and ICMP errors, whether or not they belong to a flow.
func TestOutsideCases(t *testing.T) {
	b, err := os.ReadFile("testdata/tailscale/filter.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases outsideCases
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases.Packets) != 35 || len(cases.Rules) != 12 {
		t.Fatalf("%d packets, %d rules", len(cases.Packets), len(cases.Rules))
	}
	p, err := Compile(cases.ruleset(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases.Packets {
		src, dst := netip.MustParseAddr(c.Src), netip.MustParseAddr(c.Dst)
		fresh := func(name string, accept bool, pkt []byte) {
			t.Helper()
			f := New(Config{})
			f.Install(p)
			v := inFrom(f, 2, pkt)
			if v.Pass != accept {
				t.Errorf("%s: %s: %v, accepted there: %v", name, describe(pkt), v.Reason, accept)
			}
			if !accept && !slices.Contains([]Reason{NoRule, NoService, ForeignDestination, NoFlow, ICMPUnrelated}, v.Reason) {
				t.Errorf("%s: %s: dropped for another reason, %v", name, describe(pkt), v.Reason)
			}
		}
		switch c.Proto {
		case proto.ProtoTCP:
			fresh("as it is", c.Accept, tcp(src, c.Sport, dst, c.Dport, syn))
			fresh("as UDP", c.Accept, udp(src, c.Sport, dst, c.Dport, 0))
			for _, flags := range []uint8{ack, synAck, fin, rst, 0} {
				fresh("stricter: TCP without a connection", false, tcp(src, c.Sport, dst, c.Dport, flags))
			}
		case proto.ProtoICMP, proto.ProtoICMPv6:
			fresh("as it is", c.Accept, ping(src, dst, 1))
			fresh("stricter: an answer to nothing", false, pong(src, dst, 1))
			fresh("stricter: an error about nothing", false, unreachable(src, dst, udp(dst, 1, src, 2, 8)))
		default:
			pkt := packet.AppendQuote(nil, packet.AddrOf(src), packet.AddrOf(dst), c.Proto, c.Sport, c.Dport)
			fresh("as it is", c.Accept, lengthen(pkt, 4))
		}
	}
}
