package machine

import (
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto"
)

// routed is a world in which a rule covers the routers' networks. Between any two effects engine and filter must agree on
// the node behind each address.
type routed struct {
	*world
	routers []*identitytest.Machine
	serves  map[proto.NodeID][]netip.Prefix
	version uint64
}

var (
	office = netip.MustParsePrefix("10.33.0.0/16")
	lab    = netip.MustParsePrefix("10.33.7.0/24")
	inside = map[netip.Prefix]netip.Addr{office: netip.MustParseAddr("10.33.1.1"), lab: netip.MustParseAddr("10.33.7.1")}
)

func newRouted(t fataler) *routed {
	r := &routed{world: enrolled(t), serves: map[proto.NodeID][]netip.Prefix{}}
	r.disk.Self = r.mesh.Self(r.self, 1, noon, 24*hour)
	r.disk.Wanted.Routing.Accept = true
	for n := uint16(2); n <= 4; n++ {
		r.routers = append(r.routers, r.mesh.Machine(n, string(rune('a'+n))))
	}
	r.boot()
	r.step(Connected{})
	return r
}

// publish sends a netmap with the given routers, and checks before each effect.
func (r *routed) publish(there ...*identitytest.Machine) {
	r.version++
	var peers []proto.Peer
	for _, m := range there {
		p := r.peer(m, 1, 24*hour)
		p.Routes = r.serves[m.ID]
		peers = append(peers, p)
	}
	nm := r.netmap(r.version, hour, peers...)
	nm.Rules = append(nm.Rules, proto.Rule{
		Key: "routes", Origin: proto.Origin{Path: "grants[0]", Line: 1}, Direction: proto.Out,
		Peers:    proto.Selector{Prefixes: []netip.Prefix{office}},
		Local:    []netip.Prefix{netip.PrefixFrom(r.self.Identity().Addrs.V4, 32)},
		Services: []proto.Service{{Proto: proto.ProtoTCP, Last: 65535}},
	})
	r.refuse = func(Effect) error { r.same(); return nil } // before each effect
	r.step(Snapshot{nm})
	r.same()
}

// same checks that filter and engine agree on the node behind each address.
func (r *routed) same() {
	r.t.Helper()
	for _, addr := range inside {
		owner, longest := proto.NodeID(0), -1
		for p, id := range r.routeOwner {
			if p.Contains(addr) && p.Bits() > longest {
				owner, longest = id, p.Bits()
			}
		}
		if means, ok := r.program.Behind(addr); ok && means != owner {
			r.t.Fatalf("%v is behind %v for the filter, behind %v for the engine", addr, means, owner)
		}
	}
}

func (r *routed) wantOwner(t *testing.T, prefix netip.Prefix, want proto.NodeID) {
	t.Helper()
	if got, _ := r.program.Behind(inside[prefix]); got != want {
		t.Errorf("%v is behind %v, want %v", prefix, got, want)
	}
	e := r.program.Explain(proto.Out, r.self.Identity().Addrs.V4, inside[prefix], proto.ProtoTCP, 1)
	if e.Pass != (want != 0) || want == 0 && e.Reason != filter.UnknownPeer {
		t.Errorf("to %v: %+v", prefix, e)
	}
}

func TestRoutesHaveOneOwner(t *testing.T) {
	r := newRouted(t)
	a, b, c := r.routers[0], r.routers[1], r.routers[2]
	r.serves[a.ID], r.serves[b.ID] = []netip.Prefix{office}, []netip.Prefix{office, lab}
	r.publish(a, b, c)
	r.wantOwner(t, office, a.ID)
	r.wantOwner(t, lab, b.ID)
	r.serves[b.ID] = []netip.Prefix{office}
	r.publish(a, b, c)
	r.wantOwner(t, lab, a.ID) // by the wider route
	r.publish(b, c)
	r.wantOwner(t, office, b.ID)
	r.serves[b.ID] = nil
	r.publish(b, c)
	r.wantOwner(t, office, 0)
	r.serves[c.ID] = []netip.Prefix{lab}
	r.publish(a, b, c)
	r.wantOwner(t, office, a.ID)
	r.wantOwner(t, lab, c.ID)

	// A router whose certificate has expired serves nothing; the next one does.
	r.serves[b.ID] = []netip.Prefix{office}
	r.publish(a, b, c)
	r.step(PathDown{Reason: "test"})
	r.wait(time.Minute)
	r.wantOwner(t, office, a.ID)
	r.wantOwner(t, lab, c.ID)
}

// TestRoutesNeverDisagree moves routes between routers.
func TestRoutesNeverDisagree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRouted(t)
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			var there []*identitytest.Machine
			for _, m := range r.routers {
				if rapid.IntRange(0, 3).Draw(t, "there") > 0 {
					there = append(there, m)
				}
				r.serves[m.ID] = nil
				for _, p := range []netip.Prefix{office, lab} {
					if rapid.Bool().Draw(t, "serves") {
						r.serves[m.ID] = append(r.serves[m.ID], p)
					}
				}
			}
			r.publish(there...)
		}
	})
}
