package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
)

// rules is a policy with users, groups and tags, in both syntaxes.
const rules = `{
  // Engineers reach the web, the web reaches the database, which reports to ann. Bob looks into the database himself.
  "groups":    {"group:eng": ["ann@example.com"]},
  "tagOwners": {"tag:web": ["group:eng"], "tag:db": ["group:eng"]},
  "acls": [
    {"action": "accept", "proto": "tcp", "src": ["bob@example.com"], "dst": ["tag:db:5432"]},
  ],
  "grants": [
    {"src": ["group:eng"], "dst": ["tag:web"], "ip": ["tcp:8080", "udp:8080", "icmp:*", "ipv6-icmp:*"]},
    {"src": ["tag:web"],   "dst": ["tag:db"],  "ip": ["tcp:5432"]},
    {"src": ["tag:db"],    "dst": ["ann@example.com"], "ip": ["udp:5140"]},
  ],
  "tests": [
    {"src": "ann@example.com", "accept": ["tag:web:8080"], "deny": ["tag:db:5432"]},
  ],
}`

// allowed lists what these rules allow, in the words of this test.
var allowed = map[string]bool{
	"ann web tcp 8080": true, "ann web udp 8080": true, "ann web icmp": true,
	"web db tcp 5432": true, "db ann udp 5140": true, "bob db tcp 5432": true,
}

// services are tried between any two nodes.
var services = []struct {
	name string
	try  func(r *rig, from *lab.Host, to netip.Addr) error
}{
	{"tcp 8080", tcp(8080)},
	{"tcp 5432", tcp(5432)},
	{"udp 8080", udp(8080)},
	{"udp 5140", udp(5140)},
	{"icmp", func(r *rig, from *lab.Host, to netip.Addr) error {
		_, err := from.Ping(r.ctx, to)
		return err
	}},
}

func tcp(port uint16) func(*rig, *lab.Host, netip.Addr) error {
	return func(r *rig, from *lab.Host, to netip.Addr) error {
		return from.TryTCP(r.ctx, netip.AddrPortFrom(to, port))
	}
}

func udp(port uint16) func(*rig, *lab.Host, netip.Addr) error {
	return func(r *rig, from *lab.Host, to netip.Addr) error {
		return from.TryUDP(r.ctx, netip.AddrPortFrom(to, port))
	}
}

// TestWhoReachesWhom tries every service between all pairs of nodes, over both families.
func TestWhoReachesWhom(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(rules)
	nodes := r.joinAll("ann", "ann@example.com", "bob", "bob@example.com", "web", "tag:web", "db", "tag:db")
	for _, n := range nodes {
		r.echo(n.Host, 8080, 5432, 5140)
	}
	var wg sync.WaitGroup
	for _, from := range nodes {
		wg.Go(func() { r.tryAll(from, nodes) })
	}
	wg.Wait()

	// A refused client learns it at once, and the log says what was refused and why.
	web, db := nodes[2], nodes[3]
	if err := tcp(22)(r, web.Host, db.v4); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("web asks for the database's SSH: %v, want that it is refused", err)
	}
	r.await("web's log names the denied connection", func() error {
		for line := range strings.Lines(web.Agent.Output()) {
			if strings.Contains(line, "denied") && strings.Contains(line, "tcp:22") {
				r.contains(line, "from=web", "to=db", "to_who=tag:db", "dst="+db.v4.String(), "reason=", "direction=out")
				return nil
			}
		}
		return fmt.Errorf("no such line")
	})
}

// tryAll tries every service from one node.
func (r *rig) tryAll(from *member, to []*member) {
	for _, dst := range to {
		if dst == from {
			continue
		}
		for _, s := range services {
			for _, a := range dst.addrs() {
				what := fmt.Sprintf("%s %s %s", from.Name, dst.Name, s.name)
				err := s.try(r, from.Host, a)
				switch {
				case allowed[what] && err != nil:
					r.Errorf("%s at %v: %v", what, a, err)
				case !allowed[what] && err == nil:
					r.Errorf("%s at %v passes, and no rule allows it", what, a)
				}
			}
		}
	}
}

// TestNothingPassesWithoutPolicy checks that nothing passes in a mesh that has no policy yet.
func TestNothingPassesWithoutPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	nodes := r.joinAll("a", "ann@example.com", "b", "ann@example.com")
	a, b := nodes[0], nodes[1]
	r.echo(b.Host, 8080)
	wire, err := a.Host.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range services {
		for _, to := range b.addrs() {
			if err := s.try(r, a.Host, to); err == nil {
				t.Errorf("%s to %v passes", s.name, to)
			}
		}
	}
	if st := a.status(); len(st.Peers) != 0 {
		t.Errorf("a knows of %+v, and no rule ties it to anybody", st.Peers)
	}
	if _, err := a.Host.Ping(r.ctx, r.VM.V4()); err != nil { // the network itself works
		t.Fatal(err)
	}
	frames, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if _, dst, ok := f.Addrs(); ok && (dst == b.Host.V4() || dst == b.Host.V6()) {
			t.Errorf("a has sent %d bytes to %v", len(f.Data), dst)
		}
	}
	r.apply(open)
	r.await("a reaches b", func() error { return tcp(8080)(r, a.Host, b.v4) })
}
