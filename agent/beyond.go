package agent

import (
	"fmt"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/netstack/osnet"
	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// network returns the configuration that a data path needs of the host's network.
func (a *Agent) network(p *dataPath) osnet.Config {
	b := a.loop.beyond
	return osnet.Config{
		Interface: p.name, Addrs: p.self.Node.Addrs, Mesh: p.self.Record.Mesh, MTU: tun.DefaultMTU,
		Routes: b.Routes,
		Exit:   osnet.Exit{On: b.Exit.On, V4: b.Exit.V4, V6: b.Exit.V6, LAN: b.Exit.LAN},
		Serve:  osnet.Serve{Routes: b.Serves, SNAT: !b.PlainSource},
	}
}

// lead brings the host's network in line with the routes beyond the mesh.
func (a *Agent) lead(e machine.Lead) error {
	a.loop.beyond = e.Beyond
	p := a.loop.path
	if p == nil {
		return nil
	}
	if err := a.cfg.Edges.Network.Up(a.network(p)); err != nil {
		return err
	}
	a.look()
	return nil
}

// changed applies a requested change to the routing settings.
func changed(was state.Routing, c *redoubtv1.RoutingChange) (*state.Routing, error) {
	if c == nil {
		return nil, nil
	}
	if c.Advertise != nil {
		list := c.GetAdvertise().GetPrefixes()
		if len(list) > proto.MaxRoutes {
			return nil, fmt.Errorf("%d advertised routes: at most %d", len(list), proto.MaxRoutes)
		}
		was.Advertise = nil
		for _, text := range list {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				return nil, fmt.Errorf("advertised route %.60q: want a network such as 10.33.0.0/16", text)
			}
			was.Advertise = append(was.Advertise, p)
		}
	}
	set := func(to *bool, from *bool) {
		if from != nil {
			*to = *from
		}
	}
	set(&was.AdvertiseExit, c.AdvertiseExitNode)
	set(&was.Accept, c.Accept)
	if c.ExitNode != nil {
		was.Exit = strings.TrimSpace(c.GetExitNode())
		was.ExitLAN = was.ExitLAN && was.Exit != ""
	}
	set(&was.ExitLAN, c.ExitNodeAllowLan)
	if c.Snat != nil {
		was.PlainSource = !c.GetSnat()
	}
	return &was, was.Check(proto.Mesh{})
}

// wrong marks an error as the caller's.
func wrong(err error) error { return &localapi.Error{Code: connect.CodeInvalidArgument, Err: err} }

// notYet tells a user who has not decided about accepting routes how many are waiting for that; empty if none are.
func notYet(v machine.RoutingView) string {
	n := 0
	for _, r := range v.Routes {
		if r.Prefix.Bits() > 0 && !r.Used {
			n++
		}
	}
	if v.Accept || n == 0 {
		return ""
	}
	return fmt.Sprintf("peers serve %d networks that this machine does not use: to use them, run `redoubt up --accept-routes`", n)
}

func routing(v machine.RoutingView) *redoubtv1.Routing {
	out := &redoubtv1.Routing{Snat: v.SNAT, Accept: v.Accept}
	for _, o := range v.Offered {
		out.Offered = append(out.Offered, &redoubtv1.OfferedRoute{Prefix: o.Prefix.String(), Served: o.Served})
	}
	for _, r := range v.Routes {
		out.Routes = append(out.Routes, &redoubtv1.PeerRoute{
			Prefix: r.Prefix.String(), PeerId: r.Peer.ID.String(), PeerName: r.Peer.Name, Used: r.Used,
		})
	}
	if e := v.Exit; e != nil {
		out.ExitNode = &redoubtv1.ExitNode{Wanted: e.Wanted, Ipv4: e.V4, Ipv6: e.V6, AllowLan: e.LAN}
		if e.Peer != nil {
			out.ExitNode.PeerId, out.ExitNode.PeerName = e.Peer.ID.String(), e.Peer.Name
		}
	}
	return out
}

// offers returns the routes to announce to the coordinator. The control client calls it from its own goroutine.
func (a *Agent) offers() []netip.Prefix {
	if p := a.offered.Load(); p != nil {
		return *p
	}
	return nil
}
