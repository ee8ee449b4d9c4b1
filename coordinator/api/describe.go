package api

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/proto"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// States of a node.
const (
	NodeActive      = "active"
	NodeQuarantined = "quarantined"
	NodeRevoked     = "revoked"
	NodeLocked      = "locked"
)

// Sources of a fact.
const (
	FactReported = "reported" // by the node itself
	FactAttested = "attested" // proved to the coordinator by the node's machine
	FactCustom   = "custom"   // by an administrator
)

func (a *Admin) token(t *directory.Token) *redoubtv1.Token {
	replace := ""
	if t.Replace != 0 {
		replace = t.Replace.String()
	}
	return &redoubtv1.Token{
		Replace: replace,
		Id:      t.ID, Tags: t.Tags, User: t.User, Reusable: t.Reusable, Ephemeral: t.Ephemeral, Relay: t.Relay,
		Created: t.Created.Unix(), Expires: t.Expires.Unix(), Uses: t.Uses, State: t.State(a.Clock()),
	}
}

func (a *Admin) node(snap *directory.Snapshot, n *directory.Node) *redoubtv1.Node {
	live, _ := a.Directory.Live(n.ID)
	out := &redoubtv1.Node{
		Id: n.ID.String(), Name: n.Name, User: n.User.Name, Tags: n.Tags, State: NodeActive, Connected: live.Connected,
		Created: n.Created.Unix(), LastSeen: seconds(live.LastSeen), CertificateExpires: seconds(n.Certificate.NotAfter),
		Program: live.Program, Os: live.OS, Arch: live.Arch, TokenId: n.Token, Ephemeral: n.Ephemeral, Relay: n.Relay, Attestation: n.Level.String(),
		NodePublic: n.Key.String(), DevicePublic: n.Device.String(), CertificateSequence: n.Certificate.Sequence,
		Attested: attestation(n),
	}
	out.Verdict = verdict(n.Verdict)
	if err := a.Directory.Renewable(snap, n); err != nil && !n.Barred() {
		out.Withheld = withheld(err)
	}
	if q := n.Quarantine; q != nil {
		out.State, out.Quarantine = NodeQuarantined, &redoubtv1.Quarantine{Since: seconds(q.At), Reason: q.Why}
	}
	switch {
	case n.Revoked != nil:
		out.State = NodeRevoked
		out.Barring = &redoubtv1.Barring{At: seconds(n.Revoked.At), By: n.Revoked.By, Reason: n.Revoked.Reason}
	case n.Lock != nil:
		out.State, out.Lock, out.Barring = NodeLocked, n.Lock.ID, barring(n)
	}
	if !n.Next.IsZero() {
		out.NextNodePublic, out.NextNodeFrom = n.Next.String(), seconds(n.NextFrom)
	}
	for _, x := range n.Addrs.Slice() {
		out.Addresses = append(out.Addresses, x.String())
	}
	for _, e := range snap.Reach(n.ID).Endpoints {
		out.Endpoints = append(out.Endpoints, e.Addr.String())
	}
	known := snap.Known(n.ID)
	for _, f := range known.Facts {
		out.Facts = append(out.Facts, fact(f))
	}
	out.Routes = routes(known.Advertised, known.Approved)
	if served := a.served(snap, n.ID, out.GetRoutes()); len(served) > 0 {
		for _, r := range out.GetRoutes() {
			r.ApprovedPolicy = !r.GetApproved() && slices.ContainsFunc(served, func(p netip.Prefix) bool { return p.String() == r.GetPrefix() })
		}
	}
	if v := a.Hub.Applied(n.ID); !v.IsZero() {
		out.AppliedVersion = v.String()
	}
	return out
}

// barring describes the lock that holds a node.
func barring(n *directory.Node) *redoubtv1.Barring {
	l := n.Lock
	subject := strings.TrimPrefix(l.Subject, "tag:")
	if l.Kind == directory.LockNode || l.Kind == directory.LockDevice {
		subject = n.Name
	}
	return &redoubtv1.Barring{At: seconds(l.Created), By: l.By, Reason: l.Reason, About: l.Kind + " " + subject, Ends: seconds(l.Expires)}
}

// fact describes a fact and its source.
func fact(f directory.Fact) *redoubtv1.Fact {
	out := &redoubtv1.Fact{
		Name: f.Name, Value: f.Value, Set: seconds(f.Set), Expires: seconds(f.Expires), TtlSeconds: uint64(f.TTL / time.Second),
	}
	switch f.Source {
	case directory.SourceNode:
		out.Source = FactReported
	case directory.SourceCoordinator:
		out.Source = FactAttested
	default:
		out.Source, out.By = FactCustom, f.Source
	}
	return out
}

// attestation describes what the node's machine proved about itself.
func attestation(n *directory.Node) *redoubtv1.Attestation {
	a := &n.Attestation
	return &redoubtv1.Attestation{
		Level: n.Level.String(), Highest: a.Highest.String(), Kind: a.Kind, Device: a.Device, Since: seconds(a.Since),
		Checked: seconds(n.Checked()), Selectors: a.Selectors, Checks: a.Checks, Lapse: a.Lapse,
	}
}

// served returns the approved routes, whether approved by hand or by the policy.
func (a *Admin) served(snap *directory.Snapshot, id proto.NodeID, offered []*redoubtv1.Route) []netip.Prefix {
	if len(offered) == 0 {
		return nil
	}
	return a.Hub.Source().Program.On(snap).Approved(id)
}

// routes returns the routes that a node offers or that were approved for it, sorted.
func routes(advertised, approved []netip.Prefix) []*redoubtv1.Route {
	all := slices.Concat(advertised, approved)
	slices.SortFunc(all, proto.ComparePrefix)
	var out []*redoubtv1.Route
	for _, p := range slices.Compact(all) {
		out = append(out, &redoubtv1.Route{Prefix: p.String(), Advertised: slices.Contains(advertised, p), Approved: slices.Contains(approved, p)})
	}
	return out
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func diagnostics(in acl.Diagnostics) []*redoubtv1.Diagnostic {
	out := make([]*redoubtv1.Diagnostic, len(in))
	for i, d := range in {
		out[i] = &redoubtv1.Diagnostic{Error: d.Severity == acl.Error, Line: uint32(d.Line), Column: uint32(d.Column), Path: d.Path, Message: d.Message}
	}
	return out
}
