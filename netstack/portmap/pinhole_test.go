package portmap

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

// firewall is the IPv6 router as a Machine sees it.
type firewall struct {
	t   *testing.T
	m   *Machine
	now time.Time
	// sent are the requests since the last answer, and state is the latest state.
	sent  [][]byte
	state State
}

func newFirewall(t *testing.T) *firewall {
	f := &firewall{t: t, m: NewMachine([32]byte{1}), now: time.Unix(1_000_000, 0)}
	f.step(Start{Gateway: router6, Local: local6, Port: 7})
	return f
}

func (f *firewall) step(e Event) {
	f.t.Helper()
	for _, x := range f.m.Step(f.now, e) {
		switch x := x.(type) {
		case Send:
			if x.To != netip.AddrPortFrom(router6, controlPort) || x.Msg[0] != versionPCP || len(x.Msg) != pcpMap {
				f.t.Errorf("to %s: %x", x.To, x.Msg)
			}
			f.sent = append(f.sent, x.Msg)
		case Changed:
			f.state = x.State
		case Fetch:
			f.t.Errorf("it asks by UPnP: %s", x.URL)
		}
	}
}

// pass advances time by d and delivers every Tick due until then.
func (f *firewall) pass(d time.Duration) {
	f.t.Helper()
	for end := f.now.Add(d); !f.m.next.IsZero() && !f.m.next.After(end); {
		f.now = f.m.next
		f.step(Tick{})
	}
}

// answer answers the last request with a result, a lifetime and an external address.
func (f *firewall) answer(from netip.AddrPort, result byte, life uint32, external netip.AddrPort) {
	f.t.Helper()
	b := append([]byte(nil), f.sent[len(f.sent)-1]...)
	b[1] |= response
	b[3] = result
	binary.BigEndian.PutUint32(b[4:], life)
	binary.BigEndian.PutUint32(b[8:], uint32(f.now.Unix()))
	clear(b[12:24])
	ip := external.Addr().As16()
	binary.BigEndian.PutUint16(b[42:], external.Port())
	copy(b[44:], ip[:])
	f.sent = nil
	f.step(Received{from, b})
}

// An IPv6 router is asked only by PCP to admit packets to our own address; the pinhole is renewed in time, and deleted at the
// end.
func TestPinhole(t *testing.T) {
	f := newFirewall(t)
	own := netip.AddrPortFrom(local6, 7)
	if len(f.sent) != 1 {
		t.Fatalf("%d requests", len(f.sent))
	}
	b := f.sent[0]
	if netip.AddrFrom16([16]byte(b[8:])) != local6 || netip.AddrFrom16([16]byte(b[44:])) != local6 || binary.BigEndian.Uint16(b[42:]) != 7 {
		t.Errorf("it asks for something else: %x", b)
	}
	from := netip.AddrPortFrom(router6, controlPort)
	f.answer(from, 0, 600, own)
	if f.state.External != own || f.state.Protocol != PCP || f.state.Problem != "" || f.state.Until.Sub(f.now) != 10*time.Minute {
		t.Fatalf("%+v", f.state)
	}
	f.pass(5 * time.Minute)
	if len(f.sent) != 1 {
		t.Fatalf("at half of its life: %d requests", len(f.sent))
	}
	f.answer(from, 0, 600, own)
	f.step(Stop{})
	if len(f.sent) != 1 || binary.BigEndian.Uint32(f.sent[0][4:]) != 0 || f.state.External.IsValid() {
		t.Errorf("in the end: %x, %+v", f.sent, f.state)
	}
}

// Answers from another device or port, refusals, and implausible answers open nothing.
func TestPinholeRefused(t *testing.T) {
	own := netip.AddrPortFrom(local6, 7)
	from := netip.AddrPortFrom(router6, controlPort)
	for name, c := range map[string]struct {
		from     netip.AddrPort
		result   byte
		external netip.AddrPort
		problem  string
	}{
		"another device":   {netip.AddrPortFrom(router6.WithZone("eth1"), controlPort), 0, own, "the router does not answer to PCP"},
		"another port":     {netip.AddrPortFrom(router6, 1900), 0, own, "the router does not answer to PCP"},
		"it refuses":       {from, 2, own, "the router refuses port mappings"},
		"IPv4":             {from, 0, netip.MustParseAddrPort("203.0.113.1:7"), "the router's answer makes no sense"},
		"a local address":  {from, 0, netip.MustParseAddrPort("[fd00::1]:7"), "the router's answer makes no sense"},
		"of the link only": {from, 0, netip.MustParseAddrPort("[fe80::1]:7"), "the router's answer makes no sense"},
		"no port":          {from, 0, netip.AddrPortFrom(local6, 0), "the router's answer makes no sense"},
	} {
		f := newFirewall(t)
		f.answer(c.from, c.result, 600, c.external)
		f.step(Received{from, []byte{versionNATPMP, response | opMap, 0, 1, 0, 0, 0, 0}}) // no NAT-PMP over IPv6
		f.pass(10 * time.Second)
		if f.state.External.IsValid() || f.state.Problem != c.problem {
			t.Errorf("%s: %+v", name, f.state)
		}
	}
	m := NewMachine([32]byte{1})
	for _, s := range []Start{{router6, local, 7}, {router, local6, 7}, {router6, local6, 0}, {netip.MustParseAddr("::ffff:192.0.2.1"), local6, 7}} {
		for _, e := range m.Step(time.Unix(1, 0), s) {
			if _, ok := e.(Send); ok {
				t.Errorf("%+v: it asks", s)
			}
		}
	}
}
