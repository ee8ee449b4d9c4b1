package compile

import "github.com/redoubt-mesh/redoubt/proto"

// Outage is what the policy says of times without a coordinator, and of what it says nothing, the mesh's own.
func (p *Program) Outage(mesh proto.Outage) proto.Outage {
	if p.policy == nil {
		return mesh
	}
	if g := p.policy.Outage.Grace; g != nil {
		mesh.Grace = *g
	}
	if t := p.policy.Outage.Posture; t != nil {
		mesh.Posture = *t
	}
	mesh.Posture = min(mesh.Posture, mesh.Grace)
	return mesh
}
