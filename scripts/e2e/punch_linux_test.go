package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// punches is how often two NATs are made to lose all mappings.
const punches = 2

// TestPunch checks that a node behind a NAT that maps each destination to another port, and one behind a NAT that lets in
// only from endpoints already sent to, reach each other directly, repeatedly, with one relay in the mesh. Afterwards at most
// one more socket is open than before.
func TestPunch(t *testing.T) {
	t.Parallel()
	f := &field{rig: emptyRig(t), nats: map[string]*lab.NAT{}, members: map[string]*member{}}
	f.startCoordinator("--relay-address", f.VM.V4().String())
	f.apply(open)
	for name, cfg := range map[string]lab.NATConfig{"easy": {}, "hard": {Hard: true}} {
		nat, err := f.World.AddNAT(name, f.LAN, cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.nats[name] = nat
		x := f.agentOn(labtest.Host(t, f.World, "behind "+name, nat.Inside))
		f.members[name] = x
		if _, err := x.Up(f.ctx, f.token("--tag", "tag:x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range f.members {
		st := x.status()
		x.id, x.v4 = st.Node.ID, st.V4()
	}
	f.settle()
	easy, hard := f.members["easy"], f.members["hard"]
	f.echo(hard.Host, 7)
	before := hard.sockets()
	for i := range punches {
		f.Logf("punch %d: direct after %s", i, f.punched(easy, hard))
		if n := hard.sockets(); n != before+1 {
			t.Errorf("punch %d: %d UDP sockets are open, %d before", i, n, before)
		}
		if err := errors.Join(f.nats["easy"].Reboot(), f.nats["hard"].Reboot()); err != nil {
			t.Fatal(err)
		}
		f.awaitWithin(patience, 50*time.Millisecond, "the way is lost", func() error {
			if p := easy.way(hard); p.Path == "direct" {
				return fmt.Errorf("still direct by %s", p.Endpoint)
			}
			return easy.Host.TryUDP(f.ctx, netip.AddrPortFrom(hard.v4, 7))
		})
	}
}

// punched waits until both ends report a punched path, and returns how long that took.
func (f *field) punched(from, to *member) time.Duration {
	f.Helper()
	begun := time.Now()
	f.awaitWithin(5*patience, 50*time.Millisecond, "the way is punched", func() error {
		if err := from.Host.TryUDP(f.ctx, netip.AddrPortFrom(to.v4, 7)); err != nil {
			return err
		}
		for _, p := range [][2]*member{{from, to}, {to, from}} {
			if way := p[0].way(p[1]); way.Transport != "punched" {
				return fmt.Errorf("%s is reached by %s %s: %s", p[1].Name, way.Path, way.Endpoint, way.WhyNotDirect)
			}
		}
		return nil
	})
	return time.Since(begun).Round(100 * time.Millisecond)
}

// sockets returns how many UDP sockets are open on a member's host.
func (m *member) sockets() (n int) {
	err := m.Host.Do(func() error {
		out, err := exec.Command("cat", "/proc/net/udp").Output()
		n = len(slices.Collect(strings.Lines(string(out)))) - 1
		return err
	})
	if err != nil {
		m.r.Fatal(err)
	}
	return n
}
