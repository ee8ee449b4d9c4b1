package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/flowlog"
	"github.com/redoubt-mesh/redoubt/agent/localapi"
	"github.com/redoubt-mesh/redoubt/agent/machine"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// party is one end of the connection that a question is about.
type party struct {
	node *cert.Node // nil: an address of no known node
	addr netip.Addr // the address that was named; zero if a name was
}

func (p party) name() string {
	if p.node == nil {
		return p.addr.String()
	}
	return p.node.Name
}

// at returns the party's address in a family.
func (p party) at(v6 bool) netip.Addr {
	switch {
	case p.node == nil:
		return p.addr
	case v6:
		return p.node.Addrs.V6
	}
	return p.node.Addrs.V4
}

// party finds the party that a name, ID or address means.
func (a *Agent) party(ctx context.Context, who string) (party, error) {
	addr, perr := netip.ParseAddr(who)
	addr = addr.Unmap().WithZone("")
	n, err := a.find(ctx, who)
	var e *localapi.Error
	switch {
	case err == nil:
		return party{n, addr}, nil
	case perr == nil && errors.As(err, &e) && e.Code == connect.CodeNotFound:
		return party{addr: addr}, nil
	}
	return party{}, err
}

// Why reports whether a connection from or to this node is allowed, and by which rule, or what is missing.
func (a *Agent) Why(ctx context.Context, r *redoubtv1.WhyRequest) (*redoubtv1.WhyResponse, error) {
	self, err := a.self(ctx)
	if err != nil {
		return nil, err
	}
	dst, err := a.party(ctx, r.GetDestination())
	var e *localapi.Error
	if errors.As(err, &e) && e.Code == connect.CodeNotFound && r.GetSource() == "" {
		return a.strange(ctx, self, r, err)
	}
	if err != nil {
		return nil, err
	}
	src := party{node: self}
	if r.GetSource() != "" {
		if src, err = a.party(ctx, r.GetSource()); err != nil {
			return nil, err
		}
	}
	us := func(p party) bool { return p.node != nil && p.node.ID == self.ID }
	q := machine.Question{Direction: proto.Out, Protocol: uint8(r.GetProtocol()), Port: uint16(r.GetPort())}
	here, there := src, dst
	switch {
	case us(src) && us(dst):
		return nil, &localapi.Error{Code: connect.CodeInvalidArgument, Err: errors.New(
			"both ends are this node: traffic to itself does not go through the mesh")}
	case us(src):
		q.Stranger = dst.node == nil
	case dst.node == nil || us(dst):
		q.Direction, here, there = proto.In, dst, src
	default:
		return nil, &localapi.Error{Code: connect.CodeInvalidArgument, Err: fmt.Errorf(
			"this node knows only connections from and to itself: ask on %s or on %s", src.name(), dst.name())}
	}
	v6, err := family(src, dst, q.Protocol)
	if err != nil {
		return nil, err
	}
	switch {
	case q.Protocol != 0 && q.Protocol != proto.ProtoICMP && q.Protocol != proto.ProtoICMPv6:
	case v6:
		q.Protocol = proto.ProtoICMPv6
	default:
		q.Protocol = proto.ProtoICMP
	}
	q.Local, q.Remote = here.at(v6), there.at(v6)
	if there.node != nil {
		q.Peer = there.node.ID
	}
	w := &redoubtv1.WhyResponse{
		Direction: q.Direction.String(), From: src.name(), To: dst.name(),
		Source: src.at(v6).String(), Destination: dst.at(v6).String(), Service: flowlog.Service(q.Protocol, q.Port),
	}
	return w, a.inspect(ctx, func() { a.answer(w, q) })
}

// strange answers for a destination of which this node knows nothing but the given name: what it could open there if it met
// the conditions of rules that are withheld. If there is no such rule, it returns the error unknown.
func (a *Agent) strange(ctx context.Context, self *cert.Node, r *redoubtv1.WhyRequest, unknown error) (*redoubtv1.WhyResponse, error) {
	q := machine.Question{
		Direction: proto.Out, Local: self.Addrs.V4, Stranger: true,
		Protocol: cmp.Or(uint8(r.GetProtocol()), proto.ProtoICMP), Port: uint16(r.GetPort()),
	}
	w := &redoubtv1.WhyResponse{
		Direction: q.Direction.String(), From: self.Name, To: r.GetDestination(),
		Source: q.Local.String(), Service: flowlog.Service(q.Protocol, q.Port), Reason: "no rule that is in force connects this node with one of that name",
	}
	err := a.inspect(ctx, func() {
		if v := a.program.Load().Version(); !v.IsZero() {
			w.PolicyVersion = v.String()
		}
		a.missing(w, q)
	})
	if err == nil && len(w.Missing) == 0 {
		err = unknown
	}
	if err != nil {
		return nil, err
	}
	return w, nil
}

// missing adds the rules that would allow the connection. It runs on the loop.
func (a *Agent) missing(w *redoubtv1.WhyResponse, q machine.Question) {
	for _, m := range a.loop.machine.Missing(q) {
		w.Missing = append(w.Missing, &redoubtv1.WhyRule{
			Path: m.Origin.Path, Line: int32(m.Origin.Line), Action: m.Action.String(), Missing: m.Reason,
		})
	}
}

// family reports whether two parties talk by IPv6: by the family of the addresses that were named, else IPv4.
func family(src, dst party, protocol uint8) (v6 bool, err error) {
	v6 = protocol == proto.ProtoICMPv6
	for _, p := range []party{src, dst} {
		if p.addr.IsValid() {
			v6 = p.addr.Is6()
		}
	}
	if src.addr.IsValid() && dst.addr.IsValid() && src.addr.Is6() != dst.addr.Is6() {
		return false, &localapi.Error{Code: connect.CodeInvalidArgument, Err: fmt.Errorf(
			"%v and %v are not of one address family", src.addr, dst.addr)}
	}
	return v6, nil
}

// answer asks the program in force and, if that says no, the netmap. It runs on the loop.
func (a *Agent) answer(w *redoubtv1.WhyResponse, q machine.Question) {
	p := a.program.Load()
	e := p.Explain(q.Direction, q.Local, q.Remote, q.Protocol, q.Port)
	w.Allowed = e.Pass
	if e.Reason != filter.Permitted {
		w.Reason = e.Reason.String()
	}
	if v := p.Version(); !v.IsZero() {
		w.PolicyVersion = v.String()
	}
	if e.Rule.Path != "" {
		w.Rule = &redoubtv1.WhyRule{Path: e.Rule.Path, Line: int32(e.Rule.Line), Action: e.Action.String()}
		if !e.Until.IsZero() {
			w.Rule.Until = e.Until.Unix()
		}
	}
	if e.Near.Path != "" {
		w.Nearest = &redoubtv1.WhyRule{Path: e.Near.Path, Line: int32(e.Near.Line), Action: proto.Allow.String()}
	}
	if e.Reason == filter.Permitted || e.Reason == filter.Forbidden {
		return
	}
	a.missing(w, q)
}

// self returns this node.
func (a *Agent) self(ctx context.Context) (n *cert.Node, err error) {
	err = a.inspect(ctx, func() { n = a.loop.machine.View(a.time.Now()).Node })
	if err == nil && n == nil {
		err = &localapi.Error{Code: connect.CodeFailedPrecondition, Err: machine.ErrNotEnrolled}
	}
	return n, err
}
