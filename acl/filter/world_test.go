package filter

import (
	"fmt"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/proto"
)

// testMesh, testNode and testRuleset make a small world: this node is 100.64.0.1, peer i (from 1) is 100.64.x.y with
// x.y = 1+i, all of them in the set "all".
var testMesh = proto.Mesh{
	ID: "m00000000000000000000000000", Domain: "mesh.internal",
	V4: netip.MustParsePrefix("100.64.0.0/16"), V6: netip.MustParsePrefix("fd00:1234:5678::/48"),
}

func testNode(n int) proto.Identity {
	id := proto.Identity{ID: proto.NodeID(n), Name: fmt.Sprintf("node%d", n), Tags: []string{fmt.Sprintf("tag:t%d", n)}}
	id.Addrs.V4 = netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)})
	v6 := testMesh.V6.Addr().As16()
	v6[14], v6[15] = byte(n>>8), byte(n)
	id.Addrs.V6 = netip.AddrFrom16(v6)
	return id
}

func testRuleset(peers int) Ruleset {
	r := Ruleset{Version: proto.Version{Epoch: 1, N: 1}, Mesh: testMesh, Self: testNode(1)}
	all := proto.Set{Name: "all"}
	for i := range peers {
		r.Peers = append(r.Peers, testNode(2+i))
		all.Members = append(all.Members, proto.NodeID(2+i))
	}
	r.Sets = []proto.Set{all}
	return r
}

func ownPrefixes(id proto.Identity) (out []netip.Prefix) {
	for _, a := range id.Addrs.Slice() {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}
