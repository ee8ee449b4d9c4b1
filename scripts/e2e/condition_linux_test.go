package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// healthy is a policy that lets ann reach the web while a fact says that her machine is healthy. Anything else she opens
// there is only monitored until tomorrow, except for one port that nobody reaches.
func healthy() string {
	return fmt.Sprintf(`{
  "tagOwners": {"tag:web": []},
  "postures": {"posture:healthy": ["custom:health == 'good'", "node:os == 'linux'"]},
  "grants": [
    {"src": ["ann@example.com"], "dst": ["tag:web"], "ip": ["tcp:80"], "srcPosture": ["posture:healthy"]},
  ],
  "deny": [
    {"src": ["*"], "dst": ["tag:web"], "ip": ["tcp:81"]},
  ],
  "enforcement": [
    {"src": ["bob@example.com"], "dst": ["tag:web"], "mode": "monitor", "until": %q},
  ],
}`, time.Now().Add(24*time.Hour).UTC().Format(time.RFC3339))
}

// TestFactsOpenAndClose gives a node a fact that a grant requires, and removes it while a connection is open.
func TestFactsOpenAndClose(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.joinAll("ann", "ann@example.com", "web", "tag:web")
	r.apply(healthy())
	ann, web := nodes[0], nodes[1]
	to := netip.AddrPortFrom(web.v4, 80)

	r.contains(ann.fails(1, "why", "web:80"), "grants[0]", "custom:health is not set")
	if c, err := ann.Host.Dial(r.ctx, "tcp", to.String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection without the fact: %v, want that it is refused", err)
		if err == nil {
			c.Close()
		}
	}
	began := time.Now()
	r.admin("node", "fact", "set", "ann", "custom:health", "good")
	flow := r.tcpFlow(ann.Host, web.Host, to)
	t.Logf("open %v after the command was typed", time.Since(began).Round(time.Millisecond))
	r.lives(flow, 20)
	r.contains(ann.do("why", "web:80"), "grants[0]")

	began = time.Now()
	r.admin("node", "fact", "unset", "ann", "custom:health")
	r.reset(flow)
	t.Logf("dead %v after the command was typed", time.Since(began).Round(time.Millisecond))

	// A fact with a limited lifetime expires by itself, and the connection with it.
	r.admin("node", "fact", "set", "ann", "custom:health", "good", "--ttl", "3s")
	again := r.tcpFlow(ann.Host, web.Host, to)
	r.reset(again)
}

// TestDenyAndMonitor checks that a monitored connection passes and is logged, and that a deny rule ends it.
func TestDenyAndMonitor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.joinAll("bob", "bob@example.com", "web", "tag:web")
	r.apply(healthy())
	bob, web := nodes[0], nodes[1]
	watched := r.tcpFlow(bob.Host, web.Host, netip.AddrPortFrom(web.v4, 22))
	r.lives(watched, 20)
	for _, m := range nodes {
		r.await(m.Name+" logs what would be denied", func() error {
			for line := range strings.Lines(m.Agent.Output()) {
				if strings.Contains(line, "would-deny") && strings.Contains(line, "tcp:22") {
					r.contains(line, "from=bob", "from_who=bob@example.com", "to=web", "to_who=tag:web", "rule=enforcement[0]", "reason=")
					return nil
				}
			}
			return errors.New("no such line")
		})
	}
	if c, err := bob.Host.Dial(r.ctx, "tcp", netip.AddrPortFrom(web.v4, 81).String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection that is denied: %v, want that it is refused", err)
		if err == nil {
			c.Close()
		}
	}
	r.contains(bob.fails(1, "why", "web:81"), "deny[0]")

	r.apply(strings.Replace(healthy(), `"tcp:81"`, `"tcp:81", "tcp:22"`, 1))
	r.reset(watched)
	if out := r.admin("policy", "history"); strings.Count(out, "\n") < 3 {
		t.Errorf("the history of two policies:\n%s", out)
	}
	r.admin("policy", "rollback", "1")
	r.settle()
	r.lives(r.tcpFlow(bob.Host, web.Host, netip.AddrPortFrom(web.v4, 22)), 20)
}
