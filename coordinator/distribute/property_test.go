package distribute

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
)

var policies = []string{
	everything,
	`{}`,
	`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["tag:a"], "dst": ["tag:b"], "ip": ["tcp:80"]}]}`,
	`{"groups": {"group:g": ["ann@example.com"]}, "tagOwners": {"tag:a": [], "tag:b": []},
		"grants": [{"src": ["group:g"], "dst": ["tag:a"], "ip": ["tcp:22"]}, {"src": ["autogroup:member"], "dst": ["autogroup:self"], "ip": ["*"]}]}`,
	`{"groups": {"group:g": ["ann@example.com", "bob@example.com"]}, "tagOwners": {"tag:a": [], "tag:b": []},
		"acls": [{"action": "accept", "src": ["group:g", "tag:b"], "dst": ["tag:a:22", "bob@example.com:*"]}]}`,
	`{"tagOwners": {"tag:a": [], "tag:b": []}, "postures": {"posture:prod": ["custom:tier == 'prod'"], "posture:linux": ["node:os == 'linux'", "node:version NOT SET"]},
		"grants": [{"src": ["*"], "dst": ["tag:a"], "ip": ["tcp:22"], "srcPosture": ["posture:prod", "posture:linux"]}],
		"deny": [{"src": ["tag:b"], "dst": ["*"], "ip": ["*"], "srcPosture": ["posture:prod"]}]}`,
	`{"tagOwners": {"tag:a": [], "tag:b": []}, "autoApprovers": {"routes": {"10.33.0.0/16": ["tag:b"]}, "exitNode": ["tag:b"]},
		"grants": [{"src": ["autogroup:admin"], "dst": ["10.33.0.0/16"], "ip": ["*"], "via": ["tag:a"]},
			{"src": ["autogroup:member"], "dst": ["10.33.7.0/24", "autogroup:internet"], "ip": ["tcp:443"]}]}`,
	`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [{"src": ["autogroup:admin"], "dst": ["tag:a"], "ip": ["*"]}],
		"enforcement": [{"src": ["*"], "dst": ["tag:b"], "mode": "monitor", "until": "2027-01-15T09:30:00Z"}]}`,
}

// offered are routes that nodes offer and administrators approve.
var offered = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.33.0.0/16")}

// TestSessionsConverge does random things to a mesh, with clients that come, go, read and acknowledge at random. It checks
// that, after each change, the nodes whose netmaps differ are among those recomputed, and that in the end every client holds
// the netmap that its node should have, built from what it was sent.
func TestSessionsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, rapid.Uint64().Draw(t, "seed"), newHub, nil)
		defer func() {
			w.hub.sub.Close()
			w.dir.Close()
		}()
		clients := make(map[proto.NodeID]*client)
		pick := func(t *rapid.T) (proto.NodeID, bool) {
			if len(w.nodes) == 0 {
				return 0, false
			}
			return rapid.SampledFrom(w.nodes).Draw(t, "node"), true
		}
		withNode := func(f func(*rapid.T, proto.NodeID)) func(*rapid.T) {
			return func(t *rapid.T) {
				if id, ok := pick(t); ok {
					f(t, id)
				}
			}
		}
		withClient := func(f func(*rapid.T, *client)) func(*rapid.T) {
			return withNode(func(t *rapid.T, id proto.NodeID) {
				if c := clients[id]; c != nil && c.session != nil && c.ended == nil {
					f(t, c)
				}
			})
		}
		t.Repeat(map[string]func(*rapid.T){
			"enrol": func(t *rapid.T) {
				if len(w.nodes) < 12 {
					w.enrol(rapid.SampledFrom([]string{"tag:a", "tag:b", "ann@example.com", "bob@example.com"}).Draw(t, "who"))
				}
			},
			"revoke": withNode(func(t *rapid.T, id proto.NodeID) {
				if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
					_, _ = w.dir.RevokeNode(background, id, "", "test")
				}
			}),
			"delete": withNode(func(t *rapid.T, id proto.NodeID) {
				if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
					_ = w.dir.DeleteNode(background, id, "test")
				}
			}),
			"lock": withNode(func(t *rapid.T, id proto.NodeID) {
				ttl := time.Duration(rapid.IntRange(0, 30).Draw(t, "ttl")) * time.Minute
				_, _, _ = w.dir.CreateLock(background, directory.LockSpec{Kind: directory.LockNode, Subject: id.String(), TTL: ttl})
			}),
			"unlock": func(*rapid.T) {
				for l := range w.dir.Snapshot().Locks() {
					_, _, _ = w.dir.DeleteLock(background, l.ID, "test")
				}
			},
			"policy": func(t *rapid.T) { w.setPolicy(rapid.SampledFrom(policies).Draw(t, "policy")) },
			"renew":  withNode(func(_ *rapid.T, id proto.NodeID) { w.renew(id) }),
			"endpoints": withNode(func(t *rapid.T, id proto.NodeID) {
				e := proto.Endpoint{Addr: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:1", rapid.IntRange(1, 3).Draw(t, "host"))), Kind: proto.EndpointInterface}
				_ = w.dir.SetReach(background, id, proto.Reach{Endpoints: []proto.Endpoint{e}})
			}),
			"fact": withNode(func(t *rapid.T, id proto.NodeID) {
				ttl := time.Duration(rapid.IntRange(0, 90).Draw(t, "ttl")) * time.Minute
				_, _ = w.dir.SetFact(background, id, "custom:tier", rapid.SampledFrom([]string{"prod", "test"}).Draw(t, "tier"), ttl, "test")
			}),
			"report": withNode(func(t *rapid.T, id proto.NodeID) {
				routes := offered[rapid.IntRange(0, len(offered)).Draw(t, "routes"):]
				_ = w.dir.Report(background, id, directory.Reported{OS: rapid.SampledFrom([]string{"linux", "windows"}).Draw(t, "os"), Routes: routes})
			}),
			"approve": withNode(func(t *rapid.T, id proto.NodeID) {
				_, _ = w.dir.ApproveRoutes(background, id, offered[rapid.IntRange(0, len(offered)).Draw(t, "routes"):], "test")
			}),
			"roles": func(t *rapid.T) {
				_ = w.dir.SetRoles(background, "ann@example.com", rapid.SampledFrom([][]string{nil, {"admin"}, {"auditor"}}).Draw(t, "roles"), "test")
			},
			"time":   func(t *rapid.T) { w.pass(time.Duration(rapid.IntRange(1, 50).Draw(t, "minutes")) * time.Minute) },
			"expire": func(*rapid.T) { _, _ = w.dir.Expire(background) },
			"look":   func(t *rapid.T) { look(t, w) },
			"settle": func(*rapid.T) { w.hub.settle() },
			"prune":  func(*rapid.T) { w.hub.prune() },
			"attach": withNode(func(t *rapid.T, id proto.NodeID) {
				if clients[id] == nil {
					clients[id] = w.client(id)
				}
				clients[id].w.t = t
				_ = clients[id].attach()
			}),
			"detach": withClient(func(_ *rapid.T, c *client) { c.session.Close(); c.session = nil }),
			"lose":   withClient(func(_ *rapid.T, c *client) { _, _ = c.session.Next(); c.session.Close(); c.session = nil }),
			"forget": withNode(func(_ *rapid.T, id proto.NodeID) {
				if c := clients[id]; c != nil && c.session == nil {
					c.nm = nil
				}
			}),
			"read": withClient(func(t *rapid.T, c *client) { c.w.t = t; c.drain() }),
			"ack": withClient(func(_ *rapid.T, c *client) {
				if c.nm != nil {
					c.ack()
				}
			}),
		})
		look(t, w)
		w.hub.settle()
		source := w.hub.Source()
		for id, c := range clients {
			trusted := source.Snapshot.Trusted(id)
			if c.session == nil {
				continue
			}
			if !trusted {
				if c.ended == nil {
					t.Errorf("node %s is not trusted, and its stream goes on", id)
				}
				continue
			}
			if c.ended != nil {
				continue
			}
			c.w.t = t
			c.drain()
			want := Netmap(source, id, able)
			if c.nm == nil || !proto.Diff(c.nm, want).Empty() {
				t.Errorf("node %s holds %+v, should have %+v", id, c.nm, want)
				continue
			}
			c.ack()
			if slices.ContainsFunc(w.hub.Status().Laggards, func(l Laggard) bool { return l.ID == id }) {
				t.Errorf("node %s holds all and lags", id)
			}
		}
	})
}

// look makes the hub process what changed, and checks that it recomputes enough nodes.
func look(t *rapid.T, w *world) {
	c, ok := w.hub.sub.Take()
	if !ok {
		return
	}
	before := w.hub.Source()
	w.hub.apply(c)
	after := w.hub.Source()
	touched := make(map[proto.NodeID]struct{})
	all := touch(before, after, c, nil, w.clock(), touched, touched)
	if all && !c.Policy {
		t.Errorf("all nodes are looked at for a change of %v", c.Nodes)
	}
	for _, id := range w.nodes {
		old, now := Netmap(before, id, able), Netmap(after, id, able)
		if now != nil {
			if err := now.Validate(); err != nil {
				t.Errorf("the netmap of %s: %v", id, err)
			}
		}
		if old == nil || now == nil {
			continue
		}
		if _, ok := touched[id]; !ok && !all && !proto.Diff(old, now).Empty() {
			t.Errorf("the netmap of %s changed with %v and is not affected by them (policy: %v)", id, c.Nodes, c.Policy)
		}
	}
}
