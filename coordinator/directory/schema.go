package directory

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Migrations lead from the store's first schema to the one that this program writes, oldest first. New ones are only ever
// appended.
func Migrations() []store.Edit {
	return []store.Edit{traitsAndRoles, attestation, chainedBook, admission}
}

// traitsAndRoles is schema 2: traits and roles have records, and policies may have comments. Existing records do not change.
// The number locks out older programs, which would enforce a policy without knowing to whom it applies.
func traitsAndRoles(store.Tx) error { return nil }

// attestation is schema 3: nodes record what their machine proved, and tokens the node that they replace. Existing records do
// not change. The number locks out older programs, which would let a known machine join twice.
func attestation(store.Tx) error { return nil }

// oldAudit is an audit record in the first form, which was not chained.
type oldAudit struct {
	V int `json:"v"`
	audit.Record
}

// chainedBook is schema 4: every audit record contains the hash of its predecessor, and the head that of the last record; locks
// have records.
func chainedBook(t store.Tx) error {
	v, ok := t.Get(headKey)
	if !ok {
		return nil // no mesh was created in this store yet
	}
	head, err := parse[headRecord](store.Entry{Key: headKey, Value: v})
	if err != nil {
		return err
	}
	list, err := t.List(audit.Prefix)
	if err != nil {
		return err
	}
	number := head.Audit
	head.Audit, head.AuditHash = 0, ""
	for _, e := range list {
		d := json.NewDecoder(bytes.NewReader(e.Value))
		d.DisallowUnknownFields()
		var old oldAudit
		if err := d.Decode(&old); err != nil || old.V != 1 || audit.Key(head.Audit+1) != e.Key {
			return fmt.Errorf("audit record %s: not one of version 1, or not in order: %w", e.Key, err)
		}
		ops, err := head.enter([]audit.Record{old.Record}, page{now: old.At}, nil)
		if err != nil {
			return err
		}
		if err := t.Put(ops[0].Key, ops[0].Value); err != nil {
			return err
		}
	}
	if head.Audit != number {
		return fmt.Errorf("the audit log has %d records, and %d were written", head.Audit, number)
	}
	op, err := putRecord(headKey, head)
	if err != nil {
		return err
	}
	return t.Put(op.Key, op.Value)
}

// admission is schema 5: nodes record the administrator's decision about their machine, and machines waiting for it have
// records. Existing records do not change. The number locks out older programs, which would admit machines that nobody
// approved.
func admission(store.Tx) error { return nil }
