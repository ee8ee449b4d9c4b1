package cert_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// TestRelayRole checks that a relay is accepted only as the relay with its own id, and that nobody else is accepted as a relay
// except a coordinator, which may have an embedded relay.
func TestRelayRole(t *testing.T) {
	w := newWorld(t)
	node := w.issue(t)
	w.node.Relay = true
	relay := w.issue(t)
	at := start.Add(time.Minute)
	v := w.verifier(t)
	if err := v.Relay(w.chain(relay), w.node.ID, at); err != nil {
		t.Error(err)
	}
	if err := v.Relay(w.chain(w.issueCoordinator(t)), w.node.ID, at); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"a node as a relay":        v.Relay(w.chain(node), w.node.ID, at),
		"a relay as another":       v.Relay(w.chain(relay), w.node.ID+1, at),
		"a relay as a node":        second(v.Node(relay, at)),
		"a relay as a coordinator": second(v.Coordinator(w.chain(relay), at)),
	} {
		if !errors.Is(err, cert.ErrRole) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := v.Relay(w.chain(relay), w.node.ID, start.Add(2*time.Hour)); !errors.Is(err, cert.ErrExpired) {
		t.Errorf("a relay out of its time: %v", err)
	}
	n, err := v.PeerNode(w.chain(relay), at)
	if err != nil || !n.Relay || n.ID != w.node.ID {
		t.Errorf("to a coordinator: %+v, %v", n, err)
	}
	if n, err := v.Member(node, at); err != nil || n.Relay {
		t.Errorf("a node: %+v, %v", n, err)
	}
}

func second[T any](_ T, err error) error { return err }
