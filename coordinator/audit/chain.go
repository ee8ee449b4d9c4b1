package audit

import (
	"errors"
	"fmt"
)

// ErrBroken means that the log is not what was written.
var ErrBroken = errors.New("the audit log was tampered with")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBroken, fmt.Sprintf(format, args...))
}

// Chain verifies the lines of the log, one after the other. The zero value starts at the first record. It does no I/O: the
// lines may come from a store or from a file.
type Chain struct {
	number uint64
	hash   string
	// watched holds the hashes of records that checkpoints refer to; empty until the record was added.
	watched map[uint64]string
}

// Number returns the number of the last record added; 0 for none.
func (c *Chain) Number() uint64 { return c.number }

// Hash returns the hash of the last record added.
func (c *Chain) Hash() string { return c.hash }

// From returns a chain that continues after a record whose hash is known.
func From(number uint64, hash string) Chain { return Chain{number: number, hash: hash} }

// Watch has the chain remember the hash of a record, for Holds.
func (c *Chain) Watch(number uint64) {
	if c.watched == nil {
		c.watched = map[uint64]string{}
	}
	c.watched[number] = ""
}

// Add verifies and adds the next line; its errors wrap ErrBroken.
func (c *Chain) Add(b []byte) (Record, error) {
	due := c.number + 1
	r, err := ParseLine(b)
	if err != nil {
		return Record{}, broken("record %d was changed or replaced: %v", due, err)
	}
	cut := len(b) - len(hashed)
	if cut <= 0 || string(b[cut:]) != `,"hash":"`+digest(b[:cut])+`"}` {
		return Record{}, broken("record %d was changed: its hash does not match its content", due)
	}
	switch {
	case r.Number > due:
		return Record{}, broken("%s missing: record %d follows record %d", span(due, r.Number-1), r.Number, c.number)
	case r.Number < due:
		return Record{}, broken("record %d is where record %d should be: the order was changed, or it is duplicated", r.Number, due)
	case r.Prev != c.hash && due == 1:
		return Record{}, broken("record 1 was changed: it refers to an earlier record")
	case r.Prev != c.hash:
		return Record{}, broken("record %d does not follow this record %d: record %d was rewritten, or record %d was replaced", due, c.number, c.number, due)
	}
	c.number, c.hash = r.Number, string(b[cut+len(`,"hash":"`):len(b)-2])
	if _, ok := c.watched[c.number]; ok {
		c.watched[c.number] = c.hash
	}
	return r, nil
}

func span(first, last uint64) string {
	if first == last {
		return fmt.Sprintf("record %d is", first)
	}
	return fmt.Sprintf("records %d to %d are", first, last)
}

// Ends checks that the log may end here, given the number of records written.
func (c *Chain) Ends(last uint64) error {
	switch {
	case c.number < last:
		return broken("%s missing: the log ends with record %d", span(c.number+1, last), c.number)
	case c.number > last:
		return broken("%s in the log and not known to the coordinator", span(last+1, c.number))
	}
	return nil
}

// Holds checks that a checkpoint, whose record was watched, belongs to this log.
func (c *Chain) Holds(p Checkpoint) error {
	hash, watched := c.watched[p.Number]
	switch {
	case p.Number > c.number:
		return broken("the checkpoint of %s is about record %d, and the log ends with record %d: %s missing, or an older backup was restored (look for %s)",
			p.At.Format(stamp), p.Number, c.number, span(c.number+1, p.Number), Restore)
	case !watched || hash == "":
		return fmt.Errorf("record %d, which the checkpoint names, was not checked", p.Number)
	case hash != p.Hash:
		return broken("record %d is not the one that the checkpoint of %s names: it or an earlier one was rewritten, or an older backup was restored (look for %s)",
			p.Number, p.At.Format(stamp), Restore)
	}
	return nil
}

const stamp = "2006-01-02T15:04:05Z07:00"
