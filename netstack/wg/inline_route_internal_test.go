package wg

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// twoRouters returns two engines with a session between them, each of which has a network behind it.
func twoRouters(t testing.TB) (a, b *rig) {
	t.Helper()
	a, b = twoRigs(t)
	a.peer(t, 2, b.key.Public(), "10.2.0.0/16")
	b.peer(t, 1, a.key.Public(), "10.1.0.0/16")
	return a, b
}

// fillRouted fills the batch with packets from one network to the other, each of a different flow.
func (x *rig) fillRouted(count, size int) {
	x.fill(count, size, 1, 2)
	for i := range count {
		b := x.s.bufs[i][noise.HeaderSize:]
		copy(b[12:], []byte{10, 1, 0, byte(i)})
		copy(b[16:], []byte{10, 2, 0, byte(i)})
	}
}

func TestRoutedPathDoesNotAllocate(t *testing.T) {
	a, b := twoRouters(t)
	defer a.close(t)
	defer b.close(t)
	b.wrote = 0
	const runs = 50
	n := testing.AllocsPerRun(runs, func() {
		a.fillRouted(stubBatch, 64)
		a.e.outbound(a.s, stubBatch)
		a.carry(b)
	})
	if n != 0 {
		t.Errorf("%g allocations for a batch", n)
	}
	if want := (runs + 1) * stubBatch; b.wrote != want {
		t.Errorf("%d packets came, want %d", b.wrote, want)
	}
}

func BenchmarkRoutedPath(b *testing.B) {
	x, y := twoRouters(b)
	defer x.close(b)
	defer y.close(b)
	b.ReportAllocs()
	for b.Loop() {
		x.fillRouted(stubBatch, 64)
		x.e.outbound(x.s, stubBatch)
		x.carry(y)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/stubBatch, "ns/packet")
}

// TestNoRouteIsForMappedAddresses checks that a peer with a default route cannot send as another node by using an IPv4-mapped
// IPv6 address.
func TestNoRouteIsForMappedAddresses(t *testing.T) {
	a, b := twoRigs(t)
	defer a.close(t)
	defer b.close(t)
	a.peer(t, 2, b.key.Public(), "0.0.0.0/0", "::/0")
	b.peer(t, 1, a.key.Public(), "0.0.0.0/0", "::/0")
	for src, want := range map[string]int{
		"2001:db8::1": 1, "::ffff:100.64.0.3": 0, "::ffff:100.64.0.1": 0, "::ffff:10.0.0.1": 0,
	} {
		b.wrote = 0
		pkt := a.s.bufs[0][noise.HeaderSize:]
		clear(pkt[:100])
		pkt[0] = 0x60
		binary.BigEndian.PutUint16(pkt[4:], 60)
		copy(pkt[8:], netip.MustParseAddr(src).AsSlice())
		copy(pkt[24:], netip.MustParseAddr("2001:db8::2").AsSlice())
		a.s.sizes[0] = 100
		a.e.outbound(a.s, 1)
		a.carry(b)
		if b.wrote != want {
			t.Errorf("%d packets from %s came, want %d", b.wrote, src, want)
		}
	}
}

// TestOwnAddressBeforeRouteOfIt checks that even a route of the same length does not take over a node's own address.
func TestOwnAddressBeforeRouteOfIt(t *testing.T) {
	a, b := twoRigs(t)
	defer a.close(t)
	defer b.close(t)
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.peer(t, 3, k.Public())
	b.peer(t, 1, a.key.Public(), addrs(3).V4.String()+"/32")
	b.wrote = 0
	a.fill(1, 100, 3, 2)
	a.e.outbound(a.s, 1)
	a.carry(b)
	if b.wrote != 0 {
		t.Error("a packet with another node's source came")
	}
	b.e.mu.RLock()
	defer b.e.mu.RUnlock()
	if n := b.e.behind(addrs(3).V4); n == nil || n.id != 3 {
		t.Errorf("another node's address leads to %+v", n)
	}
}

func TestUAPITextOfRoutes(t *testing.T) {
	a, b := twoRouters(t)
	defer a.close(t)
	defer b.close(t)
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	check := func(owner int) {
		t.Helper()
		var text bytes.Buffer
		if err := a.e.WriteUAPI(&text); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("allowed_ip=%s/32\nallowed_ip=10.2.0.0/16\n", addrs(owner).V4)
		if s := text.String(); !strings.Contains(s, want) || strings.Count(s, "10.2.0.0/16") != 1 {
			t.Errorf("the route is not that of node %d:\n%s", owner, s)
		}
	}
	check(2)
	a.peer(t, 3, k.Public(), "10.2.0.0/16")
	check(3)
}

// TestRoutesOfManyPeers changes the routes of peers at random, and compares lookups with a linear search.
func TestRoutesOfManyPeers(t *testing.T) {
	const peers = 4
	keys := make([]key.NodePublic, peers+1)
	for i := range keys {
		k, err := key.NewNode(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k.Public()
	}
	pool := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/9"),
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.1.1/32"), netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd10::/16"), netip.MustParsePrefix("fd10::1/128"),
	}
	var tried []netip.Addr
	for _, s := range []string{"1.1.1.1", "10.200.0.1", "10.2.0.1", "10.1.0.1", "10.1.1.1", "100.64.0.1", "100.64.9.9", "2001:db8::1", "fd10::2", "fd10::1"} {
		tried = append(tried, netip.MustParseAddr(s))
	}
	rapid.Check(t, func(rt *rapid.T) {
		x := newRig(t, 99)
		defer x.close(t)
		owners := map[netip.Prefix]proto.NodeID{}
		had := map[proto.NodeID][]netip.Prefix{}
		known := map[proto.NodeID]bool{}
		rt.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				n := rapid.IntRange(1, peers).Draw(t, "peer")
				id := proto.NodeID(n)
				list := rapid.SliceOfNDistinct(rapid.SampledFrom(pool), 0, len(pool), rapid.ID[netip.Prefix]).Draw(t, "routes")
				cfg := PeerConfig{ID: id, Keys: []key.NodePublic{keys[n]}, Addrs: addrs(n), Routes: list}
				if err := x.e.SetPeer(cfg); err != nil {
					t.Fatal(err)
				}
				known[id] = true
				if slices.Equal(had[id], list) {
					return
				}
				release(owners, id)
				for _, p := range list {
					owners[p] = id
				}
				had[id] = list
			},
			"remove": func(t *rapid.T) {
				id := proto.NodeID(rapid.IntRange(1, peers).Draw(t, "peer"))
				if err := x.e.RemovePeer(id); err != nil {
					t.Fatal(err)
				}
				release(owners, id)
				delete(had, id)
				delete(known, id)
			},
			"": func(t *rapid.T) {
				for _, a := range tried {
					var got proto.NodeID
					if n := x.e.behind(a); n != nil {
						got = n.id
					}
					if want := search(owners, known, a); got != want {
						t.Fatalf("%s leads to %d, want %d", a, got, want)
					}
				}
				if len(owners) == 0 && x.e.routes != nil {
					t.Fatal("a table without routes stays")
				}
			},
		})
	})
}

func release(owners map[netip.Prefix]proto.NodeID, id proto.NodeID) {
	for p, owner := range owners {
		if owner == id {
			delete(owners, p)
		}
	}
}

// search returns the expected result of a lookup.
func search(owners map[netip.Prefix]proto.NodeID, known map[proto.NodeID]bool, a netip.Addr) (found proto.NodeID) {
	for id := range known {
		if addrs(int(id)).V4 == a {
			return id
		}
	}
	longest := -1
	for p, id := range owners {
		if p.Contains(a) && p.Bits() > longest {
			longest, found = p.Bits(), id
		}
	}
	return found
}
