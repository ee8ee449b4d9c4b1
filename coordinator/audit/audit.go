// Package audit is the coordinator's audit log: who did what to what, when, from where and why. Records are only ever appended,
// in the same transaction as the change they describe, so that there is no change without its record and no record of a change
// that did not happen.
//
//	audit/0000000000000001  {"v":2,"number":1,"prev":"","at":...,"by":"uid 0",...,"hash":"1f3a..."}
//	audit/0000000000000002  {"v":2,"number":2,"prev":"1f3a...",...,"hash":"77c0..."}
//	...                                         └── the hash of the record before
//	seal/0000000000000100   {"v":1,"mesh":...,"number":256,"hash":...,"key":...,"signature":...}
//	seal/last               the same for the newest record
//
// A record is one line of JSON, both in the store and in an export. Its hash covers the whole line before the hash itself,
// including the previous record's hash; so a record that was changed, removed, inserted or moved does not fit (see Chain).
// Rewriting everything from some record on is detected by checkpoints: they state the hash of a record, and are signed with a
// key of the coordinator. A checkpoint kept elsewhere cannot be rewritten along with the rest.
//
// The number in the key is the record's; the writer of the transactions assigns it. Reading goes backwards from a number, or
// forwards, in bounded pages, and writes nothing.
package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Prefix is the key prefix of records in the store.
const Prefix = "audit/"

// MaxPage is the maximum number of records that one Read returns.
const MaxPage = 1000

// maxText bounds each text of a record: input from outside must not fill the log.
const maxText = 512

// Actions.
const (
	MeshCreate     = "mesh.create"
	Restore        = "mesh.restore"
	TokenCreate    = "token.create"
	TokenRevoke    = "token.revoke"
	NodeEnroll     = "node.enroll"
	NodeRevoke     = "node.revoke"
	NodeDelete     = "node.delete"
	NodeExpire     = "node.expire"
	RenewRefuse    = "node.renew.refuse"
	LockCreate     = "lock.create"
	LockDelete     = "lock.delete"
	LockExpire     = "lock.expire"
	NodeQuarantine = "node.quarantine"
	NodeRelease    = "node.release"
	NodeRefuse     = "node.refuse"  // an enrolment, or a proof at a renewal
	NodeAttest     = "node.attest"  // what the machine proves has changed
	NodePending    = "node.pending" // a machine waits for approval
	NodeApprove    = "node.approve"
	NodeDeny       = "node.deny"
	NodeReset      = "node.reset"   // a machine that proves less may replace it
	NodeReplace    = "node.replace" // another machine took the node's place
	PolicyApply    = "policy.apply"
	PolicyRollback = "policy.rollback"
	FactSet        = "node.fact.set"
	FactUnset      = "node.fact.unset"
	RoutesApprove  = "node.routes.approve"
	RolesSet       = "user.role.set"
	RootRotate     = "root.rotate"
	RootRetire     = "root.retire"
	RootAway       = "root.away"   // its key was removed from the coordinator's machine
	RootReturn     = "root.return" // its key is on the coordinator's machine again
	RootRequest    = "root.request"
	Intermediate   = "intermediate.replace"
	KeyChange      = "audit.key"
	BookUnsealed   = "audit.unsealed"
)

// Record is one entry of the log.
type Record struct {
	Number  uint64    `json:"number"`
	Prev    string    `json:"prev"` // hash of the previous record; empty in the first
	At      time.Time `json:"at"`
	By      string    `json:"by"`             // who: an administrator, a node, or the coordinator itself
	From    string    `json:"from,omitempty"` // from where: an address, or the socket for administrators
	Action  string    `json:"action"`         // one of the constants above
	Subject string    `json:"subject"`        // what it was done to: an id
	Name    string    `json:"name,omitempty"`
	User    string    `json:"user,omitempty"` // login name of the user concerned
	Reason  string    `json:"reason,omitempty"`
	Version string    `json:"version,omitempty"` // of the directory, including this change
	Policy  uint64    `json:"policy,omitempty"`  // the version in force, including this change
}

type record struct {
	V int `json:"v"`
	Record
}

// line is a record as it is written, with the hash last.
type line struct {
	record
	Hash string `json:"hash"`
}

// hashed has the form of what follows the hashed part of a line.
const hashed = `,"hash":"` + "0000000000000000000000000000000000000000000000000000000000000000" + `"}`

// Append returns the write of r, which follows the record with the hash prev, and r's own hash.
func Append(prev string, r Record) (store.Op, string, error) {
	if r.Number == 0 || r.Action == "" || r.At.IsZero() || (prev == "") != (r.Number == 1) {
		return store.Op{}, "", fmt.Errorf("audit record %d of %q at %v: number, action, time and the hash of the one before are required", r.Number, r.Action, r.At)
	}
	for _, s := range []*string{&r.By, &r.From, &r.Action, &r.Subject, &r.Name, &r.User, &r.Reason} {
		*s = clip(*s)
	}
	r.At, r.Prev = r.At.UTC(), prev
	b, err := json.Marshal(record{V: 2, Record: r})
	if err != nil {
		return store.Op{}, "", fmt.Errorf("encode audit record %d: %w", r.Number, err)
	}
	body := b[:len(b)-1]
	hash := digest(body)
	return store.Put(Key(r.Number), append(body, `,"hash":"`+hash+`"}`...)), hash, nil
}

func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// Key returns the store key of a record.
func Key(number uint64) string { return fmt.Sprintf("%s%016x", Prefix, number) }

func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "..."
	}
	return string(bytes.ToValidUTF8([]byte(s), []byte("?")))
}

// numberOf returns the number in a record's key.
func numberOf(key string) (number uint64, err error) {
	if _, err := fmt.Sscanf(key, Prefix+"%016x", &number); err != nil || Key(number) != key {
		return 0, fmt.Errorf("audit record %q: not a key that this program writes", key)
	}
	return number, nil
}

// Parse reads a record from the store. It does not verify the record; a Chain does.
func Parse(e store.Entry) (Record, error) {
	number, err := numberOf(e.Key)
	if err != nil {
		return Record{}, err
	}
	r, err := ParseLine(e.Value)
	if err == nil && r.Number != number {
		err = fmt.Errorf("it stands under the number %d", number)
	}
	if err != nil {
		return Record{}, fmt.Errorf("audit record %d: %w; `audit verify` looks at all of them", number, err)
	}
	return r, nil
}

// ParseLine parses a record's line.
func ParseLine(b []byte) (Record, error) {
	var r line
	if err := strictly(b, &r); err != nil {
		return Record{}, err
	}
	if r.V != 2 {
		return Record{}, fmt.Errorf("a record of version %d, this program knows version 2", r.V)
	}
	return r.Record, nil
}

// strictly decodes a single JSON value without unknown fields.
func strictly(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("more than one value")
	}
	return nil
}

// pageBits is how many low bits of the number one List covers: one hexadecimal digit is dropped from the key for each 4.
const (
	pageBits   = 8
	pageDigits = 16 - pageBits/4
)

// page returns the common key prefix of a record and those around it.
func page(number uint64) string { return Key(number)[:len(Prefix)+pageDigits] }

// Read returns up to limit records with numbers below before, newest first, of those that want takes; nil takes all. It stops
// where want reports no more. last is the number of the newest record.
func Read(ctx context.Context, s store.Store, before, last uint64, limit int, want func(Record) (take, more bool)) ([]Record, error) {
	if limit <= 0 || limit > MaxPage {
		return nil, fmt.Errorf("read %d audit records: want 1 to %d", limit, MaxPage)
	}
	if before > last {
		before = last + 1
	}
	var out []Record
	for before > 1 && len(out) < limit {
		top := before - 1
		entries, _, err := s.List(ctx, page(top))
		if err != nil {
			return nil, fmt.Errorf("read the audit records around %d: %w", top, err)
		}
		for _, e := range slices.Backward(entries) {
			r, err := Parse(e)
			if err != nil {
				return nil, err
			}
			if r.Number >= before || len(out) == limit {
				continue
			}
			take, more := true, true
			if want != nil {
				take, more = want(r)
			}
			if !more {
				return out, nil
			}
			if take {
				out = append(out, r)
			}
		}
		before = top >> pageBits << pageBits
	}
	return out, nil
}
