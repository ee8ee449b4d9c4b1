package control

import (
	"context"
	"errors"
	"net/netip"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	"github.com/redoubt-mesh/redoubt/coordinator/enroll"
	"github.com/redoubt-mesh/redoubt/coordinator/refusal"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// attest records what a renewal proved about the machine, before the certificate that states it is issued.
func (a *attached) attest(ctx context.Context, x enroll.Extend) error {
	if x.Again == nil && x.Lapse == "" {
		return nil
	}
	n, ok := a.Directory.Snapshot().Lookup(a.id)
	if !ok {
		return refusal.Deleted()
	}
	before := n.Level
	var err error
	if x.Again != nil {
		err = a.Directory.Attest(ctx, a.id, x.Again.Level, attested(n.Attestation.Kind, *x.Again), "")
	} else {
		err = a.Directory.Attest(ctx, a.id, n.Level, n.Attestation.Attested, x.Lapse)
	}
	if err != nil {
		return err
	}
	if n, ok := a.Directory.Snapshot().Lookup(a.id); ok && n.Level != before {
		a.Log.Info("attestation changed", "node", a.id, "name", n.Name, "attestation", n.Level, "before", before, "lapse", x.Lapse)
	}
	return nil
}

// noteRefusal records in the audit log why a machine with a join token was refused.
func (s *Server) noteRefusal(from netip.AddrPort, hello *redoubtv1.Hello, err error) {
	token, bad := key.ParseTokenPublic(hello.GetEnrol().GetTokenPublic())
	if err == nil || bad != nil || isTransport(err) {
		return
	}
	s.note(from, err, func(ctx context.Context) error {
		return s.Directory.Refuse(ctx, token, hello.GetHostname(), err.Error())
	})
}

// noteNodeRefusal records why a node was refused its next certificate.
func (s *Server) noteNodeRefusal(from netip.AddrPort, id proto.NodeID, err error) {
	s.note(from, err, func(ctx context.Context) error { return s.Directory.RefuseNode(ctx, id, err.Error()) })
}

func (s *Server) note(from netip.AddrPort, err error, write func(context.Context) error) {
	// Internal failures say nothing about the requester.
	if _, meant := refusal.From(err); !meant || s.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(directory.From(s.ctx, from.String()), step)
	defer cancel()
	if err := write(ctx); err != nil && !errors.Is(err, context.Canceled) {
		s.Log.Warn("a refusal is missing from the audit log", "err", err)
	}
}
