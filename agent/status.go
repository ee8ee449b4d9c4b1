package agent

import (
	"context"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// Status describes the node. What it returns is shared with other callers, and must not be changed.
func (a *Agent) Status(ctx context.Context) (*redoubtv1.Status, error) {
	return a.statuses.get(ctx, a.inspect, a.status)
}

func (a *Agent) status() *redoubtv1.Status {
	v := a.loop.machine.View(a.time.Now())
	c := a.filter.Counters()
	st := &redoubtv1.Status{
		State: string(v.State), Program: a.cfg.Program, MeshDomain: v.Mesh.Domain, Problems: v.Problems,
		Coordinator: &redoubtv1.Coordinator{Connected: v.Connected, Url: v.URL, LastHeard: millis(v.LastHeard)},
		Filter:      counters(c),
	}
	switch k := &a.loop.keys; {
	case !k.sealed.IsZero():
		st.DeviceKey = KeyTPM
	case !k.file.IsZero():
		st.DeviceKey = KeyFile
	}
	if v.Node != nil {
		st.Node = describe(v.Node)
	}
	if p := v.Pending; p != nil {
		st.Pending = &redoubtv1.PendingApproval{Code: p.Code, Name: p.Name, Since: p.Since.Unix()}
	}
	if !v.Version.IsZero() {
		st.PolicyVersion = v.Version.String()
	}
	var stats []wg.PeerStats
	if p := a.loop.path; p != nil {
		st.Interface = p.name
		st.Problems = append(st.Problems, a.loop.problems...)
		var err error
		var own wg.Stats
		var port uint16
		if stats, err = p.engine.Peers(); err == nil {
			own, err = p.engine.Stats()
		}
		if err == nil {
			port, err = p.engine.Port()
		}
		st.ListenPort, st.Wireguard = uint32(port), wireguard(own)
		if err != nil {
			st.Problems = append(st.Problems, "the engine does not answer: "+err.Error())
		}
	}
	st.Peers = a.peers(v.Peers, stats)
	st.Routing = routing(v.Routing)
	return st
}

func (a *Agent) peers(known []machine.PeerView, stats []wg.PeerStats) []*redoubtv1.LocalPeer {
	var w ways
	if p := a.loop.path; p != nil {
		ids := make([]proto.NodeID, 0, len(known))
		for _, k := range known {
			ids = append(ids, k.Node.ID)
		}
		w = p.ways(ids)
	}
	byID := make(map[proto.NodeID]wg.PeerStats, len(stats))
	for _, s := range stats {
		byID[s.ID] = s
	}
	denied := map[proto.NodeID]map[string]uint64{}
	for id, d := range a.filter.PeerDrops {
		denied[id] = dropsOf(d)
	}
	out := make([]*redoubtv1.LocalPeer, 0, len(known))
	for _, p := range known {
		n, s := describe(p.Node), byID[p.Node.ID]
		l := &redoubtv1.LocalPeer{
			Id: n.Id, Name: n.Name, Addresses: n.Addresses, User: n.User, Tags: n.Tags, CertificateExpires: n.CertificateExpires,
			LastHandshake: millis(s.LastHandshake), RxBytes: s.Rx, TxBytes: s.Tx, Tunnel: tunnel(s),
			Denied: denied[p.Node.ID],
		}
		w.of(s).status(l)
		out = append(out, l)
	}
	return out
}

func describe(n *cert.Node) *redoubtv1.LocalNode {
	l := &redoubtv1.LocalNode{
		Id: n.ID.String(), Name: n.Name, User: n.User.Name, Tags: n.Tags, CertificateExpires: n.NotAfter.Unix(),
		Attestation: n.Level.String(),
	}
	for _, a := range n.Addrs.Slice() {
		l.Addresses = append(l.Addresses, a.String())
	}
	return l
}

func counters(c filter.Counters) *redoubtv1.FilterCounters {
	f := &redoubtv1.FilterCounters{
		Flows: uint64(c.Flows), AllowedPackets: c.In.Packets + c.Out.Packets, Drops: dropsOf(&c.Dropped),
	}
	for _, n := range f.Drops {
		f.DeniedPackets += n
	}
	return f
}

// dropsOf returns the reasons that occurred, by their texts.
func dropsOf(d *filter.Drops) map[string]uint64 {
	m := map[string]uint64{}
	for r, n := range d.Each {
		m[r.String()] += n
	}
	return m
}

// millis returns t in Unix milliseconds; zero for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
