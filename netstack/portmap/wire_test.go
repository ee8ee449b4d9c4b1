package portmap

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var (
	router = netip.MustParseAddr("192.168.1.1")
	local  = netip.MustParseAddr("192.168.1.2")

	router6 = netip.MustParseAddr("fe80::1%eth0")
	local6  = netip.MustParseAddr("2001:db8::2")
)

func TestWire(t *testing.T) {
	got := hex.EncodeToString(pcpRequest(local, nonce{1, 11: 2}, 7, 3600, netip.MustParseAddrPort("203.0.113.1:9")))
	const want = "02010000" + "00000e10" + "00000000000000000000ffffc0a80102" + "010000000000000000000002" + "11000000" +
		"00070009" + "00000000000000000000ffffcb007101"
	if got != want {
		t.Errorf("PCP MAP:\n%s, want\n%s", got, want)
	}
	if got := hex.EncodeToString(appendNATPMP(nil, 7, 9, 3600)); got != "000100000007000900000e10" {
		t.Errorf("NAT-PMP: %s", got)
	}
	if got := hex.EncodeToString(appendAddrRequest(nil)); got != "0000" {
		t.Errorf("NAT-PMP: %s", got)
	}
	got = hex.EncodeToString(pcpRequest(local6, nonce{1, 11: 2}, 7, 3600, netip.AddrPortFrom(local6, 7)))
	const want6 = "02010000" + "00000e10" + "20010db8000000000000000000000002" + "010000000000000000000002" + "11000000" +
		"00070007" + "20010db8000000000000000000000002"
	if got != want6 {
		t.Errorf("PCP MAP over IPv6:\n%s, want\n%s", got, want6)
	}
	if got := pcpRequest(local6, nonce{}, 7, 0, netip.AddrPort{}); netip.AddrFrom16([16]byte(got[44:])) != netip.IPv6Unspecified() {
		t.Errorf("any address of IPv6 is %x", got[44:])
	}
	for text, want := range map[string]answer{
		"008000000000002acb007101": {op: 0, epoch: 42, external: netip.MustParseAddrPort("203.0.113.1:0")},
		"008100000000002a0007000900000e10": {
			op: 1, epoch: 42, internal: 7, external: netip.AddrPortFrom(netip.Addr{}, 9), lifetime: 3600,
		},
		"0082000100000000": {op: 2, result: 1},
		"0281000000000e100000002a000000000000000000000000" + "010000000000000000000002" + "11000000" +
			"0007000900000000000000000000ffffcb007101": {
			version: 2, op: 1, epoch: 42, internal: 7, lifetime: 3600, nonce: nonce{1, 11: 2},
			external: netip.MustParseAddrPort("203.0.113.1:9"),
		},
		"02800000000000000000000700000000000000000000": {}, "02810000000000000000000700000000": {}, "0380000000000000": {}, "": {},
		"0000000000000000": {}, "0080000000000000": {},
	} {
		b, _ := hex.DecodeString(text) // hex of odd length is rejected as well
		a, err := parseAnswer(b)
		if a != want || (err == nil) != (want != answer{}) {
			t.Errorf("%s: %+v, %v", text, a, err)
		}
	}
}

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range []answer{{result: 1}, {result: 2}, {result: 4}, {version: 2, result: 11}, {result: 99}} {
		seen[a.reason()] = true
	}
	if len(seen) != 5 || (answer{version: 2, result: 8}).reason() != (answer{result: 4}).reason() {
		t.Errorf("%v", seen)
	}
}

// A router whose clock keeps pace with ours, within a sixteenth and some seconds, has kept its state.
func TestClock(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for _, c := range []struct {
		ours   time.Duration
		theirs int
		back   bool
	}{{100, 100, false}, {100, 95, false}, {100, 107, false}, {100, 90, true}, {100, 120, true}, {0, -1, false}, {0, -2, true}, {3600, 5, true}} {
		k := clock{1000, now}
		if got := k.wentBack(now.Add(c.ours*time.Second), uint32(1000+c.theirs)); got != c.back {
			t.Errorf("%d s here, %d s there: %v", c.ours, c.theirs, got)
		}
	}
	if k := (clock{}); k.wentBack(now, 5) {
		t.Error("the first answer")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x80\x00\x00\x00\x00\x00\x2a\xcb\x00\x71\x01"))
	f.Add(append([]byte{2, 0x81}, make([]byte, 58)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAnswer(b)
		if err == nil && (a.version != versionNATPMP && a.version != versionPCP || a.reason() == "") {
			t.Fatalf("%+v", a)
		}
		// No single answer, whatever it contains, leads a machine to an unsolicited state.
		now := time.Unix(1_000_000, 0)
		for _, start := range []Start{{Gateway: router, Local: local, Port: 7}, {Gateway: router6, Local: local6, Port: 7}} {
			m := NewMachine([32]byte{1})
			m.Step(now, start)
			if err == nil && a.version == versionPCP && a.nonce != (nonce{}) {
				m.nonce = a.nonce // as if it were the gateway's answer
			}
			for range 2 {
				for _, e := range m.Step(now, Received{netip.AddrPortFrom(start.Gateway, controlPort), b}) {
					if s, ok := e.(Send); ok && s.To.Addr() != start.Gateway {
						t.Fatalf("sends to %s", s.To)
					}
					c, ok := e.(Changed)
					if !ok || !c.State.External.IsValid() {
						continue
					}
					same := c.State.External.Addr().Is4() == start.Gateway.Is4()
					if !usable(c.State.External) || !same || (a.version == versionPCP && a.nonce != m.nonce) {
						t.Fatalf("%+v", c)
					}
				}
			}
		}
	})
}

func FuzzUPnP(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/root.xml\r\n\r\n")
	f.Add(`<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>` +
		`<controlURL>/c</controlURL></service></serviceList></device></root>`)
	f.Add(`<Envelope><Body><GetExternalIPAddressResponse><NewExternalIPAddress>203.0.113.1</NewExternalIPAddress>` +
		`</GetExternalIPAddressResponse></Body></Envelope>`)
	f.Add(`<Envelope><Body><Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></Fault></Body></Envelope>`)
	f.Fuzz(func(t *testing.T, text string) {
		at := "http://" + router.String()
		own := func(u string) bool {
			rest, ok := strings.CutPrefix(u, at)
			return ok && (rest == "" || strings.ContainsAny(rest[:1], ":/?"))
		}
		if u, err := parseSearch([]byte(text), router); err == nil && !own(u) {
			t.Fatalf("location %q", u)
		}
		if s, err := parseDescription([]byte(text), at+"/x", router); err == nil && !own(s.control) {
			t.Fatalf("control %q", s.control)
		}
		if r, err := parseReply([]byte(text)); err == nil && (r.code < 0 || r.code > 999) {
			t.Fatalf("%+v", r)
		}
	})
}
