package pilot_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// stream sends a datagram to another node every 10 ms, for a while, which nobody answers. It says for how long at most none
// arrived.
func (n *node) stream(o *node, during time.Duration) (gap time.Duration) {
	src, dst := netip.AddrPortFrom(n.Addrs.V4, 1000), netip.AddrPortFrom(o.Addrs.V4, 9)
	begun := time.Now()
	last := begun
	arrived := make(chan time.Time, during/time.Millisecond)
	o.Stack.Watch(func(p sim.Packet) {
		if p.Dst == dst {
			arrived <- time.Now()
		}
	})
	for time.Since(begun) < during {
		n.TUN.Send(sim.UDP(src, dst, []byte("nobody answers this")).Bytes())
		time.Sleep(10 * time.Millisecond)
	}
	gap = time.Since(begun)
	time.Sleep(time.Second)
	o.Stack.Watch(nil)
	close(arrived)
	var most time.Duration
	for at := range arrived {
		most, last = max(most, at.Sub(last)), at
	}
	return max(most, gap-last.Sub(begun))
}

// The receiver's NAT forgets its mappings while only the sender sends: the receiver is who has to say something.
func TestReceiversNATReboots(t *testing.T) {
	for ports, want := range map[sim.PortPolicy]time.Duration{sim.Preserve: 400 * time.Millisecond, sim.Random: 600 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2)
			defer w.close()
			nat := sim.NATConfig{Filtering: sim.AddressAndPortDependent, Ports: ports}
			mine := w.net.NAT("nat of b", nat, addr("198.51.100.2"))
			a := w.addNode(w.attach("a", portRestricted, 1, false), 1)
			b := w.addNode(mine.Host("b", addr("10.2.0.2")), 2)
			w.meet()
			w.must(a.Ping(b.Addrs.V4))
			a.stream(b, 2*time.Second)
			worst := time.Duration(0)
			for n := range 20 { // at another moment between two pings each time
				go func() {
					time.Sleep(3*time.Second + time.Duration(n)*17*time.Millisecond)
					mine.Reboot()
				}()
				gap := a.stream(b, 6*time.Second)
				t.Logf("%s: %s, way %+v", ports, gap, a.view(b).Way)
				worst = max(worst, gap)
			}
			if worst > want {
				t.Errorf("ports %s: %s without a packet", ports, worst)
			}
		})
	}
}
