package proto_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/prototest"
)

func TestValidateRefuses(t *testing.T) {
	endpoint := func(s string) func(*proto.Netmap) {
		return func(n *proto.Netmap) {
			n.Peers[0].Endpoints = []proto.Endpoint{{Addr: netip.MustParseAddrPort(s), Kind: proto.EndpointInterface}}
		}
	}
	tests := map[string]func(n *proto.Netmap){
		"no version":                func(n *proto.Netmap) { n.Version = proto.Version{} },
		"no node":                   func(n *proto.Netmap) { n.Self = 0 },
		"no mesh":                   func(n *proto.Netmap) { n.Mesh.ID = "" },
		"no domain":                 func(n *proto.Netmap) { n.Mesh.Domain = "" },
		"domain in upper case":      func(n *proto.Netmap) { n.Mesh.Domain = "Mesh.internal" },
		"domain too long":           func(n *proto.Netmap) { n.Mesh.Domain = strings.Repeat("a.", 95) + "a" },
		"range of the wrong family": func(n *proto.Netmap) { n.Mesh.V4 = n.Mesh.V6 },
		"range not masked":          func(n *proto.Netmap) { n.Mesh.V4 = netip.MustParsePrefix("100.64.0.1/16") },
		"no range":                  func(n *proto.Netmap) { n.Mesh.V6 = netip.Prefix{} },
		"peers not sorted":          func(n *proto.Netmap) { n.Peers[0], n.Peers[1] = n.Peers[1], n.Peers[0] },
		"peer twice":                func(n *proto.Netmap) { n.Peers[1].ID = n.Peers[0].ID },
		"certificate too long":      func(n *proto.Netmap) { n.Peers[0].Certificate = make([]byte, proto.MaxCertificate+1) },
		"overlay endpoint":          endpoint("100.64.3.4:1"),
		"IPv6 overlay endpoint":     endpoint("[fd00:1:2::9]:1"),
		"loopback endpoint":         endpoint("127.0.0.1:1"),
		"IPv6 loopback endpoint":    endpoint("[::1]:1"),
		"mapped endpoint":           endpoint("[::ffff:192.0.2.1]:1"),
		"unspecified endpoint":      endpoint("0.0.0.0:1"),
		"multicast endpoint":        endpoint("224.0.0.1:1"),
		"IPv6 multicast endpoint":   endpoint("[ff02::1]:1"),
		"broadcast endpoint":        endpoint("255.255.255.255:1"),
		"endpoint with a zone":      endpoint("[fe80::1%eth0]:1"),
		"endpoint without port":     endpoint("192.0.2.1:0"),
		"endpoint twice": func(n *proto.Netmap) {
			endpoint("192.0.2.1:1")(n)
			n.Peers[0].Endpoints = append(n.Peers[0].Endpoints, n.Peers[0].Endpoints[0])
		},
		"endpoint of no kind":        func(n *proto.Netmap) { endpoint("192.0.2.1:1")(n); n.Peers[0].Endpoints[0].Kind = 0 },
		"too many endpoints":         func(n *proto.Netmap) { n.Peers[0].Endpoints = endpoints(proto.MaxEndpoints + 1) },
		"sets not sorted":            func(n *proto.Netmap) { n.Sets[0], n.Sets[1] = n.Sets[1], n.Sets[0] },
		"set without name":           func(n *proto.Netmap) { n.Sets[0].Name = "" },
		"set's name not printable":   func(n *proto.Netmap) { n.Sets[0].Name = "\x1b[31m" },
		"set's name too long":        func(n *proto.Netmap) { n.Sets[1].Name = strings.Repeat("z", proto.MaxName+1) },
		"member twice":               func(n *proto.Netmap) { n.Sets[0].Members = []proto.NodeID{1, 1} },
		"too many members":           func(n *proto.Netmap) { n.Sets[0].Members = many(proto.MaxMembers + 1) },
		"rule of an unknown set":     func(n *proto.Netmap) { n.Rules[0].Peers.Sets = []string{"group:c"} },
		"rule without key":           func(n *proto.Netmap) { n.Rules[0].Key = "" },
		"rule of a negative line":    func(n *proto.Netmap) { n.Rules[0].Origin.Line = -1 },
		"rule twice":                 func(n *proto.Netmap) { n.Rules = append(n.Rules, n.Rules[0]) },
		"rule prefix not masked":     func(n *proto.Netmap) { n.Rules[0].Local = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")} },
		"rule prefix mapped":         func(n *proto.Netmap) { n.Rules[0].Local = []netip.Prefix{netip.MustParsePrefix("::ffff:10.0.0.0/104")} },
		"rule of too many sets":      func(n *proto.Netmap) { n.Rules[0].Peers.Sets = make([]string, proto.MaxRuleSets+1) },
		"rule of too many prefixes":  func(n *proto.Netmap) { n.Rules[0].Peers.Prefixes = make([]netip.Prefix, proto.MaxRulePrefixes+1) },
		"rule of too many services":  func(n *proto.Netmap) { n.Rules[0].Services = make([]proto.Service, proto.MaxServices+1) },
		"feature twice":              func(n *proto.Netmap) { n.Requires = []string{"a", "a"} },
		"too many features":          func(n *proto.Netmap) { n.Requires = make([]string, proto.MaxRequires+1) },
		"empty authority":            func(n *proto.Netmap) { n.Authorities = [][]byte{{}} },
		"too many authorities":       func(n *proto.Netmap) { n.Authorities = make([][]byte, proto.MaxAuthorities+1) },
		"negative grace":             func(n *proto.Netmap) { n.Outage.Grace = -time.Second },
		"grace of part of a second":  func(n *proto.Netmap) { n.Outage.Grace = time.Millisecond },
		"grace of more than a year":  func(n *proto.Netmap) { n.Outage.Grace = proto.MaxGrace + time.Second },
		"a barred peer":              func(n *proto.Netmap) { n.Barred = []proto.Barred{{ID: n.Peers[0].ID, Sequence: 1}} },
		"barred itself":              func(n *proto.Netmap) { n.Barred = []proto.Barred{{ID: n.Self, Sequence: 1}} },
		"barred without a number":    func(n *proto.Netmap) { n.Barred = []proto.Barred{{ID: 77}} },
		"barred twice":               func(n *proto.Netmap) { n.Barred = []proto.Barred{{ID: 77, Sequence: 1}, {ID: 77, Sequence: 1}} },
		"peer without a certificate": func(n *proto.Netmap) { n.Peers[0].Certificate = nil },
		"relay without an id":        func(n *proto.Netmap) { n.Relays = relays(proto.Relay{Name: "a", URLs: []string{"https://a"}}) },
		"relay without a name":       func(n *proto.Netmap) { n.Relays = relays(proto.Relay{ID: 1, URLs: []string{"https://a"}}) },
		"relay that is nowhere":      func(n *proto.Netmap) { n.Relays = relays(proto.Relay{ID: 1, Name: "a"}) },
		"relay by http":              func(n *proto.Netmap) { n.Relays = relays(proto.Relay{ID: 1, Name: "a", URLs: []string{"http://a"}}) },
		"relay by a fragment":        func(n *proto.Netmap) { n.Relays = relays(proto.Relay{ID: 1, Name: "a", URLs: []string{"https://a#b"}}) },
		"relay by an empty query":    func(n *proto.Netmap) { n.Relays = relays(proto.Relay{ID: 1, Name: "a", URLs: []string{"https://a?"}}) },
		"relay by a user's name":     func(n *proto.Netmap) { n.Relays = relays(proto.Relay{ID: 1, Name: "a", URLs: []string{"https://b@a"}}) },
		"relay by UDP without key": func(n *proto.Netmap) {
			n.Relays = relays(proto.Relay{ID: 1, Name: "a", UDPPort: 3478, URLs: []string{"https://a"}})
		},
		"relay by a group address": func(n *proto.Netmap) {
			n.Relays = relays(proto.Relay{ID: 1, Name: "a", UDP: []netip.Addr{netip.MustParseAddr("224.0.0.1")}})
		},
		"relay twice": func(n *proto.Netmap) {
			r := proto.Relay{ID: 1, Name: "a", URLs: []string{"https://a"}}
			n.Relays = relays(r, r)
		},
	}
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			nm := small()
			if err := nm.Validate(); err != nil {
				t.Fatal(err)
			}
			damage(nm)
			if err := nm.Validate(); !errors.Is(err, proto.ErrInvalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func relays(r ...proto.Relay) []proto.Relay { return r }

func endpoints(n int) []proto.Endpoint {
	out := make([]proto.Endpoint, n)
	for i := range out {
		out[i] = proto.Endpoint{Addr: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.1:%d", i+1)), Kind: proto.EndpointObserved}
	}
	return out
}

func identity() proto.Identity {
	return proto.Identity{
		ID: prototest.Self, Name: "web-1",
		Addrs: proto.Addrs{V4: netip.MustParseAddr("100.64.0.7"), V6: netip.MustParseAddr("fd00:1:2::7")},
	}
}

func TestIdentity(t *testing.T) {
	person := proto.User{Issuer: proto.IssuerToken, Subject: "ann@example.com", Name: "ann@example.com"}
	good := map[string]func(i *proto.Identity){
		"nobody":    func(*proto.Identity) {},
		"a person":  func(i *proto.Identity) { i.User = person },
		"two roles": func(i *proto.Identity) { i.Tags = []string{"tag:db", "tag:web-1_a"} },
	}
	for name, set := range good {
		i := identity()
		set(&i)
		if err := i.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string]func(i *proto.Identity){
		"no id":               func(i *proto.Identity) { i.ID = 0 },
		"no name":             func(i *proto.Identity) { i.Name = "" },
		"name of two labels":  func(i *proto.Identity) { i.Name = "a.b" },
		"name in upper case":  func(i *proto.Identity) { i.Name = "Web" },
		"name begins with -":  func(i *proto.Identity) { i.Name = "-web" },
		"name too long":       func(i *proto.Identity) { i.Name = strings.Repeat("a", 64) },
		"families exchanged":  func(i *proto.Identity) { i.Addrs.V4, i.Addrs.V6 = i.Addrs.V6, i.Addrs.V4 },
		"no IPv6":             func(i *proto.Identity) { i.Addrs.V6 = netip.Addr{} },
		"mapped IPv6":         func(i *proto.Identity) { i.Addrs.V6 = netip.MustParseAddr("::ffff:1.2.3.4") },
		"tags not sorted":     func(i *proto.Identity) { i.Tags = []string{"tag:b", "tag:a"} },
		"tag twice":           func(i *proto.Identity) { i.Tags = []string{"tag:a", "tag:a"} },
		"tag without tag":     func(i *proto.Identity) { i.Tags = []string{"a"} },
		"tag of a digit":      func(i *proto.Identity) { i.Tags = []string{"tag:1"} },
		"tag with a space":    func(i *proto.Identity) { i.Tags = []string{"tag:a b"} },
		"user and tags":       func(i *proto.Identity) { i.User, i.Tags = person, []string{"tag:a"} },
		"user without issuer": func(i *proto.Identity) { i.User = person; i.User.Issuer = "" },
		"user of a name only": func(i *proto.Identity) { i.User.Name = "ann" },
		"user not printable":  func(i *proto.Identity) { i.User = person; i.User.Name = "ann\n" },
		"user not UTF-8":      func(i *proto.Identity) { i.User = person; i.User.Name = "\xff" },
	}
	for name, set := range bad {
		i := identity()
		set(&i)
		if err := i.Validate(); !errors.Is(err, proto.ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestTextForms(t *testing.T) {
	id := proto.NodeID(0x0123456789abcdef)
	got, err := proto.ParseNodeID(id.String())
	if err != nil || got != id {
		t.Errorf("node id %s: got %v, %v", id, got, err)
	}
	for _, s := range []string{"", "n", "n0000000000000", id.String() + "0", strings.ToUpper(id.String()), id.String()[1:], "nvvvvvvvvvvvvv"} {
		if got, err := proto.ParseNodeID(s); err == nil {
			t.Errorf("node id %q: got %v", s, got)
		}
	}
	ver := proto.Version{Epoch: 3, N: 1 << 63}
	if got, err := proto.ParseVersion(ver.String()); err != nil || got != ver {
		t.Errorf("version %s: got %v, %v", ver, got, err)
	}
	for _, s := range []string{"", "1", "1.", ".1", "01.1", "1.+1", "1.1.1", "-1.1"} {
		if got, err := proto.ParseVersion(s); err == nil {
			t.Errorf("version %q: got %v", s, got)
		}
	}
}
