package agent

import (
	"context"

	"github.com/redoubt-mesh/redoubt/netstack/portmap"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Underlay describes the network below the mesh.
func (a *Agent) Underlay(ctx context.Context) (*redoubtv1.UnderlayResponse, error) {
	u := &redoubtv1.UnderlayResponse{}
	err := a.inspect(ctx, func() {
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
				u.Router = routerOf(found.Router)
			}
			if a.cfg.Edges.Router6 != nil {
				u.Router6 = routerOf(found.Router6)
			}
			u.Paths = a.measured(p)
		}
	})
	return u, err
}

// routerOf describes a router's state.
func routerOf(s portmap.State) *redoubtv1.UnderlayRouter {
	r := &redoubtv1.UnderlayRouter{Protocol: string(s.Protocol), Problem: s.Problem}
	if s.Gateway.IsValid() {
		r.Gateway = s.Gateway.String()
	}
	if s.External.IsValid() {
		r.External = s.External.String()
	}
	return r
}

// measured returns the paths in use whose MTU is known.
func (a *Agent) measured(p *dataPath) (paths []*redoubtv1.UnderlayPath) {
	stats, err := p.engine.Peers()
	if err != nil {
		a.log.Debug("engine's counters", "err", err)
		return nil
	}
	byID := make(map[proto.NodeID]wg.PeerStats, len(stats))
	for _, s := range stats {
		byID[s.ID] = s
	}
	known := a.loop.machine.View(a.time.Now()).Peers
	ids := make([]proto.NodeID, 0, len(known))
	for _, k := range known {
		ids = append(ids, k.Node.ID)
	}
	ways := p.ways(ids)
	for _, k := range known {
		if t := ways.of(byID[k.Node.ID]); t.mtu > 0 && t.kind != "" {
			paths = append(paths, &redoubtv1.UnderlayPath{
				Peer: k.Node.Name, Path: t.kind, Endpoint: t.endpoint, Mtu: uint32(t.mtu), Fragments: t.fragments,
			})
		}
	}
	return paths
}
