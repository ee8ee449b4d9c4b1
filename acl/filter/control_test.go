package filter

import (
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestICMPErrors checks errors about flows, genuine and forged, in both directions.
func TestICMPErrors(t *testing.T) {
	for family, a := range map[string]func(int) netip.Addr{"IPv4": v4, "IPv6": v6} {
		t.Run(family, func(t *testing.T) {
			w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, everything...); r.rule(proto.In, udpPorts(53, 53)) })
			us, them, third := a(1), a(2), a(3)
			w.wantOut(Permitted, tcp(us, 4000, them, 22, syn))
			w.wantOut(Permitted, udp(us, 4000, them, 9, 100))
			w.wantOut(Permitted, udp(us, 4000, third, 9, 100))
			w.wantOut(Permitted, ping(us, them, 7))
			w.wantOut(Permitted, ported(proto.ProtoSCTP, us, 4000, them, 9))
			w.wantIn(Permitted, udp(them, 4000, us, 53, 0))

			// About packets that we sent, whole or truncated after eight bytes of transport.
			least := 20 + 8
			if us.Is6() {
				least = 40 + 8
			}
			for _, quote := range [][]byte{
				tcp(us, 4000, them, 22, syn), udp(us, 4000, them, 9, 100), ping(us, them, 7),
				ported(proto.ProtoSCTP, us, 4000, them, 9), udp(us, 53, them, 4000, 0),
			} {
				w.wantIn(Permitted, unreachable(them, us, quote))
				w.wantIn(Permitted, unreachable(them, us, quote[:least]))
				w.wantIn(ICMPUnrelated, unreachable(third, us, quote)) // somebody else's flow
				w.want(Spoofed, inFrom(w.Filter, 3, unreachable(them, us, quote)), quote)
				w.wantIn(ICMPUnrelated, unreachable(them, us, quote[:least-1]))
			}
			tooBig := unreachable(them, us, udp(us, 4000, them, 9, 100))
			if us.Is4() {
				tooBig[21] = 4 // fragmentation needed
			} else {
				tooBig[40], tooBig[41] = 2, 0 // packet too big
			}
			w.wantIn(Permitted, tooBig)

			// About packets that they sent.
			w.wantOut(Permitted, unreachable(us, them, udp(them, 4000, us, 53, 0)))
			w.wantOut(ICMPUnrelated, unreachable(us, them, udp(them, 4001, us, 53, 0)))

			// Forgeries.
			w.wantIn(ICMPUnrelated, unreachable(them, us, tcp(us, 4001, them, 22, syn)))             // no such flow
			w.wantIn(ICMPUnrelated, unreachable(them, us, tcp(them, 22, us, 4000, syn)))             // the wrong way round
			w.wantIn(ICMPUnrelated, unreachable(them, us, udp(us, 4000, third, 9, 100)))             // about another peer
			w.wantIn(ICMPUnrelated, unreachable(them, us, tcp(third, 4000, them, 22, syn)))          // not sent by us
			w.wantIn(ICMPUnrelated, unreachable(them, third, tcp(us, 4000, them, 22, syn)))          // not to us
			w.wantIn(ICMPUnrelated, unreachable(them, us, unreachable(us, them, ping(us, them, 7)))) // about an error
			w.wantIn(ICMPUnrelated, unreachable(them, us, cut(udp(us, 4000, them, 9, 100), 8, 1)[1]))
			w.wantIn(ICMPUnrelated, unreachable(them, us, nil))

			// Errors neither keep a flow alive nor open one.
			w.pass(idleFor(udpFlow, opening).duration() - 1)
			w.wantIn(Permitted, unreachable(them, us, udp(us, 4000, them, 9, 100)))
			w.pass(second.duration())
			w.wantIn(ICMPUnrelated, unreachable(them, us, udp(us, 4000, them, 9, 100)))

			// Errors stop passing when their flow dies.
			w.reinstall(func(*Ruleset) {})
			w.wantIn(Revoked, unreachable(them, us, tcp(us, 4000, them, 22, syn)))
			w.Install(nil)
			w.wantIn(Closed, unreachable(them, us, udp(us, 4000, them, 9, 100)))
		})
	}
}

func TestUnwantedICMP(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.Out, everything...); r.rule(proto.In, everything...) })
	w.wantOut(Permitted, ping(v4(1), v4(2), 7))
	w.wantOut(Permitted, ping(v6(1), v6(2), 7))
	for _, kind := range []uint8{1, 4, 5, 9, 10, 13, 14, 17, 42, 255} {
		w.wantIn(ICMPType, icmp(v4(2), v4(1), kind, 0, 0, ping(v4(1), v4(2), 7)))
	}
	for _, kind := range []uint8{0, 5, 100, 127, 130, 133, 134, 135, 136, 137, 143, 255} {
		w.wantIn(ICMPType, icmp(v6(2), v6(1), kind, 0, 0, ping(v6(1), v6(2), 7)))
	}
	pieces := cut(unreachable(v4(2), v4(1), ping(v4(1), v4(2), 7)), 24, 1)
	w.wantIn(ICMPType, pieces[0])
}
