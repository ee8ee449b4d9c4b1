package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// relayOn sets up a relay on a separate host, reachable over UDP and over TLS. It returns a function that starts the relay.
func (f *field) relayOn(name string) (start func() *lab.Process) {
	f.Helper()
	h := labtest.Host(f.TB, f.World, name, f.LAN)
	v4 := h.V4().String()
	flags := []string{"--state", filepath.Join(f.TempDir(), name), "--hostname", name, "--address", v4, "--listen", ":443", "--url", "https://" + v4}
	code := []string{f.token("--relay")}
	return func() *lab.Process {
		f.Helper()
		p, err := h.Start(lab.Command{Name: "relay", Path: f.Program("redoubt"), Args: slices.Concat([]string{"relay"}, code, flags)})
		if err != nil {
			f.Fatal(err)
		}
		code = nil // it has its identity
		f.processes = append(f.processes, p)
		return p
	}
}

// TestRelaysOfTheirOwn uses two relays on separate hosts and none in the coordinator. It checks that when the one in use is
// stopped, the other takes over without losing a packet, and when it is killed, soon, over UDP as well as TLS, without human
// intervention.
func TestRelaysOfTheirOwn(t *testing.T) {
	t.Parallel()
	f := &field{rig: emptyRig(t), nats: map[string]*lab.NAT{}, members: map[string]*member{}}
	f.startCoordinator("--relay=false")
	f.apply(open)
	starts := map[string]func() *lab.Process{"relay1": f.relayOn("relay1"), "relay2": f.relayOn("relay2")}
	relays := map[string]*lab.Process{}
	for name, start := range starts {
		relays[name] = start()
	}
	for name, cfg := range map[string]lab.NATConfig{"hard": {Hard: true}, "harder": {Hard: true}, "hotel": {BlockUDP: true, TCPPort: 443}} {
		nat, err := f.World.AddNAT(name, f.LAN, cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.nats[name] = nat
	}
	for name, nat := range map[string]string{"dan": "hard", "eve": "harder", "gus": "hotel"} {
		x := f.agentOn(labtest.Host(t, f.World, name, f.nats[nat].Inside))
		x.join(f.token("--tag", "tag:x"))
		f.members[name] = x
	}
	f.settle()
	dan, eve, gus := f.members["dan"], f.members["eve"], f.members["gus"]
	f.echo(eve.Host, 7)
	carried := func(from *member) (relay string) {
		f.Helper()
		f.await(from.Name+" reaches eve through a relay", func() error {
			if err := from.Host.TryUDP(f.ctx, netip.AddrPortFrom(eve.v4, 7)); err != nil {
				return err
			}
			p := from.way(eve)
			if relay = p.Endpoint; p.Path != "relay" || relays[relay] == nil {
				return fmt.Errorf("its way is %q by %s", p.Path, relay)
			}
			return nil
		})
		return relay
	}
	carried(gus)
	inUse := carried(dan)
	flow := f.tcpFlow(dan.Host, eve.Host, netip.AddrPortFrom(eve.v4, 80))
	f.lives(flow, 20)
	stopped := f.interruption("relay stopped", dan, eve, 5000, func() error { return relays[inUse].Stop(f.ctx) })
	if stopped > 0 {
		t.Errorf("%d packets are lost where a relay is stopped", stopped)
	}
	f.lives(flow, 20)
	relays[inUse] = starts[inUse]()
	f.settle()
	inUse = carried(dan)
	f.interruption("relay killed", dan, eve, 5001, relays[inUse].Kill)
	f.lives(flow, 20)
	if other := carried(dan); other == inUse {
		t.Errorf("%s carries on, dead", other)
	}
	carried(gus)
}
