package agenttest

import (
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestWhy checks that what a node says about a connection is what happens to it, at both ends.
func TestWhy(t *testing.T) {
	t.Parallel()
	inBubble(t, func(m *mesh) {
		a, b := m.Join("a", user("ann@example.com")), m.Join("b", tags("tag:db"))
		b.Listen(22, 80)
		m.Policy(`{
			"tagOwners": {"tag:db": []},
			"grants": [
				{"src": ["ann@example.com"], "dst": ["tag:db"], "ip": ["tcp:22", "icmp:*"]},
			],
		}`)
		ask := func(n *node, r *redoubtv1.WhyRequest) *redoubtv1.WhyResponse {
			m.Helper()
			w, err := n.agent.Why(m.Context(), r)
			if err != nil {
				m.Fatal(err)
			}
			return w
		}
		for _, port := range []uint16{22, 80} {
			c, err := a.Connect(b.V4(), port)
			passes := err == nil
			if passes {
				c.Close()
			}
			for _, w := range []*redoubtv1.WhyResponse{
				ask(a, &redoubtv1.WhyRequest{Destination: "b", Protocol: proto.ProtoTCP, Port: uint32(port)}),
				ask(a, &redoubtv1.WhyRequest{Destination: b.V4().String(), Source: "a", Protocol: proto.ProtoTCP, Port: uint32(port)}),
				ask(b, &redoubtv1.WhyRequest{Destination: "b", Source: "a", Protocol: proto.ProtoTCP, Port: uint32(port)}),
			} {
				if w.GetAllowed() != passes {
					m.Errorf("it passes: %v; %v", passes, w)
				}
				rule := w.GetRule()
				if !passes {
					rule = w.GetNearest()
				}
				if rule.GetPath() != "grants[0]" || rule.GetLine() != 4 || w.GetFrom() != "a" || w.GetTo() != "b" {
					m.Errorf("%v", w)
				}
			}
		}
		if w := ask(a, &redoubtv1.WhyRequest{Destination: b.V6().String()}); w.GetAllowed() || w.GetService() != "icmpv6" {
			m.Errorf("%v", w)
		}
		if w := ask(a, &redoubtv1.WhyRequest{Destination: "b"}); !w.GetAllowed() || w.GetService() != "icmp" {
			m.Errorf("%v", w)
		}
		if w := ask(b, &redoubtv1.WhyRequest{Destination: "a"}); w.GetAllowed() || w.GetDirection() != "out" || w.GetReason() == "" {
			m.Errorf("%v", w)
		}
		if w := ask(a, &redoubtv1.WhyRequest{Destination: "192.0.2.9"}); w.GetAllowed() || !strings.Contains(w.GetReason(), "no peer") {
			m.Errorf("%v", w)
		}
		for _, r := range []*redoubtv1.WhyRequest{
			{Destination: "nobody"},
			{Destination: "a"},
			{Destination: "b", Source: "b"},
			{Destination: a.V4().String(), Source: b.V6().String()},
		} {
			if w, err := a.agent.Why(m.Context(), r); err == nil {
				m.Errorf("%v is answered: %v", r, w)
			}
		}
		a.agent.Down(m.Context())
		if w := ask(a, &redoubtv1.WhyRequest{Destination: a.V4().String(), Source: b.V4().String()}); w.GetAllowed() || w.GetReason() != "no policy is in force" {
			m.Errorf("down: %v", w)
		}
	})
}
