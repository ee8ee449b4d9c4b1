package compile

import "github.com/redoubt-mesh/redoubt/proto"

// Outage returns the policy's terms for outages of the coordinator, with the mesh's own for what the policy leaves unset.
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
