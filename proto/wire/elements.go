package wire

import (
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func fromIDs(ids []proto.NodeID) []uint64 {
	return each(ids, func(id proto.NodeID) uint64 { return uint64(id) })
}

func toIDs(ids []uint64) []proto.NodeID {
	if len(ids) == 0 {
		return nil
	}
	return each(ids, func(id uint64) proto.NodeID { return proto.NodeID(id) })
}

func fromPeer(p proto.Peer) *redoubtv1.Peer {
	return &redoubtv1.Peer{Id: uint64(p.ID), Certificate: p.Certificate, Endpoints: FromEndpoints(p.Endpoints)}
}

func toPeer(p *redoubtv1.Peer) (proto.Peer, error) {
	es, err := toEndpoints(p.GetEndpoints())
	if err != nil {
		return proto.Peer{}, err
	}
	return proto.Peer{ID: proto.NodeID(p.GetId()), Certificate: p.GetCertificate(), Endpoints: es}, known(p)
}

func fromSet(s proto.Set) *redoubtv1.Set {
	return &redoubtv1.Set{Name: s.Name, Members: fromIDs(s.Members)}
}

func toSet(s *redoubtv1.Set) (proto.Set, error) {
	return proto.Set{Name: s.GetName(), Members: toIDs(s.GetMembers())}, known(s)
}

func fromRule(r proto.Rule) *redoubtv1.Rule {
	return &redoubtv1.Rule{
		Key: r.Key, OriginPath: r.Origin.Path, OriginLine: uint32(r.Origin.Line),
		Direction: redoubtv1.Rule_Direction(r.Direction),
		Peers:     &redoubtv1.Selector{Sets: r.Peers.Sets, Prefixes: each(r.Peers.Prefixes, FromPrefix)},
		Local:     each(r.Local, FromPrefix),
		Services: each(r.Services, func(s proto.Service) *redoubtv1.Service {
			return &redoubtv1.Service{Protocol: uint32(s.Proto), First: uint32(s.First), Last: uint32(s.Last)}
		}),
	}
}

func toRule(r *redoubtv1.Rule) (proto.Rule, error) {
	sel := r.GetPeers()
	switch {
	case r.GetDirection() != redoubtv1.Rule_DIRECTION_IN && r.GetDirection() != redoubtv1.Rule_DIRECTION_OUT:
		return proto.Rule{}, malformed("rule of direction %d", r.GetDirection())
	case len(sel.GetSets()) > proto.MaxRuleSets, len(sel.GetPrefixes()) > proto.MaxRulePrefixes,
		len(r.GetLocal()) > proto.MaxRulePrefixes, len(r.GetServices()) > proto.MaxServices:
		return proto.Rule{}, malformed("rule with too many sets, prefixes or services")
	case r.GetOriginLine() > 1<<31-1:
		return proto.Rule{}, malformed("rule of line %d", r.GetOriginLine())
	}
	if sel != nil {
		if err := known(sel); err != nil {
			return proto.Rule{}, err
		}
	}
	out := proto.Rule{
		Key: r.GetKey(), Origin: proto.Origin{Path: r.GetOriginPath(), Line: int(r.GetOriginLine())},
		Direction: proto.Direction(r.GetDirection()), Peers: proto.Selector{Sets: sel.GetSets()},
	}
	var err error
	if out.Peers.Prefixes, err = convert(sel.GetPrefixes(), ToPrefix); err != nil {
		return proto.Rule{}, err
	}
	if out.Local, err = convert(r.GetLocal(), ToPrefix); err != nil {
		return proto.Rule{}, err
	}
	if out.Services, err = convert(r.GetServices(), toService); err != nil {
		return proto.Rule{}, err
	}
	return out, known(r)
}

func toService(s *redoubtv1.Service) (proto.Service, error) {
	if s.GetProtocol() > 255 || s.GetFirst() > 65535 || s.GetLast() > 65535 || s.GetFirst() > s.GetLast() {
		return proto.Service{}, malformed("service %d:%d-%d", s.GetProtocol(), s.GetFirst(), s.GetLast())
	}
	return proto.Service{Proto: uint8(s.GetProtocol()), First: uint16(s.GetFirst()), Last: uint16(s.GetLast())}, known(s)
}

func fromHead(h proto.Head) *redoubtv1.Head {
	return &redoubtv1.Head{
		Mesh: FromMesh(h.Mesh), Self: uint64(h.Self), Authorities: h.Authorities, Requires: h.Requires,
		OutageGraceSeconds: uint64(h.Outage.Grace / time.Second),
	}
}

func toHead(h *redoubtv1.Head) (*proto.Head, error) {
	if h.GetOutageGraceSeconds() > uint64(proto.MaxGrace/time.Second) {
		return nil, malformed("outage grace of %d s", h.GetOutageGraceSeconds())
	}
	if len(h.GetAuthorities()) > proto.MaxAuthorities || len(h.GetRequires()) > proto.MaxRequires {
		return nil, malformed("too many authorities or required features")
	}
	mesh, err := ToMesh(h.GetMesh())
	if err != nil {
		return nil, err
	}
	return &proto.Head{
		Mesh: mesh, Self: proto.NodeID(h.GetSelf()), Authorities: h.GetAuthorities(), Requires: h.GetRequires(),
		Outage: proto.Outage{Grace: time.Duration(h.GetOutageGraceSeconds()) * time.Second},
	}, known(h)
}

func fromEndpointsChange(c proto.EndpointsChange) *redoubtv1.EndpointsChange {
	return &redoubtv1.EndpointsChange{Id: uint64(c.ID), Endpoints: FromEndpoints(c.Endpoints)}
}

func toEndpointsChange(c *redoubtv1.EndpointsChange) (proto.EndpointsChange, error) {
	es, err := toEndpoints(c.GetEndpoints())
	if err != nil {
		return proto.EndpointsChange{}, err
	}
	return proto.EndpointsChange{ID: proto.NodeID(c.GetId()), Endpoints: es}, known(c)
}

func fromSetChange(c proto.SetChange) *redoubtv1.SetChange {
	return &redoubtv1.SetChange{Name: c.Name, Add: fromIDs(c.Add), Remove: fromIDs(c.Remove)}
}

func toSetChange(c *redoubtv1.SetChange) (proto.SetChange, error) {
	return proto.SetChange{Name: c.GetName(), Add: toIDs(c.GetAdd()), Remove: toIDs(c.GetRemove())}, known(c)
}
