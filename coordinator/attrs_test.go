package coordinator

import (
	"context"
	"slices"
	"testing"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// TestNodeAttributes checks that what the policy in force gives a node besides its rules is shown for that node only.
func TestNodeAttributes(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.join("web", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:a"}})
		r.join("db", &redoubtv1.CreateTokenRequest{Tags: []string{"tag:b"}})
		show := func(name string) *redoubtv1.Node {
			a, err := r.co.Admin().GetNode(context.Background(), &redoubtv1.GetNodeRequest{Node: name})
			if err != nil {
				t.Fatal(err)
			}
			return a.GetNode()
		}
		if n := show("web"); len(n.GetAttributes()) > 0 || len(n.GetApp()) > 0 {
			t.Errorf("without a policy: %v", n)
		}
		r.apply(`{"tagOwners": {"tag:a": [], "tag:b": []}, "grants": [], "nodeAttrs": [
			{"target": ["tag:a"], "attr": ["nextdns:abc", "funnel"]},
			{"target": ["tag:a"], "app": {"example.com/cap/x": [{"level": 3}]}}]}`)
		settle()
		n := show("web")
		if !slices.Equal(n.GetAttributes(), []string{"funnel", "nextdns:abc"}) {
			t.Errorf("attributes %v", n.GetAttributes())
		}
		if app := n.GetApp(); len(app) != 1 || app[0].GetName() != "example.com/cap/x" || !slices.Equal(app[0].GetValues(), []string{`{"level":3}`}) {
			t.Errorf("app %v", app)
		}
		if n := show("db"); len(n.GetAttributes()) > 0 || len(n.GetApp()) > 0 {
			t.Errorf("another node: %v", n)
		}
		r.apply(openPolicy)
		settle()
		if n := show("web"); len(n.GetAttributes()) > 0 || len(n.GetApp()) > 0 {
			t.Errorf("after the policy that gave them: %v", n)
		}
	})
}
