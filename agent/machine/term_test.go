package machine

import (
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/identity/identitytest"
	"github.com/redoubt-mesh/redoubt/proto"
)

// conditions is a world in contact with peers 2 to 5, each of which passes to its own port: 2 unconditionally, 3 by a conditional
// rule, 4 by a conditional set, and 5 by a rule that monitors for an hour. A conditional set is also used to deny.
type conditions struct {
	*world
	peers []*identitytest.Machine
}

const posture = 15 * time.Minute

func newConditions(t *testing.T) *conditions {
	t.Helper()
	c := &conditions{world: enrolled(t)}
	c.disk.Self = c.mesh.Self(c.self, 1, noon, 24*hour)
	c.boot()
	c.step(Connected{URL: "https://c.test"})
	c.step(Snapshot{c.conditional(1)})
	return c
}

func (c *conditions) conditional(version uint64) *proto.Netmap {
	if c.peers == nil {
		for n := uint16(2); n <= 5; n++ {
			c.peers = append(c.peers, c.mesh.Machine(n, string(rune('a'+n))))
		}
	}
	var peers []proto.Peer
	for _, p := range c.peers {
		peers = append(peers, c.peer(p, 1, 24*hour))
	}
	nm := c.netmap(version, 8*hour, peers...)
	nm.Outage.Posture = posture
	nm.Rules[1].Conditional = true
	nm.Sets[2].Conditional = true
	nm.Rules[3].Action, nm.Rules[3].Until = proto.Monitor, noon.Add(hour)
	deny := nm.Rules[2]
	deny.Key, deny.Action = "node:0004/deny", proto.Deny
	deny.Services = []proto.Service{{Proto: proto.ProtoUDP, Last: 65535}}
	nm.Rules = append(nm.Rules[:3:3], deny, nm.Rules[3])
	return nm
}

func (c *conditions) wantOpen(t *testing.T, when string, want ...proto.NodeID) {
	t.Helper()
	got := c.open(c.peers...)
	if len(got) != len(want) {
		t.Fatalf("%s: %v pass, want %v", when, got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%s: %v pass, want %v", when, got, want)
		}
	}
}

func (c *conditions) wantProblem(t *testing.T, words string, want bool) {
	t.Helper()
	problems := strings.Join(c.m.View(c.now).Problems, "\n")
	if strings.Contains(problems, words) != want {
		t.Errorf("problems %q; about %q: want %v", problems, words, want)
	}
}

func TestConditionalRulesGoWithoutContact(t *testing.T) {
	c := newConditions(t)
	c.wantOpen(t, "in contact", 2, 3, 4, 5)
	c.wait(40 * time.Minute)
	c.wantOpen(t, "in contact, and not a word said", 2, 3, 4, 5)
	c.step(Heard{})
	c.step(Lost{Reason: "gone"})
	c.wait(posture - time.Second)
	c.wantOpen(t, "just before", 2, 3, 4, 5)
	c.wantProblem(t, "apply for 1s more", true)
	c.wait(time.Second)
	c.wantOpen(t, "just after", 2, 5)
	c.wantProblem(t, "are suspended since", true)
	if _, reason := c.program.Why(proto.In, c.peers[2].Identity().Addrs.V4, proto.ProtoUDP, 1); reason != filter.Forbidden {
		t.Errorf("what was denied: %v", reason)
	}
	c.wait(5 * time.Minute)
	c.wantOpen(t, "when the time to watch is over", 2)

	c.boot() // from the disk, which remembers the contact
	c.wantOpen(t, "after a restart", 2)
	c.step(Connected{URL: "https://c.test"})
	c.wantOpen(t, "in contact again", 2, 3, 4)
	c.wantProblem(t, "void", false)
}

func TestNoPostureWithoutContactAtAll(t *testing.T) {
	c := newConditions(t)
	c.step(Lost{Reason: "gone"})
	nm := *c.disk.Netmap
	nm.Outage.Posture = 0
	c.disk.Netmap = &nm
	c.boot()
	c.wantOpen(t, "with none allowed", 2, 5)
	nm.Outage.Posture = posture
	c.disk.Floors.LastContact = time.Time{}
	c.boot()
	c.wantOpen(t, "without a contact known", 2, 5)
}

func TestWatchingEndsByItself(t *testing.T) {
	c := newConditions(t)
	c.wait(hour - time.Second)
	c.wantOpen(t, "before the end", 2, 3, 4, 5)
	c.effects = nil
	c.wait(time.Second)
	c.wantOpen(t, "at the end", 2, 3, 4)
	if !c.has(isEffect[Install]) || !c.has(isEffect[Sweep]) {
		t.Error("the flows are not judged")
	}
	// Endpoints do not matter here, and in another netmap a monitoring rule that has ended stays ended.
	c.step(Snapshot{c.conditional(2)})
	c.wantOpen(t, "with another netmap", 2, 3, 4)
	longer := c.conditional(3)
	longer.Rules[4].Until = noon.Add(3 * hour)
	c.step(Snapshot{longer})
	c.wantOpen(t, "with more time", 2, 3, 4, 5)
	c.wait(2 * hour)
	c.wantOpen(t, "at its end", 2, 3, 4)
}
