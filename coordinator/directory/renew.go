package directory

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/store"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// Tickets. With each certificate a node gets a ticket, which is valid for one renewal:
//
//	ticket = 8 bytes: number, big endian | 32 bytes: HMAC-SHA256 with the node's seed over node and number
//
//	                        ticket n ─► certificate and ticket n+1
//	same key again          ticket n ─► the same certificate and ticket n+1: the reply was lost
//	different key           ticket n ─► two machines share one identity
//	after n+1 was used      ticket n ─► likewise
//
// So a copy of a node's disk is detected as soon as both machines have renewed, in either order. A ticket with a higher number
// than any that this coordinator remembers was issued before the restore from a backup, and is valid.

// TicketSize is the length of a ticket.
const TicketSize = wire.TicketSize

const seedSize = 32

// Errors of Renew.
var (
	ErrTicket      = errors.New("the ticket is not one that this coordinator gave the node")
	ErrQuarantined = errors.New("node is in quarantine")
)

// Quarantine records since when a node is isolated from all others, and why.
type Quarantine struct {
	At  time.Time
	Why string
}

// Renewal is the request of a node that proved possession of its device key and of its next node key.
type Renewal struct {
	ID     proto.NodeID
	Key    key.NodePublic
	Ticket []byte
}

// Apart reports whether a node is not part of the mesh, being revoked or quarantined: it has no peers and is nobody's peer.
func (n *Node) Apart() bool { return n.Revoked != nil || n.Quarantine != nil }

// NextTicket returns the ticket for the node's next renewal; nil for certificates from before tickets existed.
func (n *Node) NextTicket() []byte {
	if len(n.Seed) == 0 {
		return nil
	}
	return n.ticketOf(n.Ticket)
}

func (n *Node) ticketOf(number uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, TicketSize), number)
	h := hmac.New(sha256.New, n.Seed)
	h.Write([]byte("redoubt ticket v1"))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(n.ID)))
	h.Write(b)
	return h.Sum(b)
}

// readTicket returns a ticket's number; ok reports whether it was issued to this node.
func (n *Node) readTicket(b []byte) (number uint64, ok bool) {
	if len(b) != TicketSize || len(n.Seed) == 0 {
		return 0, false
	}
	number = binary.BigEndian.Uint64(b)
	return number, hmac.Equal(b, n.ticketOf(number))
}

func (d *Directory) newSeed() ([]byte, error) {
	b := make([]byte, seedSize)
	if _, err := io.ReadFull(d.config.Rand, b); err != nil {
		return nil, fmt.Errorf("draw a seed of tickets: %w", err)
	}
	return b, nil
}

// Renew issues the next certificate of a node, with the next sequence number. The node's next key becomes its current key, and
// r.Key becomes its next. It refuses keys that any node holds, or held while a certificate naming them may still be in use, and
// machines that do not meet the policy's demands. The rules for tickets are described above.
func (d *Directory) Renew(ctx context.Context, r Renewal) (*Node, error) {
	if r.Key.IsZero() {
		return nil, fmt.Errorf("renewal of node %s without a node key: %w", r.ID, ErrInvalid)
	}
	var n *Node
	var refused error // set when the transaction succeeds all the same
	err := d.do(ctx, func(t *tx) (err error) {
		if n, err = t.trustedNode(r.ID); err != nil {
			return err
		}
		if n.Quarantine != nil {
			return n.quarantined()
		}
		switch use, why := n.judge(r); use {
		case ticketRepeats:
			return nil // the node as it is, with the certificate whose delivery failed
		case ticketUnknown:
			return fmt.Errorf("renewal of node %s (%s): %w", n.Name, n.ID, ErrTicket)
		case ticketDead:
			n, err = t.quarantine(n, why)
			refused = n.quarantined()
			return err
		default:
			if err := d.Renewable(t.snapshot(), n); err != nil {
				return err
			}
			n, err = d.renew(t, n, r, use)
			return err
		}
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

type ticketUse int

const (
	ticketCurrent ticketUse = iota + 1
	ticketRepeats           // its reply was lost
	ticketStray             // issued after the backup that the store is from, or accepted because of a release
	ticketDead              // another machine's
	ticketUnknown
)

// latest returns the key that the last certificate was issued for.
func (n *Node) latest() key.NodePublic {
	if n.Next.IsZero() {
		return n.Key
	}
	return n.Next
}

// judge decides how a renewal's ticket is to be treated.
func (n *Node) judge(r Renewal) (use ticketUse, why string) {
	if len(n.Seed) == 0 && len(r.Ticket) == 0 {
		return ticketCurrent, "" // its certificate is from before tickets existed
	}
	number, ok := n.readTicket(r.Ticket)
	switch {
	case !ok:
		return ticketUnknown, ""
	case number == n.Ticket:
		return ticketCurrent, ""
	case number == n.Used && r.Key == n.latest():
		return ticketRepeats, ""
	case number > n.Ticket, n.Released:
		return ticketStray, ""
	case number == n.Used:
		return ticketDead, fmt.Sprintf("ticket %d was used with two node keys, %s and %s", number, n.latest(), r.Key)
	}
	return ticketDead, fmt.Sprintf("ticket %d was used after ticket %d had taken its place", number, n.Ticket)
}

// renew makes the renewal's key the next one, and the previous next key the current one. With a stray ticket it is unknown
// which keys the machine holds: then the renewal's key is the only one.
func (d *Directory) renew(t *tx, old *Node, r Renewal, use ticketUse) (*Node, error) {
	if holder, ok := t.held.Get(heldNode(r.Key)); ok {
		return nil, fmt.Errorf("node key of node %s: %w", holder, ErrKeyUsed)
	}
	n := *old
	switch {
	case use == ticketStray:
		n.Key, n.Next = r.Key, key.NodePublic{}
	case old.Next.IsZero(): // the first renewal, or the first after a stray ticket
		n.Next = r.Key
	default:
		n.Key, n.Next = old.Next, r.Key
	}
	n.Used, _ = old.readTicket(r.Ticket)
	n.Released = false
	if len(n.Seed) == 0 {
		var err error
		if n.Seed, err = d.newSeed(); err != nil {
			return nil, err
		}
	}
	for _, k := range []key.NodePublic{old.Key, old.Next} {
		if !k.IsZero() && k != n.Key && k != n.Next {
			if err := t.retire(k, old); err != nil {
				return nil, err
			}
		}
	}
	if err := t.hold(nodeKeyPath(r.Key), heldNode(r.Key), n.ID); err != nil {
		return nil, err
	}
	return d.certify(t, &n)
}

// retire forgets a key once no connected node can still trust a certificate that names it. Keys change so often that
// remembering them forever would fill any disk.
func (t *tx) retire(k key.NodePublic, n *Node) error {
	until := t.now
	if end := n.Certificate.NotAfter; end.After(until) {
		until = end
	}
	until = until.Add(2*cert.Skew + Patience)
	op, err := putRecord(nodeKeyPath(k), heldRecord{version: v1, Node: n.ID, Since: t.now, Until: until})
	if err != nil {
		return err
	}
	t.writes = append(t.writes, op)
	t.give(k, until)
	return nil
}

// givenUp is a retired node key, remembered until a time.
type givenUp struct {
	key   key.NodePublic
	until time.Time
}

func (s *state) give(k key.NodePublic, until time.Time) {
	put(&s.keyEnds, timeKey(until, heldNode(k)), givenUp{k, until})
}

// expireKeys forgets retired keys whose time is over.
func (t *tx) expireKeys() {
	for g := range over(t.keyEnds, t.now) {
		if t.full() {
			return
		}
		t.writes = append(t.writes, store.Delete(nodeKeyPath(g.key)))
		drop(&t.held, heldNode(g.key))
		drop(&t.keyEnds, timeKey(g.until, heldNode(g.key)))
	}
}

// quarantine isolates a node from all others until it is released. The node keeps its certificate.
func (t *tx) quarantine(old *Node, why string) (*Node, error) {
	n := *old
	n.Quarantine = &Quarantine{At: t.now, Why: why}
	t.recordOf(n.User.Name, "coordinator", audit.NodeQuarantine, n.ID.String(), n.Name, why)
	return &n, t.setNode(&n)
}

// QuarantineError wraps ErrQuarantined with details.
type QuarantineError struct {
	Name string
	ID   proto.NodeID
	Quarantine
}

func (e *QuarantineError) Error() string {
	return fmt.Sprintf("node %s (%s), since %s: %s: %v", e.Name, e.ID, e.At.Format(time.RFC3339), e.Why, ErrQuarantined)
}

// Unwrap returns ErrQuarantined.
func (e *QuarantineError) Unwrap() error { return ErrQuarantined }

func (n *Node) quarantined() error { return &QuarantineError{n.Name, n.ID, *n.Quarantine} }

// ReleaseNode ends a quarantine. The first machine to renew after that continues as the node, with whichever of its tickets;
// the other machine is detected again.
func (d *Directory) ReleaseNode(ctx context.Context, id proto.NodeID, by string) (*Node, error) {
	var n *Node
	err := d.do(ctx, func(t *tx) (err error) {
		if n, err = t.trustedNode(id); err != nil {
			return err
		}
		if n.Quarantine == nil {
			return fmt.Errorf("node %s (%s) is not in quarantine: %w", n.Name, n.ID, ErrInvalid)
		}
		released := *n
		released.Quarantine, released.Released = nil, true
		n = &released
		t.recordOf(n.User.Name, by, audit.NodeRelease, id.String(), n.Name, "")
		return t.setNode(n)
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}
