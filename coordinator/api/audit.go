package api

import (
	"cmp"
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

const (
	// defaultAudit is how many records are listed if the request gives no limit.
	defaultAudit = 50
	// auditChunk is about how many bytes of lines go into one message.
	auditChunk = 64 << 10
)

// ListAudit lists records of the audit log, newest first.
func (a *Admin) ListAudit(ctx context.Context, r *redoubtv1.ListAuditRequest) (*redoubtv1.ListAuditResponse, error) {
	q := directory.AuditQuery{Node: r.GetNode(), User: r.GetUser()}
	if s := r.GetSince(); s != 0 {
		q.Since = time.Unix(s, 0)
	}
	if n, ok := a.Directory.Snapshot().Find(r.GetNode()); ok && q.Node != "" {
		q.Node = n.ID.String() // the name may have belonged to another node before
	}
	list, err := a.Directory.Audit(ctx, r.GetBefore(), int(min(cmp.Or(r.GetLimit(), defaultAudit), audit.MaxPage)), q)
	if err != nil {
		return nil, a.fail(err)
	}
	out := &redoubtv1.ListAuditResponse{}
	for _, x := range list {
		out.Records = append(out.Records, &redoubtv1.AuditRecord{
			Number: x.Number, AtMs: x.At.UnixMilli(), By: x.By, From: x.From, Action: x.Action, Subject: x.Subject, Name: x.Name,
			User: x.User, Reason: x.Reason, Version: x.Version, Policy: x.Policy,
		})
	}
	return out, nil
}

// ExportAudit streams the audit log as stored, with what is needed to verify it.
func (a *Admin) ExportAudit(ctx context.Context, r *redoubtv1.ExportAuditRequest, out *connect.ServerStream[redoubtv1.ExportAuditResponse]) error {
	seals, last, err := a.Directory.AuditSeals(ctx)
	if err != nil {
		return a.fail(err)
	}
	if err := out.Send(&redoubtv1.ExportAuditResponse{Checkpoints: seals, Last: last}); err != nil {
		return err
	}
	m, size, sent := &redoubtv1.ExportAuditResponse{}, 0, r.GetAfter()
	flush := func() error {
		if size == 0 {
			return nil
		}
		err := out.Send(m)
		m, size = &redoubtv1.ExportAuditResponse{}, 0
		return err
	}
	for line, err := range a.Directory.AuditLines(ctx, r.GetAfter(), last, r.GetFollow()) {
		if err != nil {
			return a.fail(err)
		}
		m.Lines, size, sent = append(m.GetLines(), line), size+len(line), sent+1
		// Existing records go in large messages, later ones at once.
		if size >= auditChunk || sent >= last {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// GetCheckpoint returns the checkpoint of the newest record and the key that signs checkpoints.
func (a *Admin) GetCheckpoint(ctx context.Context, _ *redoubtv1.GetCheckpointRequest) (*redoubtv1.GetCheckpointResponse, error) {
	c, err := a.Directory.Checkpoint(ctx)
	if err != nil {
		return nil, a.fail(err)
	}
	line, err := c.Line()
	if err != nil {
		return nil, a.fail(err)
	}
	return &redoubtv1.GetCheckpointResponse{Line: line, Key: a.Directory.AuditKey()}, nil
}
