package wire

import (
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// maxUnix is the latest time allowed, in Unix seconds: the end of the year 9999.
const maxUnix = 253402300799

func fromIDs(ids []proto.NodeID) []uint64 {
	return each(ids, func(id proto.NodeID) uint64 { return uint64(id) })
}

func toIDs(ids []uint64) []proto.NodeID {
	if len(ids) == 0 {
		return nil
	}
	return each(ids, func(id uint64) proto.NodeID { return proto.NodeID(id) })
}

func fromPeer(p *proto.Peer) *redoubtv1.Peer {
	return &redoubtv1.Peer{
		Id: uint64(p.ID), Certificate: p.Certificate, Endpoints: FromEndpoints(p.Endpoints), Routes: each(p.Routes, FromPrefix),
		PathKey: FromPathKey(p.PathKey), HomeRelay: uint64(p.HomeRelay),
	}
}

func toPeer(p *redoubtv1.Peer) (*proto.Peer, error) {
	reach, err := toReach(p)
	if err != nil {
		return nil, err
	}
	if len(p.GetRoutes()) > proto.MaxRoutes {
		return nil, malformed("%d routes, at most %d", len(p.GetRoutes()), proto.MaxRoutes)
	}
	routes, err := convert(p.GetRoutes(), ToPrefix)
	if err != nil {
		return nil, err
	}
	return &proto.Peer{ID: proto.NodeID(p.GetId()), Certificate: p.GetCertificate(), Reach: reach, Routes: routes}, known(p)
}

func fromBarred(b proto.Barred) *redoubtv1.Barred {
	return &redoubtv1.Barred{Id: uint64(b.ID), Sequence: b.Sequence}
}

func toBarred(b *redoubtv1.Barred) (proto.Barred, error) {
	return proto.Barred{ID: proto.NodeID(b.GetId()), Sequence: b.GetSequence()}, known(b)
}

func fromSet(s proto.Set) *redoubtv1.Set {
	return &redoubtv1.Set{Name: s.Name, Members: fromIDs(s.Members), Conditional: s.Conditional}
}

func toSet(s *redoubtv1.Set) (proto.Set, error) {
	return proto.Set{Name: s.GetName(), Members: toIDs(s.GetMembers()), Conditional: s.GetConditional()}, known(s)
}

// FromCapabilities encodes capabilities, which are for applications.
func FromCapabilities(in []proto.Capability) []*redoubtv1.Capability {
	return each(in, func(c proto.Capability) *redoubtv1.Capability {
		return &redoubtv1.Capability{Name: c.Name, Values: c.Values}
	})
}

func fromRule(r proto.Rule) *redoubtv1.Rule {
	out := &redoubtv1.Rule{
		Key: r.Key, OriginPath: r.Origin.Path, OriginLine: uint32(r.Origin.Line),
		Direction: redoubtv1.Rule_Direction(r.Direction),
		Peers:     &redoubtv1.Selector{Sets: r.Peers.Sets, Prefixes: each(r.Peers.Prefixes, FromPrefix)},
		Local:     each(r.Local, FromPrefix),
		Services:  fromServices(r.Services),
		Action:    redoubtv1.Rule_Action(r.Action + 1), Conditional: r.Conditional,
		App: FromCapabilities(r.App),
	}
	if !r.Until.IsZero() {
		out.UntilSeconds = r.Until.Unix()
	}
	return out
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
	case r.GetAction() < redoubtv1.Rule_ACTION_ALLOW || r.GetAction() > redoubtv1.Rule_ACTION_MONITOR:
		return proto.Rule{}, malformed("rule of action %d", r.GetAction())
	case r.GetUntilSeconds() < 0 || r.GetUntilSeconds() > maxUnix:
		return proto.Rule{}, malformed("rule that ends at %d", r.GetUntilSeconds())
	case len(r.GetApp()) > proto.MaxCapabilities:
		return proto.Rule{}, malformed("rule with %d capabilities", len(r.GetApp()))
	}
	if sel != nil {
		if err := known(sel); err != nil {
			return proto.Rule{}, err
		}
	}
	out := proto.Rule{
		Key: r.GetKey(), Origin: proto.Origin{Path: r.GetOriginPath(), Line: int(r.GetOriginLine())},
		Direction: proto.Direction(r.GetDirection()), Peers: proto.Selector{Sets: sel.GetSets()},
		Action: proto.Action(r.GetAction() - 1), Conditional: r.GetConditional(),
	}
	if s := r.GetUntilSeconds(); s != 0 {
		out.Until = time.Unix(s, 0).UTC()
	}
	var err error
	if out.Peers.Prefixes, err = convert(sel.GetPrefixes(), ToPrefix); err != nil {
		return proto.Rule{}, err
	}
	if out.Local, err = convert(r.GetLocal(), ToPrefix); err != nil {
		return proto.Rule{}, err
	}
	if out.Services, err = toServices(r.GetServices()); err != nil {
		return proto.Rule{}, err
	}
	if out.App, err = convert(r.GetApp(), toCapability); err != nil {
		return proto.Rule{}, err
	}
	return out, known(r)
}

func toCapability(c *redoubtv1.Capability) (proto.Capability, error) {
	return proto.Capability{Name: c.GetName(), Values: c.GetValues()}, known(c)
}

func toWithheld(w *redoubtv1.Withheld) (proto.Withheld, error) {
	r, err := toRule(w.GetRule())
	if err != nil {
		return proto.Withheld{}, err
	}
	return proto.Withheld{Rule: r, Reason: w.GetReason()}, known(w)
}

// fromServices encodes services. It merges consecutive protocols that include all their ports, as in a rule about everything,
// into one element.
func fromServices(list []proto.Service) []*redoubtv1.Service {
	var out []*redoubtv1.Service
	whole := func(s proto.Service) bool { return s.First == 0 && s.Last == 65535 }
	for i := 0; i < len(list); i++ {
		s := list[i]
		m := &redoubtv1.Service{Protocol: uint32(s.Proto), First: uint32(s.First), Last: uint32(s.Last)}
		ascends := i == 0 || list[i-1].Proto < s.Proto
		for ascends && whole(s) && i+1 < len(list) && whole(list[i+1]) && int(list[i+1].Proto) == int(list[i].Proto)+1 {
			i++
			m.LastProtocol = uint32(list[i].Proto)
		}
		out = append(out, m)
	}
	return out
}

func toServices(in []*redoubtv1.Service) ([]proto.Service, error) {
	var out []proto.Service
	for _, s := range in {
		p, last := s.GetProtocol(), max(s.GetProtocol(), s.GetLastProtocol())
		switch {
		case p > 255 || s.GetFirst() > 65535 || s.GetLast() > 65535 || s.GetFirst() > s.GetLast():
			return nil, malformed("service %d:%d-%d", p, s.GetFirst(), s.GetLast())
		case last > 255 || s.GetLastProtocol() != 0 && (s.GetLastProtocol() <= p || s.GetFirst() != 0 || s.GetLast() != 65535):
			return nil, malformed("services of protocols %d to %d", p, s.GetLastProtocol())
		case s.GetLastProtocol() != 0 && len(out) > 0 && uint32(out[len(out)-1].Proto) >= p:
			return nil, malformed("a range of protocols from %d after protocol %d", p, out[len(out)-1].Proto) // bounds out
		case len(out)+int(last-p) >= proto.MaxServices:
			return nil, malformed("rule with more than %d services", proto.MaxServices)
		}
		for ; p <= last; p++ {
			out = append(out, proto.Service{Proto: uint8(p), First: uint16(s.GetFirst()), Last: uint16(s.GetLast())})
		}
		if err := known(s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func fromWithheld(w proto.Withheld) *redoubtv1.Withheld {
	return &redoubtv1.Withheld{Rule: fromRule(w.Rule), Reason: w.Reason}
}

// fromHead encodes a head without its withheld rules.
func fromHead(h proto.Head) *redoubtv1.Head {
	return &redoubtv1.Head{
		Mesh: FromMesh(h.Mesh), Self: uint64(h.Self), Authorities: h.Authorities, Requires: h.Requires,
		OutageGraceSeconds: uint64(h.Outage.Grace / time.Second), OutagePostureSeconds: uint64(h.Outage.Posture / time.Second),
		Relays: each(h.Relays, FromRelay),
	}
}

func toHead(h *redoubtv1.Head) (*proto.Head, error) {
	if h.GetOutageGraceSeconds() > uint64(proto.MaxGrace/time.Second) {
		return nil, malformed("outage grace of %d s", h.GetOutageGraceSeconds())
	}
	if h.GetOutagePostureSeconds() > h.GetOutageGraceSeconds() {
		return nil, malformed("outage posture of %d s, longer than the grace", h.GetOutagePostureSeconds())
	}
	if len(h.GetAuthorities()) > proto.MaxAuthorities || len(h.GetRequires()) > proto.MaxRequires || len(h.GetWithheld()) > proto.MaxWithheld ||
		len(h.GetRelays()) > proto.MaxRelays {
		return nil, malformed("too many authorities, required features, withheld rules or relays")
	}
	mesh, err := ToMesh(h.GetMesh())
	if err != nil {
		return nil, err
	}
	withheld, err := convert(h.GetWithheld(), toWithheld)
	if err != nil {
		return nil, err
	}
	relays, err := convert(h.GetRelays(), ToRelay)
	if err != nil {
		return nil, err
	}
	return &proto.Head{
		Mesh: mesh, Self: proto.NodeID(h.GetSelf()), Authorities: h.GetAuthorities(), Requires: h.GetRequires(),
		Outage: proto.Outage{
			Grace:   time.Duration(h.GetOutageGraceSeconds()) * time.Second,
			Posture: time.Duration(h.GetOutagePostureSeconds()) * time.Second,
		},
		Withheld: withheld, Relays: relays,
	}, known(h)
}

func fromReachChange(c proto.ReachChange) *redoubtv1.ReachChange {
	return &redoubtv1.ReachChange{
		Id: uint64(c.ID), Endpoints: FromEndpoints(c.Endpoints), PathKey: FromPathKey(c.PathKey), HomeRelay: uint64(c.HomeRelay),
	}
}

func toReachChange(c *redoubtv1.ReachChange) (proto.ReachChange, error) {
	reach, err := toReach(c)
	if err != nil {
		return proto.ReachChange{}, err
	}
	return proto.ReachChange{ID: proto.NodeID(c.GetId()), Reach: reach}, known(c)
}

func fromSetChange(c proto.SetChange) *redoubtv1.SetChange {
	return &redoubtv1.SetChange{Name: c.Name, Add: fromIDs(c.Add), Remove: fromIDs(c.Remove)}
}

func toSetChange(c *redoubtv1.SetChange) (proto.SetChange, error) {
	return proto.SetChange{Name: c.GetName(), Add: toIDs(c.GetAdd()), Remove: toIDs(c.GetRemove())}, known(c)
}

// reachable is a message that says how a node can be reached.
type reachable interface {
	GetEndpoints() []*redoubtv1.Endpoint
	GetPathKey() *redoubtv1.PathKey
	GetHomeRelay() uint64
}

func toReach(m reachable) (r proto.Reach, err error) {
	if r.Endpoints, err = toEndpoints(m.GetEndpoints()); err != nil {
		return r, err
	}
	r.PathKey, err = toPathKey(m.GetPathKey())
	r.HomeRelay = proto.NodeID(m.GetHomeRelay())
	return r, err
}

// FromPathKey encodes a path key, which may be nil.
func FromPathKey(k *proto.PathKey) *redoubtv1.PathKey {
	if k == nil {
		return nil
	}
	return &redoubtv1.PathKey{Public: k.Public[:], Boot: k.Boot, Signature: k.Signature}
}

func toPathKey(k *redoubtv1.PathKey) (*proto.PathKey, error) {
	if k == nil {
		return nil, nil
	}
	if len(k.GetPublic()) != proto.PathKeySize || len(k.GetSignature()) > proto.MaxSignature {
		return nil, malformed("path key of %d bytes, signed by %d", len(k.GetPublic()), len(k.GetSignature()))
	}
	return &proto.PathKey{Public: [proto.PathKeySize]byte(k.GetPublic()), Boot: k.GetBoot(), Signature: k.GetSignature()}, known(k)
}

// FromNodes encodes a list of node ids.
func FromNodes(ids []proto.NodeID) []uint64 { return fromIDs(ids) }

// ToNodes decodes a list of node ids.
func ToNodes(ids []uint64) []proto.NodeID { return toIDs(ids) }

// FromRelay encodes a relay.
func FromRelay(r proto.Relay) *redoubtv1.Relay {
	return &redoubtv1.Relay{
		Id: uint64(r.ID), Name: r.Name, Region: r.Region, Key: r.Key[:], UdpPort: uint32(r.UDPPort), Urls: r.URLs,
		Udp: each(r.UDP, func(a netip.Addr) []byte { return a.AsSlice() }),
	}
}

// ToRelay decodes a relay. The caller must still validate it.
func ToRelay(r *redoubtv1.Relay) (proto.Relay, error) {
	out := proto.Relay{ID: proto.NodeID(r.GetId()), Name: r.GetName(), Region: r.GetRegion(), UDPPort: uint16(r.GetUdpPort()), URLs: r.GetUrls()}
	if len(r.GetKey()) != proto.RelayKeySize || r.GetUdpPort() > 0xffff || len(r.GetUdp()) > proto.MaxRelayAddrs || len(r.GetUrls()) > proto.MaxRelayURLs {
		return out, malformed("relay %s", out.ID)
	}
	out.Key = [proto.RelayKeySize]byte(r.GetKey())
	for _, b := range r.GetUdp() {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return out, malformed("relay %s: an address of %d bytes", out.ID, len(b))
		}
		out.UDP = append(out.UDP, a)
	}
	return out, known(r)
}
