package osnet

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestNextHopsBelongToTheUnderlay checks that Watch notices when one of a default route's several next hops changes.
func TestNextHopsBelongToTheUnderlay(t *testing.T) {
	h, _ := oneHost(t)
	n, _ := inNetwork(t, h)
	link, err := h.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	gateway, _, err := n.Gateway()
	if err != nil {
		t.Fatal(err)
	}
	through := func(second netip.Addr) string {
		t.Helper()
		hop := func(gw netip.Addr) *netlink.NexthopInfo {
			return &netlink.NexthopInfo{LinkIndex: link.Attrs().Index, Gw: gw.AsSlice()}
		}
		err := h.Netlink().RouteReplace(&netlink.Route{
			Dst: netOf(everything4), MultiPath: []*netlink.NexthopInfo{hop(gateway), hop(second)},
		})
		if err != nil {
			t.Fatal(err)
		}
		return n.underlay()
	}
	one, other := gateway.Next().Next(), gateway.Next().Next().Next()
	before := through(one)
	if after := through(other); after == before {
		t.Errorf("the underlay is the same through %s and through %s:\n%s", one, other, after)
	}
}
