package portmap

import (
	"net/netip"
	"testing"
	"time"
)

// A slow router that speaks only NAT-PMP and UPnP rejects each repetition of the PCP request. Only the first answer says something
// new: the later ones, and those to what nobody asked, do not keep NAT-PMP from being used.
func TestSlowNATPMP(t *testing.T) {
	m, now := NewMachine([32]byte{1}), time.Unix(1_000_000, 0)
	from := netip.AddrPortFrom(router, controlPort)
	var state State
	step := func(e Event) (sends, fetches int) {
		for _, x := range m.Step(now, e) {
			switch x := x.(type) {
			case Send:
				sends++
			case Fetch:
				fetches++
			case Changed:
				state = x.State
			}
		}
		return sends, fetches
	}
	step(Start{Gateway: router, Local: local, Port: 7})
	step(Received{netip.AddrPortFrom(router, 1900), []byte("HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/\r\n\r\n")})
	now = m.next
	step(Tick{})
	rejected := []byte{versionNATPMP, response | opMap, 0, resultVersion, 0, 0, 0, 42}
	if sends, _ := step(Received{from, rejected}); sends != 2 {
		t.Errorf("%d requests by NAT-PMP", sends)
	}
	for _, late := range [][]byte{rejected, {versionNATPMP, response | 2, 0, resultRefused, 0, 0, 0, 42}} {
		if sends, fetches := step(Received{from, late}); sends != 0 || fetches != 0 {
			t.Errorf("after %x: %d requests, %d by UPnP", late, sends, fetches)
		}
	}
	step(Received{from, append([]byte{versionNATPMP, response | opAnnounce, 0, 0, 0, 0, 0, 42}, 203, 0, 113, 1)})
	step(Received{from, append([]byte{versionNATPMP, response | opMap, 0, 0, 0, 0, 0, 42}, 0, 7, 0, 9, 0, 0, 14, 16)})
	if state.Protocol != NATPMP || state.External != netip.MustParseAddrPort("203.0.113.1:9") {
		t.Errorf("%+v", state)
	}
	// What it refuses by NAT-PMP, it may grant by UPnP.
	step(Stop{})
	step(Start{Gateway: router, Local: local, Port: 7})
	step(Received{netip.AddrPortFrom(router, 1900), []byte("HTTP/1.1 200 OK\r\nLocation: http://192.168.1.1:5000/\r\n\r\n")})
	step(Received{from, rejected})
	if _, fetches := step(Received{from, []byte{versionNATPMP, response | opMap, 0, resultRefused, 0, 0, 0, 42}}); fetches != 1 {
		t.Errorf("%d requests by UPnP", fetches)
	}
}
