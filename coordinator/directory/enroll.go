package directory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/audit"
	"github.com/redoubt-mesh/redoubt/coordinator/ipam"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

const (
	// MaxHostname is the maximum length of a machine's host name.
	MaxHostname = 255
)

// EnrollRequest describes a machine that proved possession of these keys and of the token's secret.
type EnrollRequest struct {
	Token    key.TokenPublic
	Device   key.DevicePublic
	Key      key.NodePublic
	Hostname string
	Level    cert.Level
	Attested Attested
	// Reported is what the machine reports about itself, Health what it reports about its health: policies use both from the start.
	Reported Reported
	Health   Health
}

// Enroll creates a node with its name, addresses and first certificate, and spends the token, all in one transaction. A machine
// that the policy requires an administrator to approve becomes a candidate first, which a *PendingError reports. A repeated
// request with the same keys and token, before the token expires, comes from a machine that missed the reply: it gets its
// existing node.
func (d *Directory) Enroll(ctx context.Context, r EnrollRequest) (*Node, error) {
	if r.Token.IsZero() || r.Device.IsZero() || r.Key.IsZero() || len(r.Hostname) > MaxHostname {
		return nil, fmt.Errorf("enrolment without all of its keys, or with a host name of %d bytes: %w", len(r.Hostname), ErrInvalid)
	}
	if err := errors.Join(r.Reported.check(d.Snapshot().Mesh()), r.Health.check()); err != nil {
		return nil, err
	}
	var n *Node
	var pending error // set when the transaction succeeds all the same
	err := d.do(ctx, func(t *tx) (err error) {
		n, pending, err = d.enroll(t, r)
		return err
	})
	if err == nil {
		err = pending
	}
	if err != nil {
		return nil, err
	}
	return n, nil
}

func (d *Directory) enroll(t *tx, r EnrollRequest) (n *Node, pending, err error) {
	token, err := t.usable(r)
	if err != nil {
		return nil, nil, err
	}
	if n, err := t.again(token, r); n != nil || err != nil {
		if err == nil && !fresh(n.Certificate, t.now) {
			n, err = d.certifyAgain(t, n)
		}
		return n, nil, err
	}
	if err := t.enrollable(token, r); err != nil {
		return nil, nil, err
	}
	verdict, pending, err := t.admissible(d, token, r)
	if err != nil || pending != nil {
		return nil, pending, err
	}
	n, err = t.join(d, token, r, verdict)
	return n, nil, err
}

// enrollable refuses machines that no approval could admit.
func (t *tx) enrollable(token *Token, r EnrollRequest) error {
	if token.SpentBy != 0 {
		return fmt.Errorf("token %s; ask for a new join code: %w", token.ID, ErrTokenSpent)
	}
	if err := t.unheld(r); err != nil {
		return err
	}
	if err := t.unlocked(token, r); err != nil {
		return err
	}
	if err := t.newMachine(token, r); err != nil {
		return err
	}
	return t.reserved(token, r.Device)
}

// join creates the node.
func (t *tx) join(d *Directory, token *Token, r EnrollRequest, verdict *Verdict) (*Node, error) {
	admit := t.admit
	if token.Replace != 0 {
		admit = t.replace
	}
	n, err := admit(d, token, r)
	if err != nil {
		return nil, err
	}
	n.Verdict = verdict
	if n, err = d.certify(t, n); err != nil {
		return nil, err
	}
	traits, _ := new(Traits).with(&r.Reported, t.now).withHealth(&r.Health, t.now)
	traits.silent(t.now) // until it attaches
	return n, t.setTraits(n, traits)
}

// usable returns a token that is neither revoked nor expired; it may be spent. A candidate that is still waiting may use an
// expired token.
func (t *tx) usable(r EnrollRequest) (*Token, error) {
	public := r.Token
	id := TokenID(public)
	token, ok := t.tokens.Get(id)
	switch {
	case !ok || token.Public != public:
		return nil, fmt.Errorf("token %s; ask for a new join code: %w", id, ErrTokenUnknown)
	case token.Revoked != nil:
		return nil, fmt.Errorf("token %s; ask for a new join code: %w", id, ErrTokenRevoked)
	case !t.now.Before(token.Expires) && !t.waits(token, r):
		return nil, fmt.Errorf("token %s was good until %s; ask for a new join code: %w", id, token.Expires.Format(time.RFC3339), ErrTokenExpired)
	}
	return token, nil
}

// again returns the node that enrolled earlier with the same keys and token, or nil if there is none.
func (t *tx) again(token *Token, r EnrollRequest) (*Node, error) {
	id, ok := t.devices.Get(deviceKey(r.Device))
	if !ok {
		return nil, nil
	}
	n, _ := t.state.nodes.Get(id)
	switch {
	case n.Revoked != nil:
		return nil, fmt.Errorf("node %s (%s): %w", n.Name, n.ID, ErrRevoked)
	case n.Lock != nil:
		return nil, n.locked()
	case n.Token == token.ID && n.Key == r.Key && n.Next.IsZero():
		return n, t.notLess(n, r)
	}
	return nil, fmt.Errorf("device key of node %s (%s); the machine must make new keys, or be deleted here first and make new keys: %w", n.Name, n.ID, ErrKeyUsed)
}

// unheld refuses keys that any node holds or has held.
func (t *tx) unheld(r EnrollRequest) error {
	if id, ok := t.held.Get(heldDevice(r.Device)); ok {
		return fmt.Errorf("device key of node %s; the machine must make new keys: %w", id, ErrKeyUsed)
	}
	if id, ok := t.held.Get(heldNode(r.Key)); ok {
		return fmt.Errorf("node key of node %s; the machine must make new keys: %w", id, ErrKeyUsed)
	}
	return nil
}

// admit creates the node without its certificate, and spends the token.
func (t *tx) admit(d *Directory, token *Token, r EnrollRequest) (*Node, error) {
	id, err := t.newID(d)
	if err != nil {
		return nil, err
	}
	addrs, err := ipam.Next(t.mesh.Mesh, d.config.Rand, taken{t.state, t.now})
	if err != nil {
		return nil, fmt.Errorf("%w; delete nodes that are gone, their addresses are free after %v", err, ipam.Rest)
	}
	seed, err := d.newSeed()
	if err != nil {
		return nil, err
	}
	n := &Node{
		Seed:     seed,
		Identity: proto.Identity{ID: id, Name: t.name(r.Hostname), Addrs: addrs, Tags: token.Tags},
		Device:   r.Device, Key: r.Key, Level: r.Level, Ephemeral: token.Ephemeral, Relay: token.Relay,
		Hostname: strings.ToValidUTF8(r.Hostname, "?"), Token: token.ID, Created: t.now,
		Attestation: Attestation{Attested: r.Attested, Highest: r.Level, Since: t.now},
	}
	if token.User != "" {
		n.User = token.user()
	}
	if err := n.Validate(); err != nil {
		return nil, err
	}
	if err := t.holdBoth(r, id); err != nil {
		return nil, err
	}
	t.recordOf(token.User, "token "+token.ID, audit.NodeEnroll, id.String(), n.Name, "for "+token.who()+", attested by "+r.Level.String())
	return n, t.spend(token, n)
}

// holdBoth records which node holds a machine's keys.
func (t *tx) holdBoth(r EnrollRequest, id proto.NodeID) error {
	if err := t.hold(devicePath(r.Device), heldDevice(r.Device), id); err != nil {
		return err
	}
	return t.hold(nodeKeyPath(r.Key), heldNode(r.Key), id)
}

func (t *tx) newID(d *Directory) (proto.NodeID, error) {
	for {
		id, err := proto.NewNodeID(d.config.Rand)
		if err != nil {
			return 0, err
		}
		if _, used := t.state.nodes.Get(id); !used {
			return id, nil
		}
	}
}

func (t *tx) spend(token *Token, n *Node) error {
	used := *token
	used.Uses++
	if !used.Reusable {
		used.Spent, used.SpentBy = n.Device, n.ID
	}
	return t.setToken(&used)
}

// certifyAgain issues another certificate for a node that enrols again, under the rules of a renewal: a join code must not
// bypass them.
func (d *Directory) certifyAgain(t *tx, n *Node) (*Node, error) {
	if n.Quarantine != nil {
		return nil, n.quarantined()
	}
	if err := d.Renewable(t.snapshot(), n); err != nil {
		return nil, err
	}
	return d.certify(t, n)
}

// certify issues a node's next certificate and writes the node with it.
func (d *Directory) certify(t *tx, old *Node) (*Node, error) {
	keys := []cert.NodeKey{{Public: old.Key}}
	if !old.Next.IsZero() {
		keys = append(keys, cert.NodeKey{Public: old.Next})
	}
	c, err := d.config.Issue(cert.Node{
		Mesh: t.mesh.ID, Identity: old.Identity, DNSName: old.Name + "." + t.mesh.Domain, Device: old.Device,
		Relay: old.Relay, Keys: keys, Level: old.Level, Sequence: old.Certificate.Sequence + 1,
	}, t.now)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for node %s (%s): %w", old.Name, old.ID, err)
	}
	n := *old
	n.Ticket, n.NextFrom = c.Sequence, time.Time{}
	if len(c.Keys) == 2 {
		n.NextFrom = wall(c.Keys[1].NotBefore)
	}
	n.Certificate = Certificate{
		DER: c.Raw, Serial: c.Serial, Sequence: c.Sequence, Issued: t.now,
		NotBefore: wall(c.NotBefore), NotAfter: wall(c.NotAfter),
	}
	return &n, t.setNode(&n)
}

// fresh reports whether a certificate has been issued and is in the first half of its lifetime. One issued while the clock was
// wrong may start later.
func fresh(c Certificate, now time.Time) bool {
	return !now.Before(c.Issued) && now.Before(c.Issued.Add(c.NotAfter.Sub(c.Issued)/2))
}

// trustedNode returns a node that is known and neither revoked nor locked.
func (t *tx) trustedNode(id proto.NodeID) (*Node, error) {
	n, err := t.knownNode(id)
	if err == nil && n.Revoked != nil {
		return nil, fmt.Errorf("node %s (%s) on %s: %w", n.Name, id, n.Revoked.At.Format(time.RFC3339), ErrRevoked)
	}
	if err == nil && n.Lock != nil {
		return nil, n.locked()
	}
	return n, err
}

func (t *tx) knownNode(id proto.NodeID) (*Node, error) {
	n, ok := t.state.nodes.Get(id)
	if !ok {
		return nil, fmt.Errorf("node %s was deleted, or joined after the backup that this coordinator was restored from; join again with a new code: %w",
			id, ErrUnknown)
	}
	return n, nil
}
