package pilot_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// kind is a way in which a node may be attached to the Internet.
type kind struct {
	name string
	cfg  *sim.NATConfig // nil: it has an address of its own
}

// kinds are those of RFC 4787: how a mapping is made, and what may come in by it.
var kinds = []kind{
	{"open", nil},
	{"full cone", &sim.NATConfig{}},
	{"address restricted", &sim.NATConfig{Filtering: sim.AddressDependent}},
	{"port restricted", &sim.NATConfig{Filtering: sim.AddressAndPortDependent}},
	{"symmetric", &sim.NATConfig{Mapping: sim.AddressAndPortDependent, Filtering: sim.AddressAndPortDependent, Ports: sim.Random}},
	{"UDP blocked", &sim.NATConfig{BlockUDP: true}},
}

// permitted says which two kinds can meet without a relay over IPv4, by the order of kinds. A mapping that is the same
// whoever is sent to is told to the peer, and pings from both sides open the filters; what is different for each peer is
// learned from a ping that comes through, which only a filter lets pass that does not mind the port. Otherwise the port is
// guessed, which takes some seconds.
//
//	                    open  full  address  port  symmetric  blocked
//	open                yes   yes   yes      yes   yes        no
//	full cone                 yes   yes      yes   yes        no
//	address restricted              yes      yes   yes        no
//	port restricted                          yes   guessed    no
//	symmetric                                      no         no
var permitted = [6][6]bool{
	{true, true, true, true, true, false},
	{true, true, true, true, true, false},
	{true, true, true, true, true, false},
	{true, true, true, true, true, false},
	{true, true, true, true, false, false},
	{false, false, false, false, false, false},
}

// guessed says whether two kinds meet by chance only.
func guessed(x, y kind) bool {
	return min(x.name, y.name) == "port restricted" && max(x.name, y.name) == "symmetric"
}

// attach puts a host behind a NAT of the kind.
func (w *world) attach(name string, k kind, number int, dual bool) *sim.Host {
	inside, outside := fmt.Sprintf("10.%d.0.2", number), fmt.Sprintf("198.51.100.%d", number)
	addrs := []string{inside}
	if k.cfg == nil {
		addrs[0] = outside
	}
	if dual {
		addrs = append(addrs, fmt.Sprintf("2001:db8:%d::2", number))
	}
	if k.cfg == nil {
		h := w.net.Host(name, addr(addrs[0]))
		if dual {
			h.SetAddrs(addr(addrs[0]), addr(addrs[1]))
		}
		return h
	}
	h := w.net.NAT("nat of "+name, *k.cfg, addr(outside)).Host(name, addr(addrs[0]))
	if dual {
		h.SetAddrs(addr(addrs[0]), addr(addrs[1]))
	}
	return h
}

// Every pair of kinds is connected from the first packet on, and without a relay within a second wherever the NATs permit it.
func TestEveryPairOfNATs(t *testing.T) {
	for i, x := range kinds {
		for j, y := range kinds[i:] {
			for _, dual := range []bool{false, true} {
				want := permitted[i][i+j] || (dual && x.name != "UDP blocked" && y.name != "UDP blocked")
				t.Run(fmt.Sprintf("%s/%s/dual=%t", x.name, y.name, dual), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { meet(t, x, y, dual, want) })
				})
			}
		}
	}
}

func meet(t *testing.T, x, y kind, dual, direct bool) {
	w := newWorld(t, 2)
	defer w.close()
	a, b := w.addNode(w.attach("a", x, 1, dual), 1), w.addNode(w.attach("b", y, 2, dual), 2)
	w.meet()
	if err := a.Ping(b.Addrs.V4); err != nil {
		t.Fatalf("the first packet: %v; %+v, %+v", err, a.view(b), b.view(a))
	}
	gap, lost := a.talk(b, 1200*time.Millisecond)
	if !dual && guessed(x, y) { // one try in fifty misses, and is repeated a minute later, then two, and so on
		for begun := time.Now(); time.Since(begun) < 10*time.Minute && !(a.view(b).Way.Direct() && b.view(a).Way.Direct()); {
			g, l := a.talk(b, time.Second)
			gap, lost = max(gap, g), lost+l
		}
		if n := a.Bind.Extras() + b.Bind.Extras(); n > 1 {
			t.Errorf("%d sockets are left of a punch", n)
		}
	}
	for _, v := range [][2]*node{{a, b}, {b, a}} {
		if got := v[0].view(v[1]); got.Way.Direct() != direct || got.Doubt {
			t.Errorf("from node %d: %+v, want direct: %t", v[0].ID, got, direct)
		}
	}
	if lost > 0 || gap > 300*time.Millisecond {
		t.Errorf("%d packets lost, %s without one", lost, gap)
	}
}
