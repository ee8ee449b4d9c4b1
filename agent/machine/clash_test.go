package machine

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// clash is a roster of peers whose certificates name the same few addresses and keys.
type clash struct {
	*roster
	rt   *rapid.T
	now  time.Time
	self *cert.Node
}

// check compares who is in use with what the netmap and the clock alone allow: no two have an address or a key in common, and
// whoever is left out in spite of a good certificate has one in common with somebody in use, or with this node.
func (c *clash) check() {
	addrs, keys := map[netip.Addr]proto.NodeID{}, map[key.NodePublic]proto.NodeID{}
	for id, p := range c.peers {
		if p.live == nil {
			continue
		}
		for _, a := range p.live.node.Addrs.Slice() {
			if who, taken := addrs[a]; taken || c.self.Addrs.Has(a) {
				c.rt.Fatalf("at %v: %v is in use by %v and %v", c.now, a, id, who)
			}
			addrs[a] = id
		}
		for _, k := range p.live.keys {
			if who, taken := keys[k]; taken {
				c.rt.Fatalf("at %v: %v is in use by %v and %v", c.now, k, id, who)
			}
			keys[k] = id
		}
	}
	if !maps.Equal(addrs, c.addrs) || !maps.Equal(keys, c.keys) {
		c.rt.Fatalf("at %v: in use are %v and %v, noted are %v and %v", c.now, addrs, keys, c.addrs, c.keys)
	}
	for id, p := range c.peers {
		good := p.node != nil && !c.now.Before(p.node.NotBefore.Add(-cert.Skew)) && c.now.Before(p.node.NotAfter.Add(cert.Skew))
		if !good || p.live != nil {
			if p.live != nil && !good {
				c.rt.Fatalf("at %v: %v is in use without a certificate", c.now, id)
			}
			continue
		}
		own := []key.NodePublic{p.node.Keys[0].Public}
		if p.former.of != nil {
			own = append(own, p.former.of.Keys[0].Public) // which was to drain, when the peer was last judged
		}
		for _, k := range p.former.retired {
			own = append(own, k.Public)
		}
		clashes := slices.ContainsFunc(own, func(k key.NodePublic) bool { _, taken := keys[k]; return taken }) ||
			slices.ContainsFunc(p.node.Addrs.Slice(), func(a netip.Addr) bool { _, taken := addrs[a]; return taken || c.self.Addrs.Has(a) })
		if !clashes {
			c.rt.Fatalf("at %v: %v is left out: %s", c.now, id, p.why)
		}
	}
}

// TestOnlyPeersThatClashAreLeftOut checks that after any change all peers with good certificates are in use, but those that
// would share an address or a key with another.
func TestOnlyPeersThatClashAreLeftOut(t *testing.T) {
	pool := []key.NodePrivate{nodeKey(t), nodeKey(t), nodeKey(t), nodeKey(t)}
	rapid.Check(t, func(rt *rapid.T) {
		mesh := identitytest.New(noon.Add(-24 * hour))
		self := mesh.Self(mesh.Machine(1, "self"), 1, noon, 24*hour)
		c := &clash{roster: newRoster(nil), rt: rt, now: noon, self: self.Node}
		if err := c.trust(self, nil); err != nil {
			rt.Fatal(err)
		}
		var all []*identitytest.Machine
		for n := range uint16(5) {
			all = append(all, mesh.Machine(2+n, string(rune('a'+n))))
		}
		sequence := uint64(0)
		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) {
				c.settle(c.now, nil)
				c.check()
			},
			"time passes": func(*rapid.T) {
				c.now = c.now.Add(time.Duration(rapid.IntRange(1, 40*60).Draw(rt, "seconds")) * time.Second)
			},
			"certificates": func(*rapid.T) {
				var claims []*proto.Peer
				for _, m := range all {
					if !rapid.Bool().Draw(rt, "in") {
						continue
					}
					sequence++
					m.Number, m.Node = rapid.Uint16Range(1, 5).Draw(rt, "number"), rapid.SampledFrom(pool).Draw(rt, "key")
					from := c.now.Add(time.Duration(rapid.IntRange(-10, 10).Draw(rt, "from")) * time.Minute).Truncate(time.Second)
					claims = append(claims, &proto.Peer{ID: m.ID, Certificate: mesh.Issue(m, sequence, from, hour/2)})
				}
				c.set(claims)
			},
			"somebody goes": func(*rapid.T) { c.remove(rapid.SampledFrom(all).Draw(rt, "peer").ID) },
		})
	})
}
