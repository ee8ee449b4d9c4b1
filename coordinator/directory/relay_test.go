package directory

import (
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
)

// TestARelayThatAttachedAgainStays checks that the end of a relay's earlier stream does not take it out of service.
func TestARelayThatAttachedAgainStays(t *testing.T) {
	r := newRig(t)
	n := r.enroll(machine(t, r.token(func(s *TokenSpec) { s.Tags, s.Relay = nil, true }), "relay"))
	relay := proto.Relay{ID: n.ID, Name: n.Name, Key: [proto.RelayKeySize]byte{1}, URLs: []string{"https://relay.example.com"}}
	if err := r.SetRelay(t.Context(), relay); err != nil {
		t.Fatal(err)
	}
	for _, connected := range []bool{true, false} {
		r.SetLive(n.ID, func(l *Live) { l.Connected = connected })
		if err := r.DropRelay(t.Context(), n.ID); err != nil {
			t.Fatal(err)
		}
		if there := len(r.Snapshot().Relays()) == 1; there != connected {
			t.Errorf("attached %v: in service %v", connected, there)
		}
	}
}
