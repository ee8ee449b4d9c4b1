package agent

import (
	"context"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Underlay tells what is known of the network below the mesh.
func (a *Agent) Underlay(ctx context.Context) (*redoubtv1.UnderlayResponse, error) {
	u := &redoubtv1.UnderlayResponse{}
	err := a.call(ctx, func() {
		for _, r := range a.loop.machine.Relays() {
			x := &redoubtv1.UnderlayRelay{Name: r.Name, Region: r.Region, UdpPort: uint32(r.UDPPort), Urls: r.URLs}
			for _, ip := range r.UDP {
				x.Udp = append(x.Udp, ip.String())
			}
			u.Relays = append(u.Relays, x)
		}
		if p := a.loop.path; p != nil {
			for _, ip := range p.local {
				u.Local = append(u.Local, ip.String())
			}
			found := p.steering.scout.Report()
			for _, o := range found.Outside() {
				u.Outside = append(u.Outside, o.String())
			}
			if a.cfg.Edges.Router != nil {
				u.Router = &redoubtv1.UnderlayRouter{Protocol: string(found.Router.Protocol), Problem: found.Router.Problem}
				if found.Router.Gateway.IsValid() {
					u.Router.Gateway = found.Router.Gateway.String()
				}
				if found.Router.External.IsValid() {
					u.Router.External = found.Router.External.String()
				}
			}
		}
	})
	return u, err
}
