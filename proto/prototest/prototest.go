// Package prototest generates random valid values of package proto, for property tests. Only tests import it.
package prototest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Mesh returns the mesh that all values belong to.
func Mesh() proto.Mesh {
	return proto.Mesh{
		ID:     "m00000000000000000000000000",
		Domain: "mesh.internal",
		V4:     netip.MustParsePrefix("100.64.0.0/16"),
		V6:     netip.MustParsePrefix("fd00:1:2::/48"),
	}
}

// Self is the node whose netmaps are generated.
const Self proto.NodeID = 7

// Netmap generates a valid netmap of Self. It draws from few ids and names, so that any two netmaps have much in common.
func Netmap(version proto.Version) *rapid.Generator[*proto.Netmap] {
	return rapid.Custom(func(t *rapid.T) *proto.Netmap {
		nm := &proto.Netmap{
			Version:     version,
			Mesh:        Mesh(),
			Self:        Self,
			Authorities: rapid.SliceOfN(Bytes(1, 8), 0, 3).Draw(t, "authorities"),
			Requires:    keys(rapid.MapOfN(rapid.SampledFrom([]string{"a/1", "b/1", proto.FeatureRules}), rapid.Just(0), 0, 3).Draw(t, "requires")),
			Outage:      proto.Outage{Grace: time.Duration(rapid.IntRange(0, 3).Draw(t, "grace")) * time.Hour},
		}
		nm.Outage.Posture = min(nm.Outage.Grace, time.Duration(rapid.IntRange(0, 90).Draw(t, "posture"))*time.Minute)
		for _, id := range IDs(40).Draw(t, "peers") {
			if id != Self {
				nm.Peers = append(nm.Peers, &proto.Peer{
					ID: id, Certificate: Bytes(1, 4).Draw(t, "certificate"), Reach: Reach().Draw(t, "reach"),
					Routes: routes().Draw(t, "routes"),
				})
			}
		}
		for _, id := range IDs(8).Draw(t, "barred") {
			if id != Self && !slices.ContainsFunc(nm.Peers, func(p *proto.Peer) bool { return p.ID == id }) {
				nm.Barred = append(nm.Barred, proto.Barred{ID: id, Sequence: rapid.Uint64Range(1, 3).Draw(t, "sequence")})
			}
		}
		for _, name := range keys(rapid.MapOfN(rapid.IntRange(0, 8), rapid.Just(0), 0, 8).Draw(t, "sets")) {
			nm.Sets = append(nm.Sets, proto.Set{Name: fmt.Sprintf("group:%d", name), Members: IDs(30).Draw(t, "members"), Conditional: rapid.Bool().Draw(t, "conditional")})
		}
		for _, n := range keys(rapid.MapOfN(rapid.IntRange(0, 9), rapid.Just(0), 0, 8).Draw(t, "rules")) {
			nm.Rules = append(nm.Rules, rule(t, n, nm.Sets))
		}
		for _, n := range keys(rapid.MapOfN(rapid.IntRange(0, 9), rapid.Just(0), 0, 2).Draw(t, "withheld")) {
			w := proto.Withheld{Rule: rule(t, n, nil), Reason: rapid.SampledFrom([]string{"node:os is not set", "too old"}).Draw(t, "reason")}
			nm.Withheld = append(nm.Withheld, w)
		}
		for _, n := range keys(rapid.MapOfN(rapid.IntRange(1, 5), rapid.Just(0), 0, 3).Draw(t, "relays")) {
			nm.Relays = append(nm.Relays, relay(t, n))
		}
		return nm
	})
}

func relay(t *rapid.T, n int) proto.Relay {
	r := proto.Relay{
		ID: proto.NodeID(n), Name: fmt.Sprintf("relay-%d", n), Region: rapid.SampledFrom([]string{"", "eu"}).Draw(t, "region"),
		UDPPort: rapid.SampledFrom([]uint16{0, 3478}).Draw(t, "port"), URLs: []string{"https://relay.example.com:8443"},
	}
	copy(r.Key[:], Bytes(1, 4).Draw(t, "key"))
	r.Key[0] |= 1
	if rapid.Bool().Draw(t, "address") {
		r.UDP = []netip.Addr{Addr().Draw(t, "address")}
	}
	return r
}

func rule(t *rapid.T, n int, sets []proto.Set) proto.Rule {
	r := proto.Rule{
		Key:       fmt.Sprintf("grants[%d]/in", n),
		Origin:    proto.Origin{Path: fmt.Sprintf("grants[%d]", n), Line: rapid.IntRange(1, 3).Draw(t, "line")},
		Direction: rapid.SampledFrom([]proto.Direction{proto.In, proto.Out}).Draw(t, "direction"),
		Local:     rapid.SliceOfN(Prefix(), 0, 3).Draw(t, "local"),
		Peers:     proto.Selector{Prefixes: rapid.SliceOfN(Prefix(), 0, 3).Draw(t, "prefixes")},
	}
	for _, s := range sets {
		if rapid.Bool().Draw(t, "refer") {
			r.Peers.Sets = append(r.Peers.Sets, s.Name)
		}
	}
	for range rapid.IntRange(0, 3).Draw(t, "services") {
		s := proto.Service{Proto: rapid.SampledFrom([]uint8{proto.ProtoTCP, proto.ProtoUDP, proto.ProtoICMP}).Draw(t, "protocol"), Last: 65535}
		if proto.HasPorts(s.Proto) {
			s.First = rapid.Uint16().Draw(t, "first")
			s.Last = rapid.Uint16Range(s.First, 65535).Draw(t, "last")
		}
		r.Services = append(r.Services, s)
	}
	r.Action = rapid.SampledFrom([]proto.Action{proto.Allow, proto.Deny, proto.Monitor}).Draw(t, "action")
	if r.Action == proto.Monitor {
		r.Until = time.Unix(rapid.Int64Range(1, 1<<33).Draw(t, "until"), 0).UTC()
	}
	r.Conditional = r.Action != proto.Deny && rapid.Bool().Draw(t, "conditional")
	if r.Action == proto.Allow && r.Direction == proto.In && rapid.Bool().Draw(t, "app") {
		r.App = []proto.Capability{{Name: "example.com/cap", Values: []string{`{"a": 1}`}}}
	}
	return r
}

func routes() *rapid.Generator[[]netip.Prefix] {
	return rapid.Map(rapid.SliceOfN(Prefix(), 0, 2), func(ps []netip.Prefix) []netip.Prefix {
		ps = slices.DeleteFunc(ps, func(p netip.Prefix) bool {
			return p.Bits() > 0 && (p.Overlaps(Mesh().V4) || p.Overlaps(Mesh().V6))
		})
		slices.SortFunc(ps, proto.ComparePrefix)
		if ps = slices.Compact(ps); len(ps) == 0 {
			return nil
		}
		return ps
	})
}

// IDs generates sorted node ids from 1 to most.
func IDs(most int) *rapid.Generator[[]proto.NodeID] {
	return rapid.Custom(func(t *rapid.T) []proto.NodeID {
		var out []proto.NodeID
		for _, n := range keys(rapid.MapOfN(rapid.IntRange(1, most), rapid.Just(0), 0, most/2).Draw(t, "ids")) {
			out = append(out, proto.NodeID(n))
		}
		return out
	})
}

// Bytes generates least to most bytes.
func Bytes(least, most int) *rapid.Generator[[]byte] {
	return rapid.SliceOfN(rapid.Byte(), least, most)
}

// Addr generates an address outside of Mesh.
func Addr() *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		b := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		binary.BigEndian.PutUint16(b[14:], rapid.Uint16().Draw(t, "address"))
		if rapid.Bool().Draw(t, "IPv4") {
			return netip.AddrFrom4([4]byte{192, 0, b[14], b[15]})
		}
		return netip.AddrFrom16(b)
	})
}

// Prefix generates a masked prefix.
func Prefix() *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := Addr().Draw(t, "address")
		return netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, "bits")).Masked()
	})
}

// Endpoints generates the endpoints of one node.
func Endpoints() *rapid.Generator[[]proto.Endpoint] {
	one := rapid.Custom(func(t *rapid.T) proto.Endpoint {
		return proto.Endpoint{
			Addr: netip.AddrPortFrom(Addr().Draw(t, "address"), rapid.Uint16Range(1, 65535).Draw(t, "port")),
			Kind: rapid.SampledFrom([]proto.EndpointKind{proto.EndpointInterface, proto.EndpointObserved}).Draw(t, "kind"),
		}
	})
	return rapid.SliceOfNDistinct(one, 0, 4, func(e proto.Endpoint) netip.AddrPort { return e.Addr })
}

func keys[K interface{ ~int | ~string }](m map[K]int) []K { return slices.Sorted(maps.Keys(m)) }

// Reach generates how a node can be reached.
func Reach() *rapid.Generator[proto.Reach] {
	return rapid.Custom(func(t *rapid.T) proto.Reach {
		r := proto.Reach{Endpoints: Endpoints().Draw(t, "endpoints")}
		if rapid.Bool().Draw(t, "paths") {
			r.PathKey = &proto.PathKey{Boot: rapid.Uint64().Draw(t, "boot"), Signature: Bytes(1, proto.MaxSignature).Draw(t, "signature")}
			copy(r.PathKey.Public[:], Bytes(proto.PathKeySize, proto.PathKeySize).Draw(t, "path key"))
			r.PathKey.Public[0] |= 1
			r.HomeRelay = proto.NodeID(rapid.Uint64().Draw(t, "home relay"))
		}
		return r
	})
}
