package pilot_test

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// kind is how a node is attached to the Internet.
type kind struct {
	name string
	cfg  *sim.NATConfig // nil if the node has a public address
}

// kinds are no NAT, those of RFC 4787, and no UDP. For NATs the first letter is the mapping behaviour, and the second one the
// filtering behaviour: endpoint-independent, address-dependent, address-and-port-dependent.
var kinds = []kind{
	{"open", nil},
	nat("E-E"), nat("E-A"), nat("E-P"),
	nat("A-E"), nat("A-A"), nat("A-P"),
	nat("P-E"), nat("P-A"), nat("P-P"),
	{"blocked", &sim.NATConfig{BlockUDP: true}},
}

var (
	open           = kinds[0]
	portRestricted = nat("E-P")
	symmetric      = nat("P-P")
)

func nat(name string) kind {
	behaviour := map[byte]sim.Behaviour{'E': sim.EndpointIndependent, 'A': sim.AddressDependent, 'P': sim.AddressAndPortDependent}
	return kind{name, &sim.NATConfig{Mapping: behaviour[name[0]], Filtering: behaviour[name[2]], Ports: sim.Random}}
}

// outcome is how two nodes reach each other over IPv4.
type outcome string

const (
	yes     outcome = "yes"     // they reach each other directly
	guessed outcome = "guessed" // the same, once a port was guessed
	no      outcome = "no"      // they need a relay
)

// permitted returns how two kinds reach each other according to RFC 4787. Each side is told where relays see the other, and
// both send there; each answers to the address that a packet came from.
func permitted(x, y kind) outcome {
	switch {
	case x.name == "blocked" || y.name == "blocked":
		return no
	case x.cfg == nil || y.cfg == nil: // a node without NAT can be reached, and sees the source
		return yes
	case reaches(x.cfg, y.cfg) || reaches(y.cfg, x.cfg):
		return yes
	case easy(x.cfg) != easy(y.cfg):
		return guessed
	}
	return no
}

// easy reports whether everyone sees the same port of a node behind the NAT.
func easy(c *sim.NATConfig) bool { return c.Mapping == sim.EndpointIndependent }

// reaches reports whether what x sends to where relays see y gets in there, and an answer gets back.
func reaches(x, y *sim.NATConfig) bool {
	// The port by which y talks to the relays has also sent to x only if y's port is the same for all; and it has sent to where
	// relays see x, which is the source of this packet only if x's port is the same for all.
	in := y.Filtering == sim.EndpointIndependent ||
		easy(y) && (y.Filtering == sim.AddressDependent || easy(x))
	// The answer comes from where x has sent to, or from another port of the same address.
	back := easy(y) || x.Filtering != sim.AddressAndPortDependent
	return in && back
}

// TestPublishedTable checks that the published table matches what is permitted.
func TestPublishedTable(t *testing.T) {
	text, err := os.ReadFile("../../docs/paths.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	row := func(cells ...string) { fmt.Fprintf(&want, "| %s |\n", strings.Join(cells, " | ")) }
	head, line := []string{""}, []string{"---"}
	for _, k := range kinds {
		head, line = append(head, k.name), append(line, "---")
	}
	row(head...)
	row(line...)
	for _, x := range kinds {
		cells := []string{x.name}
		for _, y := range kinds {
			if permitted(x, y) != permitted(y, x) {
				t.Errorf("%s and %s depend on who is who", x.name, y.name)
			}
			cells = append(cells, string(permitted(x, y)))
		}
		row(cells...)
	}
	if table := strings.Replace(want.String(), "|  |", "| |", 1); !strings.Contains(string(text), table) {
		t.Errorf("docs/paths.md has another table than this:\n%s", table)
	}
}

// attach adds a host, behind a NAT of the given kind.
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

// Every pair of kinds is connected from the first packet on, and within a second without a relay wherever the NATs permit it.
func TestEveryPairOfNATs(t *testing.T) {
	for i, x := range kinds {
		for _, y := range kinds[i:] {
			for _, dual := range []bool{false, true} {
				want := permitted(x, y)
				if dual && x.name != "blocked" && y.name != "blocked" {
					want = yes
				}
				t.Run(fmt.Sprintf("%s/%s/dual=%t", x.name, y.name, dual), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { meet(t, x, y, dual, want) })
				})
			}
		}
	}
}

// How a NAT picks its ports makes no difference, except that some are guessed sooner.
func TestEveryPortPolicy(t *testing.T) {
	for _, pair := range [][2]string{{"E-P", "E-P"}, {"E-A", "A-E"}, {"E-P", "P-P"}, {"A-A", "P-E"}} {
		for _, p := range []sim.PortPolicy{sim.Preserve, sim.Sequential, sim.Random} {
			for _, q := range []sim.PortPolicy{sim.Preserve, sim.Sequential, sim.Random} {
				x, y := nat(pair[0]), nat(pair[1])
				x.cfg.Ports, y.cfg.Ports = p, q
				t.Run(fmt.Sprintf("%s %s/%s %s", x.name, p, y.name, q), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { meet(t, x, y, false, permitted(x, y)) })
				})
			}
		}
	}
}

// Two NATs that map each destination to a port of its own, and admit anyone, show a new port with each address tried. The nodes
// still settle on one that works, however long the answers take.
func TestNewPortsWithoutEnd(t *testing.T) {
	for _, latency := range []time.Duration{10 * time.Millisecond, 200 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2)
				defer w.close()
				w.net.SetDefault(sim.Link{Latency: latency})
				k := nat("P-E")
				a, b := w.addNode(w.attach("a", k, 1, false), 1), w.addNode(w.attach("b", k, 2, false), 2)
				w.meet()
				if err := a.Ping(b.Addrs.V4); err != nil {
					t.Fatal(err)
				}
				var changes, lost int
				last := a.view(b)
				for range 130 { // NATs have dropped unused mappings by then
					_, l := a.talk(b, time.Second)
					lost += l
					if now := a.view(b); now.Way != last.Way || now.Since != last.Since {
						changes, last = changes+1, now
					}
				}
				if !last.Way.Direct() || lost > 0 || changes > 6 {
					t.Errorf("%d packets lost, the way changed in %d of 130 seconds, and is %+v", lost, changes, last)
				}
				var asked atomic.Int64
				w.net.Tap(func(s sim.Seen) {
					if s.Public() && s.Data[0] == pathmsg.FirstByte {
						asked.Add(1)
					}
				})
				const seconds = 30
				a.talk(b, seconds*time.Second)
				w.net.Tap(nil)
				if n := asked.Load() / seconds; n > 7 { // a ping and its answer from each side, and some to find the packet size
					t.Errorf("%d path messages a second while packets flow both ways", n)
				}
			})
		})
	}
}

func meet(t *testing.T, x, y kind, dual bool, want outcome) {
	w := newWorld(t, 2)
	defer w.close()
	a, b := w.addNode(w.attach("a", x, 1, dual), 1), w.addNode(w.attach("b", y, 2, dual), 2)
	w.meet()
	if err := a.Ping(b.Addrs.V4); err != nil {
		t.Fatalf("the first packet: %v; %+v, %+v", err, a.view(b), b.view(a))
	}
	gap, lost := a.talk(b, 1200*time.Millisecond)
	if want == guessed { // one attempt in fifty misses, and is repeated a minute later, then two, and so on
		for begun := time.Now(); time.Since(begun) < 10*time.Minute && !(a.view(b).Way.Direct() && b.view(a).Way.Direct()); {
			g, l := a.talk(b, time.Second)
			gap, lost = max(gap, g), lost+l
		}
		synctest.Wait() // sockets are closed in the background
		if n := a.Bind.Extras() + b.Bind.Extras(); n > 1 {
			t.Errorf("%d sockets are left of a punch", n)
		}
	}
	for _, v := range [][2]*node{{a, b}, {b, a}} {
		if got := v[0].view(v[1]); got.Way.Direct() != (want != no) || got.Doubt {
			t.Errorf("from node %d: %+v, want direct: %s", v[0].ID, got, want)
		}
	}
	if lost > 0 || gap > 300*time.Millisecond {
		t.Errorf("%d packets lost, %s without one", lost, gap)
	}
}
