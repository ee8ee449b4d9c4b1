package filter

import (
	"net/netip"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

func deny(r *proto.Rule) *proto.Rule {
	r.Action = proto.Deny
	return r
}

func monitor(r *proto.Rule) *proto.Rule {
	r.Action, r.Until = proto.Monitor, someday
	return r
}

// TestDenyWins checks deny rules before and after each rule that permits the same.
func TestDenyWins(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) {
		deny(r.rule(proto.In, tcpPorts(22, 22)))
		r.rule(proto.In, everything...)
		r.rule(proto.Out, everything...)
		monitor(r.rule(proto.Out, everything...))
		deny(r.rule(proto.Out, udpPorts(50, 60), whole(proto.ProtoICMP)))
	})
	for _, c := range []struct {
		pkt  []byte
		dir  proto.Direction
		want Reason
		rule string
	}{
		{tcp(v4(2), 1, v4(1), 22, syn), proto.In, Forbidden, "in[0]"},
		{tcp(v4(2), 1, v4(1), 23, syn), proto.In, Permitted, "in[1]"},
		{tcp(v4(1), 1, v4(2), 22, syn), proto.Out, Permitted, "out[2]"},
		{udp(v4(1), 1, v4(2), 50, 0), proto.Out, Forbidden, "out[4]"},
		{udp(v6(1), 1, v6(2), 60, 0), proto.Out, Forbidden, "out[4]"},
		{udp(v4(1), 1, v4(2), 61, 0), proto.Out, Permitted, "out[2]"},
		{udp(v4(2), 61, v4(1), 1, 0), proto.In, Permitted, "out[2]"}, // a reply, to which no deny applies
		{ping(v4(1), v4(2), 1), proto.Out, Forbidden, "out[4]"},
		{ping(v6(1), v6(2), 1), proto.Out, Permitted, "out[2]"},
	} {
		v := w.Out(c.pkt)
		if c.dir == proto.In {
			v = w.In(c.pkt)
		}
		w.want(c.want, v, c.pkt)
		if rule, _ := v.Rule(); rule.Path != c.rule {
			t.Errorf("%s: by %q, want %q", describe(c.pkt), rule.Path, c.rule)
		}
		if c.dir == proto.Out && v.Refuse != !v.Pass {
			t.Errorf("%s: told %v", describe(c.pkt), v.Refuse)
		}
	}
}

// TestDenyCutsLiveFlows adds a deny rule, on either side, while the rule that permits stays.
func TestDenyCutsLiveFlows(t *testing.T) {
	for _, opener := range []proto.Direction{proto.In, proto.Out} {
		w := newWorld(t, func(r *Ruleset) { r.rule(opener, everything...) })
		us, them := uint16(22), uint16(4000)
		in, out := uint8(syn), uint8(synAck)
		if opener == proto.Out {
			us, them = them, us
			in, out = out, in
			w.wantOut(Permitted, tcp(v4(1), us, v4(2), them, out))
			w.wantIn(Permitted, tcp(v4(2), them, v4(1), us, in))
		} else {
			w.wantIn(Permitted, tcp(v4(2), them, v4(1), us, in))
			w.wantOut(Permitted, tcp(v4(1), us, v4(2), them, out))
		}
		w.records()
		deny(w.rules.rule(opener, tcpPorts(22, 22)))
		w.install()
		w.wantOut(Revoked, tcp(v4(1), us, v4(2), them, ack))
		w.wantIn(Revoked, tcp(v4(2), them, v4(1), us, ack))
		toLocal, toPeer := w.sweep()
		if len(toLocal) == 0 || len(toPeer) == 0 {
			t.Errorf("%v: resets to the host %d, to the peer %d", opener, len(toLocal), len(toPeer))
		}
		var ends []Record
		for _, r := range w.records() {
			if r.Kind == FlowEnd {
				ends = append(ends, r)
			}
		}
		if len(ends) != 1 || ends[0].Reason != Revoked || ends[0].Rule.Line != 1 || ends[0].Near.Line != 2 {
			t.Errorf("%v: %+v", opener, ends)
		}
	}
}

// TestMonitor checks that what nothing permits passes and is recorded.
func TestMonitor(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) {
		monitor(r.rule(proto.In, everything...))
		r.rule(proto.In, tcpPorts(22, 22))
		monitor(r.rule(proto.Out, tcpPorts(1, 100)))
		deny(r.rule(proto.In, tcpPorts(23, 23)))
	})
	told := func(want Kind, reason Reason, rule, near string) {
		t.Helper()
		r := w.records()
		if len(r) != 1 || r[0].Kind != want || r[0].Reason != reason || r[0].Rule.Path != rule || r[0].Near.Path != near {
			t.Errorf("%+v; want %v for %q by %s, near %s", r, want, reason, rule, near)
			return
		}
		if watched := want == WouldDeny; r[0].Watched != watched || r[0].Until.IsZero() == watched {
			t.Errorf("watched %v until %v", r[0].Watched, r[0].Until)
		}
		if r[0].Self.Name != "node1" || r[0].Peer.Name != "node2" {
			t.Errorf("between %v and %v", r[0].Self, r[0].Peer)
		}
	}
	w.wantIn(Permitted, tcp(v4(2), 1, v4(1), 22, syn))
	told(FlowStart, Permitted, "in[1]", "")
	w.wantIn(Permitted, tcp(v4(2), 1, v4(1), 80, syn))
	told(WouldDeny, NoService, "in[0]", "in[1]")
	w.wantOut(Permitted, tcp(v4(1), 80, v4(2), 1, synAck))
	w.wantIn(Forbidden, tcp(v4(2), 1, v4(1), 23, syn))
	told(Denied, Forbidden, "in[3]", "")
	w.wantOut(Permitted, tcp(v4(1), 1, v4(2), 80, syn))
	told(WouldDeny, NoRule, "out[2]", "")
	w.wantOut(NoRule, tcp(v4(1), 1, v4(2), 101, syn))
	told(Denied, NoRule, "", "")

	// A permitted flow goes on under the monitor rule, and is recorded once.
	w.rules.Rules = append(w.rules.Rules[:1:1], w.rules.Rules[2:]...)
	w.install()
	w.wantIn(Permitted, tcp(v4(2), 1, v4(1), 22, ack))
	told(WouldDeny, NoRule, "in[0]", "")
	w.install()
	w.wantIn(Permitted, tcp(v4(2), 1, v4(1), 22, ack))
	w.sweep()
	if r := w.records(); len(r) != 0 {
		t.Errorf("told again: %+v", r)
	}

	// Without the monitor rules all flows die.
	w.reinstall(func(*Ruleset) {})
	w.sweep()
	w.wantIn(NoFlow, tcp(v4(2), 1, v4(1), 22, ack))
	if n := w.Counters().Flows; n != 0 {
		t.Errorf("%d flows outlive the rules", n)
	}
	ends := 0
	for _, r := range w.records() {
		if r.Kind == FlowEnd && r.Reason == Revoked && r.Watched {
			ends++
		}
	}
	if ends != 3 {
		t.Errorf("%d ends of watched flows", ends)
	}
}

// TestNothingButAllowAndMonitorPermits checks rules without services, and rules that deny.
func TestNothingButAllowAndMonitorPermits(t *testing.T) {
	for name, edit := range map[string]func(*proto.Rule){
		"deny":                       func(r *proto.Rule) { deny(r) },
		"allow without services":     func(r *proto.Rule) { r.Services = nil },
		"only capabilities":          func(r *proto.Rule) { r.Services, r.App = nil, []proto.Capability{{Name: "example.com/cap/x"}} },
		"monitor without services":   func(r *proto.Rule) { monitor(r).Services = nil },
		"monitor of other addresses": func(r *proto.Rule) { monitor(r).Local = []netip.Prefix{netip.MustParsePrefix("100.64.9.9/32")} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(r *Ruleset) {
				edit(r.rule(proto.In, everything...))
				edit(r.rule(proto.Out, everything...))
			})
			for _, p := range []uint8{proto.ProtoTCP, proto.ProtoUDP, proto.ProtoICMP, proto.ProtoSCTP} {
				for _, d := range []proto.Direction{proto.In, proto.Out} {
					if _, reason := w.current.Load().Why(d, v4(2), p, 22); reason == Permitted {
						t.Errorf("%v of protocol %d is permitted", d, p)
					}
				}
			}
			if w.Out(tcp(v4(1), 1, v4(2), 22, syn)).Pass || w.In(tcp(v4(2), 1, v4(1), 22, syn)).Pass {
				t.Error("it passes")
			}
		})
	}
	for _, action := range []proto.Action{proto.Deny, proto.Monitor + 1, 200} {
		if (&ruling{action: action}).passes() {
			t.Errorf("action %d passes", action)
		}
	}
	if (*ruling)(nil).passes() {
		t.Error("no rule passes")
	}
}

// TestExplain checks that an explanation distinguishes what a rule permits from what passes because it is monitored.
func TestExplain(t *testing.T) {
	r := testRuleset(2)
	r.rule(proto.Out, tcpPorts(22, 22))
	monitor(r.rule(proto.Out, tcpPorts(1, 100)))
	deny(r.rule(proto.Out, tcpPorts(50, 60)))
	p, err := Compile(r)
	if err != nil {
		t.Fatal(err)
	}
	allow, watch, refuse := r.Rules[0].Origin, r.Rules[1].Origin, r.Rules[2].Origin
	for port, want := range map[uint16]Explanation{
		22:  {Pass: true, Rule: allow},
		23:  {Pass: true, Reason: NoService, Rule: watch, Action: proto.Monitor, Until: someday, Near: allow},
		55:  {Reason: Forbidden, Rule: refuse, Action: proto.Deny},
		101: {Reason: NoService, Near: allow},
	} {
		if got := p.Explain(proto.Out, v4(1), v4(2), proto.ProtoTCP, port); got != want {
			t.Errorf("port %d: %+v, want %+v", port, got, want)
		}
		if _, reason := p.Why(proto.Out, v4(2), proto.ProtoTCP, port); (reason == Permitted) != want.Pass {
			t.Errorf("port %d: %v", port, reason)
		}
	}
	for _, e := range []Explanation{
		p.Explain(proto.Out, v4(9), v4(2), proto.ProtoTCP, 22), p.Explain(proto.In, v4(9), v4(2), proto.ProtoTCP, 22),
		p.Explain(proto.Out, v4(1), v4(9), proto.ProtoTCP, 22), (*Program)(nil).Explain(proto.Out, v4(1), v4(2), proto.ProtoTCP, 22),
		p.Explain(proto.Out, netip.Addr{}, netip.Addr{}, proto.ProtoTCP, 22),
	} {
		if e.Pass || e.Reason == Permitted {
			t.Errorf("%+v", e)
		}
	}
}

// TestDeniedFlowsAreNotRestored saves flows that the next program denies, and some that it monitors.
func TestDeniedFlowsAreNotRestored(t *testing.T) {
	w := newWorld(t, func(r *Ruleset) { r.rule(proto.In, everything...) })
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 53, 0))
	w.wantIn(Permitted, udp(v4(2), 4000, v4(1), 54, 0))
	saved := w.AppendFlows(nil, w.now)
	fresh := newWorld(t, func(r *Ruleset) {
		monitor(r.rule(proto.In, everything...))
		deny(r.rule(proto.In, udpPorts(53, 53)))
	})
	if n, err := fresh.RestoreFlows(saved, fresh.now); n != 1 || err != nil {
		t.Errorf("%d flows, %v", n, err)
	}
	if r := fresh.records(); len(r) != 1 || r[0].Kind != WouldDeny || r[0].Local.Port() != 54 {
		t.Errorf("%+v", r)
	}
	fresh.wantIn(Forbidden, udp(v4(2), 4000, v4(1), 53, 0))
}
