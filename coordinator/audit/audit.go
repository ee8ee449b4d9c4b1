// Package audit is the coordinator's book of what was decided: who did what to what, when and why. Records are only ever
// appended, in the same transaction as the change that they tell of, so that there is no change without its record and
// no record of a change that did not happen.
//
//	audit/0000000000000001  {"at":...,"by":"uid 0","action":"token.create","subject":"t0123...",...}
//	audit/0000000000000002  ...
//
// The number in the key is the record's; whoever writes transactions counts it. Reading goes backwards from a number, in
// bounded pages.
package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Prefix is where the records are in the store.
const Prefix = "audit/"

// MaxPage is how many records one Read answers at most.
const MaxPage = 1000

// maxText bounds each text of a record: what comes from outside must not fill the book.
const maxText = 512

// Actions that are recorded.
const (
	MeshCreate     = "mesh.create"
	Restore        = "mesh.restore"
	TokenCreate    = "token.create"
	TokenRevoke    = "token.revoke"
	NodeEnroll     = "node.enroll"
	NodeRevoke     = "node.revoke"
	NodeDelete     = "node.delete"
	NodeExpire     = "node.expire"
	NodeQuarantine = "node.quarantine"
	NodeRelease    = "node.release"
	NodeRefuse     = "node.refuse"  // an enrolment, or a proof at a renewal
	NodeAttest     = "node.attest"  // what the machine proves of itself has changed
	NodeReset      = "node.reset"   // another machine may prove less
	NodeReplace    = "node.replace" // another machine is the node now
	PolicyApply    = "policy.apply"
	PolicyRollback = "policy.rollback"
	FactSet        = "node.fact.set"
	FactUnset      = "node.fact.unset"
	RoutesApprove  = "node.routes.approve"
	RolesSet       = "user.role.set"
)

// Record is one line of the book.
type Record struct {
	Number  uint64    `json:"-"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`      // who: an administrator, a node, or the coordinator itself
	Action  string    `json:"action"`  // one of the constants above
	Subject string    `json:"subject"` // what it was done to: an id
	Name    string    `json:"name,omitempty"`
	Reason  string    `json:"reason,omitempty"`
}

type record struct {
	V int `json:"v"`
	Record
}

// Op is the write that appends r under its number.
func Op(r Record) (store.Op, error) {
	if r.Number == 0 || r.Action == "" || r.At.IsZero() {
		return store.Op{}, fmt.Errorf("audit record %d of %q at %v: number, action and time are required", r.Number, r.Action, r.At)
	}
	for _, s := range []*string{&r.By, &r.Action, &r.Subject, &r.Name, &r.Reason} {
		*s = clip(*s)
	}
	r.At = r.At.UTC()
	b, err := json.Marshal(record{V: 1, Record: r})
	if err != nil {
		return store.Op{}, fmt.Errorf("encode audit record %d: %w", r.Number, err)
	}
	return store.Put(Key(r.Number), b), nil
}

// Key is where a record is in the store.
func Key(number uint64) string { return fmt.Sprintf("%s%016x", Prefix, number) }

func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return string(bytes.ToValidUTF8([]byte(s), []byte("?")))
}

// Parse reads a record from the store.
func Parse(e store.Entry) (Record, error) {
	var number uint64
	if _, err := fmt.Sscanf(e.Key, Prefix+"%016x", &number); err != nil || Key(number) != e.Key {
		return Record{}, fmt.Errorf("audit record %q: not a key that this program writes", e.Key)
	}
	d := json.NewDecoder(bytes.NewReader(e.Value))
	d.DisallowUnknownFields()
	var r record
	if err := d.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("audit record %d: %w", number, err)
	}
	if _, err := d.Token(); err != io.EOF || r.V != 1 {
		return Record{}, fmt.Errorf("audit record %d: version %d with more behind it, or not version 1", number, r.V)
	}
	r.Number = number
	return r.Record, nil
}

// pageBits is how many low bits of the number one List covers: one hexadecimal digit is dropped from the key for each 4.
const (
	pageBits   = 8
	pageDigits = 16 - pageBits/4
)

// Read answers up to limit records with numbers below before, newest first. last is the number of the newest record.
func Read(ctx context.Context, s store.Store, before, last uint64, limit int) ([]Record, error) {
	if limit <= 0 || limit > MaxPage {
		return nil, fmt.Errorf("read %d audit records: want 1 to %d", limit, MaxPage)
	}
	if before > last {
		before = last + 1
	}
	var page []Record
	for before > 1 && len(page) < limit {
		top := before - 1
		entries, _, err := s.List(ctx, Key(top)[:len(Prefix)+pageDigits])
		if err != nil {
			return nil, fmt.Errorf("read the audit records around %d: %w", top, err)
		}
		for _, e := range slices.Backward(entries) {
			r, err := Parse(e)
			if err != nil {
				return nil, err
			}
			if r.Number < before && len(page) < limit {
				page = append(page, r)
			}
		}
		before = top >> pageBits << pageBits
	}
	return page, nil
}
