package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// auditRecord is a record as JSON shows it.
type auditRecord struct {
	Number  uint64 `json:"number"`
	At      string `json:"at"`
	By      string `json:"by"`
	From    string `json:"from,omitempty"`
	Action  string `json:"action"`
	Subject string `json:"subject"`
	Name    string `json:"name,omitempty"`
	User    string `json:"user,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Version string `json:"version,omitempty"`
	Policy  uint64 `json:"policy,omitempty"`
}

func auditRecordOf(r *redoubtv1.AuditRecord) auditRecord {
	return auditRecord{
		Number: r.GetNumber(), At: time.UnixMilli(r.GetAtMs()).UTC().Format(time.RFC3339Nano), By: r.GetBy(), From: r.GetFrom(),
		Action: r.GetAction(), Subject: r.GetSubject(), Name: r.GetName(), User: r.GetUser(), Reason: r.GetReason(),
		Version: r.GetVersion(), Policy: r.GetPolicy(),
	}
}

func (p *program) audit() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Show and verify the audit log",
		Long: `The audit log records every change to what the mesh trusts: who made it, from
where, when and why. Each record contains the hash of the one before it.
Checkpoints, signed with DIR/pki/audit.key (public half: DIR/pki/audit.pub), state
the hash of a record. Store a checkpoint and the public key somewhere else from
time to time: with them, ` + "`audit verify`" + ` detects even a log that was rewritten.`,
	}
	cmd.AddCommand(p.auditList(), p.auditVerify(), p.auditExport(), p.auditCheckpoint())
	return cmd
}

func (p *program) auditList() *cobra.Command {
	q := &redoubtv1.ListAuditRequest{}
	var since string
	cmd := &cobra.Command{
		Use: "list", Short: "List records, newest first", Args: cobra.NoArgs,
		Example: "  redoubt-coordinator audit list --since 24h --user ann@example.com",
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := moment(since, time.Now())
			if err != nil {
				return err
			}
			q.Since = at
			a, err := p.client().ListAudit(cmd.Context(), q)
			if err != nil {
				return p.explain(err)
			}
			list := make([]auditRecord, 0, len(a.GetRecords()))
			var rows [][]string
			for _, r := range a.GetRecords() {
				list = append(list, auditRecordOf(r))
				rows = append(rows, auditRow(r))
			}
			if p.json {
				return p.print(map[string]any{"records": list})
			}
			if len(rows) == 0 {
				fmt.Fprintln(p.err, "# no matching records")
				return nil
			}
			p.table(auditColumns, rows)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "only records since `TIME`, such as 24h, 2026-08-01 or 2026-08-01T12:00:00Z")
	f.StringVar(&q.Node, "node", "", "only records about or by `NODE` (id, name or address)")
	f.StringVar(&q.User, "user", "", "only records about or by the user with `LOGIN` name")
	f.Uint32Var(&q.Limit, "limit", 50, "at most `N` records")
	f.Uint64Var(&q.Before, "before", 0, "only records with numbers below `N`")
	return cmd
}

func auditRow(r *redoubtv1.AuditRecord) []string {
	return []string{
		fmt.Sprint(r.GetNumber()), time.UnixMilli(r.GetAtMs()).Local().Format(time.DateTime), r.GetBy(), r.GetAction(),
		called(r), whence(r), r.GetReason(),
	}
}

// called returns the name by which a person knows the subject of a record.
func called(r *redoubtv1.AuditRecord) string {
	switch {
	case r.GetName() != "":
		return r.GetName()
	case r.GetAction() == audit.PolicyApply || r.GetAction() == audit.PolicyRollback:
		return "policy " + r.GetSubject()
	}
	return r.GetSubject()
}

// whence returns where a request came from. It is empty for administrators, who can only use the admin socket.
func whence(r *redoubtv1.AuditRecord) string {
	if r.GetFrom() == "admin socket" {
		return ""
	}
	return r.GetFrom()
}

// moment parses a time, or a duration before now, into Unix seconds; it returns 0 if s is empty.
func moment(s string, now time.Time) (int64, error) {
	if s == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(-d).Unix(), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t.Unix(), nil
		}
	}
	return 0, fmt.Errorf("--since %q: want a time such as 24h, 2026-08-01 or 2026-08-01T12:00:00Z", s)
}

func (p *program) auditExport() *cobra.Command {
	q := &redoubtv1.ExportAuditRequest{}
	cmd := &cobra.Command{
		Use: "export", Short: "Print the stored records, one JSON object per line", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := p.records(cmd, q, nil, func(line []byte) error {
				_, err := p.out.Write(append(line, '\n'))
				return err
			})
			if q.GetFollow() && cmd.Context().Err() != nil {
				err = nil // following ends only when the user stops it
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "keep printing new records")
	cmd.Flags().Uint64Var(&q.After, "after", 0, "only records after number `N`")
	return cmd
}

// records fetches the lines of the log and calls each for every line. The first message, which also carries the checkpoints and
// the number of records the coordinator knows of, is passed to begin before its lines.
func (p *program) records(cmd *cobra.Command, q *redoubtv1.ExportAuditRequest, begin func(*redoubtv1.ExportAuditResponse) error, each func([]byte) error) error {
	stream, err := p.client().ExportAudit(cmd.Context(), q)
	if err != nil {
		return p.explain(err)
	}
	defer func() { _ = stream.Close() }()
	for first := true; stream.Receive(); first = false {
		if first && begin != nil {
			if err := begin(stream.Msg()); err != nil {
				return err
			}
		}
		for _, line := range stream.Msg().GetLines() {
			if err := each(line); err != nil {
				return err
			}
		}
	}
	return p.explain(stream.Err())
}

func (p *program) auditCheckpoint() *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint", Short: "Print a signed checkpoint of the newest record, to store elsewhere", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := p.client().GetCheckpoint(cmd.Context(), &redoubtv1.GetCheckpointRequest{})
			if err != nil {
				return p.explain(err)
			}
			fmt.Fprintf(p.out, "%s\n", a.GetLine())
			if !p.json {
				fmt.Fprintf(p.err, "# signed with key %s, whose public half is in %s\n# to check the log against it: audit verify --checkpoint FILE\n",
					base64.StdEncoding.EncodeToString(a.GetKey()), filepath.Join(p.data, "pki", "audit.pub"))
			}
			return nil
		},
	}
}

func (p *program) auditVerify() *cobra.Command {
	var checkpoint, key string
	cmd := &cobra.Command{
		Use: "verify [FILE]", Short: "Detect records that were changed, removed or moved", Args: cobra.MaximumNArgs(1),
		Long: `Checks every record of the coordinator's audit log, or of a file that
` + "`audit export`" + ` wrote, and names any that was tampered with. With --checkpoint,
the log must also contain the record that a checkpoint stored elsewhere names;
--key gives the public key that checkpoints must be signed with.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			v := &verification{}
			if err := v.trust(key); err != nil {
				return err
			}
			if checkpoint != "" {
				b, err := os.ReadFile(checkpoint)
				if err != nil {
					return err
				}
				for line := range bytes.Lines(b) {
					if line = bytes.TrimSpace(line); len(line) > 0 {
						if err := v.checkpoint(line); err != nil {
							return fmt.Errorf("%s: %w", checkpoint, err)
						}
					}
				}
			}
			var err error
			if len(args) == 1 {
				err = v.file(args[0])
			} else {
				err = v.coordinator(p, cmd)
			}
			if err == nil {
				err = v.end()
			}
			return p.verified(v, err)
		},
	}
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "`FILE` with checkpoints that were stored elsewhere")
	cmd.Flags().StringVar(&key, "key", "", "public `KEY` of the coordinator's checkpoints: a file such as audit.pub, or base64")
	return cmd
}

// verified prints the result.
func (p *program) verified(v *verification, err error) error {
	if err != nil && !errors.Is(err, audit.ErrBroken) {
		return err
	}
	if p.json {
		found := ""
		if err != nil {
			found = err.Error()
		}
		if perr := p.print(struct {
			Sound       bool   `json:"sound"`
			Records     uint64 `json:"records"`
			Hash        string `json:"hash,omitempty"`
			Checkpoints int    `json:"checkpoints"`
			Found       string `json:"found,omitempty"`
		}{err == nil, v.chain.Number(), v.chain.Hash(), len(v.seals), found}); perr != nil || err == nil {
			return perr
		}
		return errSaid
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, "%d records are unchanged", v.chain.Number())
	if len(v.seals) > 0 {
		fmt.Fprintf(p.out, ", and match the checkpoints (%d)", len(v.seals))
	}
	fmt.Fprintln(p.out)
	return nil
}

// verification is the check of an audit log.
type verification struct {
	chain audit.Chain
	seals []audit.Checkpoint
	key   ed25519.PublicKey // nil: any key that the log names
	keys  []string          // named by the log
	last  *uint64           // the expected number of records; nil if unknown
}

// trust sets the key that checkpoints must be signed with.
func (v *verification) trust(s string) error {
	if s == "" {
		return nil
	}
	der, err := base64.StdEncoding.DecodeString(s)
	if err == nil && len(der) == ed25519.PublicKeySize {
		v.key = der
		return nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return fmt.Errorf("--key: %w; want a file such as audit.pub, or 32 bytes in base64", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return fmt.Errorf("--key %s: not a public key in PEM", s)
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if k, ok := parsed.(ed25519.PublicKey); ok && err == nil {
		v.key = k
		return nil
	}
	return fmt.Errorf("--key %s: not an Ed25519 public key", s)
}

func (v *verification) checkpoint(line []byte) error {
	c, err := audit.ParseCheckpoint(line)
	if err != nil {
		return err
	}
	if v.key != nil && !v.key.Equal(ed25519.PublicKey(c.Key)) {
		return fmt.Errorf("%w: the checkpoint of record %d is signed with another key, %s", audit.ErrBroken, c.Number, audit.Fingerprint(c.Key))
	}
	v.chain.Watch(c.Number)
	v.seals = append(v.seals, c)
	return nil
}

func (v *verification) add(line []byte) error {
	r, err := v.chain.Add(line)
	if r.Action == audit.KeyChange {
		v.keys = append(v.keys, r.Subject)
	}
	return err
}

func (v *verification) file(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := v.add(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			return err
		}
	}
}

// coordinator checks the log of the running coordinator against all checkpoints that it keeps.
func (v *verification) coordinator(p *program, cmd *cobra.Command) error {
	return p.records(cmd, &redoubtv1.ExportAuditRequest{}, func(m *redoubtv1.ExportAuditResponse) error {
		last := m.GetLast()
		v.last = &last
		for _, s := range m.GetCheckpoints() {
			if err := v.checkpoint(s); err != nil {
				return err
			}
		}
		return nil
	}, v.add)
}

// end makes the checks that need the complete log.
func (v *verification) end() error {
	if v.last != nil {
		if err := v.chain.Ends(*v.last); err != nil {
			return err
		}
	}
	for _, c := range v.seals {
		if err := v.chain.Holds(c); err != nil {
			return err
		}
		if name := audit.Fingerprint(c.Key); v.key == nil && !slices.Contains(v.keys, name) {
			return fmt.Errorf("%w: the checkpoint of record %d is signed with a key that no record names, %s (they name %s)",
				audit.ErrBroken, c.Number, name, strings.Join(v.keys, ", "))
		}
	}
	return nil
}
