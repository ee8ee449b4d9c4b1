package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// TestNarrowWay puts a router in the path that forwards at most 1400 bytes and sends no ICMP errors. It checks that both
// nodes discover that, and that everything their programs send arrives.
func TestNarrowWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.apply(open)
	nat, err := r.World.AddNAT("narrow", r.LAN, lab.NATConfig{MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	a := r.agentOn(labtest.Host(t, r.World, "a", nat.Inside))
	a.join(r.token("--user", "ann@example.com"))
	b := r.join("b", "--tag", "tag:b")
	r.settle()
	const (
		want  = 1400 - 20 - 8 - 32 // IPv4, UDP, WireGuard
		slack = 4                  // a VLAN tag, which Linux accepts beyond a device's MTU
	)
	for _, x := range [][2]*member{{a, b}, {b, a}} {
		from, to := x[0], x[1]
		r.await(fmt.Sprintf("%s finds out what its way takes", from.Host.Name), func() error {
			if _, err := from.Host.Ping(r.ctx, to.v4); err != nil {
				return err
			}
			if w := from.way(to); w.Path != "direct" || w.PathMTU < want || w.PathMTU > want+slack {
				return fmt.Errorf("path %q, MTU %d; want %d to %d", w.Path, w.PathMTU, want, want+slack)
			}
			return nil
		})
	}
	r.echo(b.Host, 9)
	for _, to := range b.addrs() {
		if err := r.exchangeBulk(a, b, netip.AddrPortFrom(to, 80)); err != nil {
			t.Errorf("%v: %v", to, err)
		}
		for _, size := range []int{1, 1200, 1280, 1313, 1392, 9000} {
			if err := r.exchangeDatagram(a.Host, netip.AddrPortFrom(to, 9), size); err != nil {
				t.Errorf("%v: a datagram of %d bytes: %v", to, size, err)
			}
		}
	}
	r.contains(a.do("status"), fmt.Sprintf("MTU %d", want))
}
