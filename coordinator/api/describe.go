package api

import (
	"time"

	"github.com/redoubt-mesh/redoubt/acl"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// The states of a node.
const (
	NodeActive  = "active"
	NodeRevoked = "revoked"
)

func (a *Admin) token(t *directory.Token) *redoubtv1.Token {
	return &redoubtv1.Token{
		Id: t.ID, Tags: t.Tags, User: t.User, Reusable: t.Reusable, Ephemeral: t.Ephemeral,
		Created: t.Created.Unix(), Expires: t.Expires.Unix(), Uses: t.Uses, State: t.State(a.Clock()),
	}
}

func (a *Admin) node(snap *directory.Snapshot, n *directory.Node) *redoubtv1.Node {
	live, _ := a.Directory.Live(n.ID)
	out := &redoubtv1.Node{
		Id: n.ID.String(), Name: n.Name, User: n.User.Name, Tags: n.Tags, State: NodeActive, Connected: live.Connected,
		Created: n.Created.Unix(), LastSeen: seconds(live.LastSeen), CertificateExpires: seconds(n.Certificate.NotAfter),
		Program: live.Program, Os: live.OS, Arch: live.Arch, TokenId: n.Token, Ephemeral: n.Ephemeral, Attestation: n.Level.String(),
		NodePublic: n.Key.String(), DevicePublic: n.Device.String(), CertificateSequence: n.Certificate.Sequence,
	}
	if n.Revoked != nil {
		out.State = NodeRevoked
	}
	for _, x := range n.Addrs.Slice() {
		out.Addresses = append(out.Addresses, x.String())
	}
	for _, e := range snap.Endpoints(n.ID) {
		out.Endpoints = append(out.Endpoints, e.Addr.String())
	}
	if v := a.Hub.Applied(n.ID); !v.IsZero() {
		out.AppliedVersion = v.String()
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
