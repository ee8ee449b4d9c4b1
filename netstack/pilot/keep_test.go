package pilot_test

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

// stream sends a datagram that nobody answers to another node every 10 ms, for a while. It returns the longest time in which
// none arrived.
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

// The receiver's NAT drops its mappings while only the sender sends: it is up to the receiver to send something.
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
			for n := range 20 { // at a different moment between two pings each time
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

// The same in the first moments of a flow, when few pings have shown their interval.
func TestReceiversNATRebootsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.close()
		mine := w.net.NAT("nat of b", sim.NATConfig{Filtering: sim.AddressAndPortDependent}, addr("198.51.100.2"))
		a := w.addNode(w.attach("a", portRestricted, 1, false), 1)
		b := w.addNode(mine.Host("b", addr("10.2.0.2")), 2)
		w.meet()
		w.must(a.Ping(b.Addrs.V4))
		a.stream(b, 2*time.Second)
		var gaps []time.Duration
		for n := range 20 {
			time.Sleep(time.Duration(12-n%3*5) * time.Second) // idle, or not
			go func() {
				time.Sleep(150*time.Millisecond + time.Duration(n)*17*time.Millisecond)
				mine.Reboot()
			}()
			gap := a.stream(b, 2*time.Second)
			t.Logf("after %d ms: %s, way %+v", 150+n*17, gap, a.view(b).Way)
			gaps = append(gaps, gap)
		}
		if worst := slices.Max(gaps); worst > 600*time.Millisecond {
			t.Errorf("%s without a packet", worst)
		}
	})
}

// The receiver gets another address while only the sender sends, and the sender's NAT admits nothing from there: what the
// receiver announces through its relay redirects the packets before the sender misses an answer.
func TestReceiverMoves(t *testing.T) {
	for _, k := range []kind{open, portRestricted, symmetric} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2)
			defer w.close()
			a := w.addNode(w.attach("a", portRestricted, 1, false), 1)
			b := w.addNode(w.attach("b", k, 2, false), 2)
			w.meet()
			w.must(a.Ping(b.Addrs.V4))
			a.stream(b, 2*time.Second)
			var worst time.Duration
			for n := range 20 {
				go func() {
					time.Sleep(time.Second + time.Duration(n)*17*time.Millisecond)
					before := b.Host.Addrs()[0].As4()
					before[3]++
					b.Host.SetAddrs(netip.AddrFrom4(before))
					b.moved()
					for range 100 { // as an agent does when its relays see it elsewhere
						time.Sleep(5 * time.Millisecond)
						b.offer()
					}
				}()
				gap := a.stream(b, 3*time.Second)
				t.Logf("behind %s: %s, way %+v", k.name, gap, a.view(b).Way)
				worst = max(worst, gap)
			}
			// Three trips to the relay and back move the session there, and an Offer and a packet go through it: 20 ms for each
			// half.
			if worst > 160*time.Millisecond {
				t.Errorf("behind %s: %s without a packet", k.name, worst)
			}
		})
	}
}

// A node that missed answers, or pings, stops asking once neither side has anything to send: otherwise two nodes would ping
// each other forever.
func TestSilenceStaysSilent(t *testing.T) {
	for every, most := range map[time.Duration]int64{30 * time.Millisecond: 3, 400 * time.Millisecond: 10, 3 * time.Second: 15, 12 * time.Second: 45} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2)
			defer w.close()
			a := w.addNode(w.attach("a", portRestricted, 1, false), 1)
			b := w.addNode(w.attach("b", portRestricted, 2, false), 2)
			w.meet()
			w.must(a.Ping(b.Addrs.V4))
			var seen atomic.Int64
			w.net.Tap(func(sim.Seen) { seen.Add(1) })
			src, dst := netip.AddrPortFrom(a.Addrs.V4, 1000), netip.AddrPortFrom(b.Addrs.V4, 9)
			const packets = 40
			for range packets {
				a.TUN.Send(sim.UDP(src, dst, []byte("nobody answers this")).Bytes())
				time.Sleep(every)
			}
			during := seen.Swap(0) / packets
			time.Sleep(time.Minute)
			after := seen.Swap(0)
			time.Sleep(time.Minute)
			rest := seen.Load() // keepalives of relays, and WireGuard's sessions
			if during > most || after > 50 || rest > 15 {
				t.Errorf("a packet each %s: %d datagrams a packet, %d in the minute afterwards, then %d", every, during, after, rest)
			}
		})
	}
}
