package compile

import (
	"slices"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/proto"
)

// NodeAttrs returns the attributes that the policy gives a node, sorted, and the application capabilities it grants the node.
func (b *Bound) NodeAttrs(id proto.NodeID) (attrs []string, app []proto.Capability) {
	n, ok := b.node(id)
	if !ok || b.prog.policy == nil {
		return nil, nil
	}
	for _, a := range b.prog.policy.NodeAttrs {
		if slices.ContainsFunc(a.Target, func(s acl.Selector) bool { return b.selects(s, n) }) {
			attrs = append(attrs, a.Attrs...)
			app = append(app, capabilities(a.App)...)
		}
	}
	slices.Sort(attrs)
	return slices.Compact(attrs), joinCapabilities(app)
}

// joinCapabilities sorts capabilities by name and merges those with the same name.
func joinCapabilities(in []proto.Capability) []proto.Capability {
	slices.SortStableFunc(in, func(a, b proto.Capability) int {
		switch {
		case a.Name < b.Name:
			return -1
		case a.Name > b.Name:
			return 1
		}
		return 0
	})
	var out []proto.Capability
	for _, c := range in {
		if n := len(out); n > 0 && out[n-1].Name == c.Name {
			out[n-1].Values = append(slices.Clone(out[n-1].Values), c.Values...)
			continue
		}
		out = append(out, c)
	}
	return out
}
