package proto

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ErrVersion means that a delta does not start at the version of the netmap it was applied to; a new snapshot helps.
var ErrVersion = errors.New("delta does not start at the version that is there")

// Head holds what a netmap has only one of. Mesh and Self stay the same for the life of a node.
type Head struct {
	Mesh        Mesh
	Self        NodeID
	Authorities [][]byte
	Requires    []string
	Outage      Outage
	Withheld    []Withheld
	Relays      []Relay
}

// SetChange is a change of an existing set: the members added and removed, each sorted.
type SetChange struct {
	Name        string
	Add, Remove []NodeID
}

// ReachChange is how a peer is reached after a change, if its certificate stays the same.
type ReachChange struct {
	ID NodeID
	Reach
}

// Delta leads from one version of a node's netmap to a later one. Each list is sorted, and no two lists about the same kind of
// item name the same one.
type Delta struct {
	From, To    Version
	Head        *Head // nil if unchanged
	UpsertPeers []*Peer
	Reaches     []ReachChange
	RemovePeers []NodeID
	UpsertSets  []Set
	ChangeSets  []SetChange
	RemoveSets  []string
	UpsertRules []Rule
	RemoveRules []string
	// UpsertBarred are nodes that are new in the list or have another sequence number.
	UpsertBarred []Barred
	RemoveBarred []NodeID
}

// Empty reports whether nothing but the version changes.
func (d *Delta) Empty() bool {
	return d.Head == nil && len(d.UpsertPeers) == 0 && len(d.Reaches) == 0 && len(d.RemovePeers) == 0 &&
		len(d.UpsertSets) == 0 && len(d.ChangeSets) == 0 && len(d.RemoveSets) == 0 &&
		len(d.UpsertRules) == 0 && len(d.RemoveRules) == 0 && len(d.UpsertBarred) == 0 && len(d.RemoveBarred) == 0
}

func (n *Netmap) head() Head {
	return Head{Mesh: n.Mesh, Self: n.Self, Authorities: n.Authorities, Requires: n.Requires, Outage: n.Outage, Withheld: n.Withheld, Relays: n.Relays}
}

func (h *Head) equal(o *Head) bool {
	return h.Mesh == o.Mesh && h.Self == o.Self && h.Outage == o.Outage &&
		slices.EqualFunc(h.Withheld, o.Withheld, func(a, b Withheld) bool { return a.Reason == b.Reason && a.Equal(&b.Rule) }) &&
		slices.EqualFunc(h.Relays, o.Relays, func(a, b Relay) bool { return a.Equal(&b) }) &&
		slices.Equal(h.Requires, o.Requires) && slices.EqualFunc(h.Authorities, o.Authorities, bytes.Equal)
}

// Diff returns the delta from an older netmap of a node to a newer one of the same node. Both must be valid. If the mesh, the
// node or the order of versions do not match, Apply refuses the result.
func Diff(older, newer *Netmap) *Delta {
	d := &Delta{From: older.Version, To: newer.Version}
	before, after := older.head(), newer.head()
	if !before.equal(&after) {
		d.Head = &after
	}
	walk(older.Peers, newer.Peers, peerKey, d.diffPeer)
	walk(older.Sets, newer.Sets, setKey, d.diffSet)
	walk(older.Rules, newer.Rules, ruleKey, d.diffRule)
	walk(older.Barred, newer.Barred, barredKey, d.diffBarred)
	return d
}

func (d *Delta) diffPeer(x, y **Peer) {
	switch {
	case y == nil:
		d.RemovePeers = append(d.RemovePeers, (*x).ID)
		return
	case x == nil:
		d.UpsertPeers = append(d.UpsertPeers, *y)
		return
	}
	switch a, b := *x, *y; {
	case a == b: // netmaps share most of the peers that they have in common
	case !bytes.Equal(a.Certificate, b.Certificate) || !slices.Equal(a.Routes, b.Routes):
		d.UpsertPeers = append(d.UpsertPeers, b)
	case !a.Reach.Equal(&b.Reach):
		d.Reaches = append(d.Reaches, ReachChange{ID: b.ID, Reach: b.Reach})
	}
}

func (d *Delta) diffSet(a, b *Set) {
	switch {
	case b == nil:
		d.RemoveSets = append(d.RemoveSets, a.Name)
	case a == nil || a.Conditional != b.Conditional:
		d.UpsertSets = append(d.UpsertSets, *b)
	case !slices.Equal(a.Members, b.Members):
		c := SetChange{Name: b.Name}
		walk(a.Members, b.Members, idKey, func(x, y *NodeID) {
			if y == nil {
				c.Remove = append(c.Remove, *x)
			} else if x == nil {
				c.Add = append(c.Add, *y)
			}
		})
		if len(c.Add)+len(c.Remove) >= len(b.Members) {
			d.UpsertSets = append(d.UpsertSets, *b)
		} else {
			d.ChangeSets = append(d.ChangeSets, c)
		}
	}
}

func (d *Delta) diffRule(a, b *Rule) {
	switch {
	case b == nil:
		d.RemoveRules = append(d.RemoveRules, a.Key)
	case a == nil || !a.Equal(b):
		d.UpsertRules = append(d.UpsertRules, *b)
	}
}

func (d *Delta) diffBarred(a, b *Barred) {
	switch {
	case b == nil:
		d.RemoveBarred = append(d.RemoveBarred, a.ID)
	case a == nil || *a != *b:
		d.UpsertBarred = append(d.UpsertBarred, *b)
	}
}

// Equal reports whether two rules are identical, including their origin.
func (r *Rule) Equal(o *Rule) bool {
	return r.Key == o.Key && r.Origin == o.Origin && r.Direction == o.Direction &&
		slices.Equal(r.Peers.Sets, o.Peers.Sets) && slices.Equal(r.Peers.Prefixes, o.Peers.Prefixes) &&
		slices.Equal(r.Local, o.Local) && slices.Equal(r.Services, o.Services) &&
		r.Action == o.Action && r.Until.Equal(o.Until) && r.Conditional == o.Conditional &&
		slices.EqualFunc(r.App, o.App, func(a, b Capability) bool { return a.Name == b.Name && slices.Equal(a.Values, b.Values) })
}

// Apply returns the netmap that the delta leads to; n stays unchanged, and the result shares what did not change. A delta that
// names a missing item, names an item twice, or leads to an invalid netmap is refused as a whole. Beyond one pass over the
// lists of the netmap, the cost is that of the delta.
func (n *Netmap) Apply(d *Delta) (*Netmap, error) {
	if d.From != n.Version {
		return nil, fmt.Errorf("%w: netmap %s, delta from %s to %s", ErrVersion, n.Version, d.From, d.To)
	}
	if !d.From.Less(d.To) {
		return nil, invalid("delta from %s to %s", d.From, d.To)
	}
	m := *n
	m.Version = d.To
	if err := m.applyHead(d.Head); err != nil {
		return nil, err
	}
	var err error
	if m.Peers, err = d.applyPeers(n); err != nil {
		return nil, err
	}
	if m.Sets, err = d.applySets(n); err != nil {
		return nil, err
	}
	if m.Rules, err = d.applyRules(n); err != nil {
		return nil, err
	}
	if m.Barred, err = d.applyBarred(n); err != nil {
		return nil, err
	}
	if err := m.checkCounts(); err != nil {
		return nil, err
	}
	if err := m.checkMet(d); err != nil {
		return nil, err
	}
	touched := d.UpsertRules
	if len(d.RemoveSets) > 0 {
		touched = m.Rules
	}
	if err := cmp.Or(checkReferences(touched, m.Sets), checkWithheldReferences(m.Withheld, m.Sets)); err != nil {
		return nil, err
	}
	return &m, nil
}

func (n *Netmap) applyHead(h *Head) error {
	if h == nil {
		return nil
	}
	if h.Mesh != n.Mesh || h.Self != n.Self {
		return invalid("delta of node %s in mesh %s, not of %s in %s", h.Self, h.Mesh.ID, n.Self, n.Mesh.ID)
	}
	if err := h.validate(); err != nil {
		return err
	}
	n.Authorities, n.Requires, n.Outage, n.Withheld, n.Relays = h.Authorities, h.Requires, h.Outage, h.Withheld, h.Relays
	return nil
}

func (d *Delta) applyPeers(n *Netmap) ([]*Peer, error) {
	if err := checkPeers(d.UpsertPeers, n.Mesh, n.Self); err != nil {
		return nil, err
	}
	var es edits[*Peer, NodeID]
	for _, p := range d.UpsertPeers {
		es = append(es, upsert(p.ID, p))
	}
	for _, id := range d.RemovePeers {
		es = append(es, remove[*Peer](id))
	}
	for _, c := range d.Reaches {
		if err := c.check(n.Mesh); err != nil {
			return nil, fmt.Errorf("peer %s: %w", c.ID, err)
		}
		es = append(es, change(c.ID, func(p *Peer) (*Peer, error) {
			moved := *p
			moved.Reach = c.Reach
			return &moved, nil
		}))
	}
	return es.apply("peer", n.Peers, peerKey)
}

func (d *Delta) applyBarred(n *Netmap) ([]Barred, error) {
	if err := checkBarred(d.UpsertBarred, n.Self); err != nil {
		return nil, err
	}
	var es edits[Barred, NodeID]
	for _, b := range d.UpsertBarred {
		es = append(es, upsert(b.ID, b))
	}
	for _, id := range d.RemoveBarred {
		es = append(es, remove[Barred](id))
	}
	return es.apply("barred node", n.Barred, barredKey)
}

// checkMet refuses a netmap in which a node that the delta names is both a peer and barred.
func (n *Netmap) checkMet(d *Delta) error {
	met := func(id NodeID) error {
		_, barred := slices.BinarySearchFunc(n.Barred, id, func(b Barred, id NodeID) int { return cmp.Compare(b.ID, id) })
		_, peer := slices.BinarySearchFunc(n.Peers, id, func(p *Peer, id NodeID) int { return cmp.Compare(p.ID, id) })
		if barred && peer {
			return invalid("%s is a peer and barred", id)
		}
		return nil
	}
	for _, b := range d.UpsertBarred {
		if err := met(b.ID); err != nil {
			return err
		}
	}
	for _, p := range d.UpsertPeers {
		if err := met(p.ID); err != nil {
			return err
		}
	}
	return nil
}

func (d *Delta) applySets(n *Netmap) ([]Set, error) {
	if err := checkSets(d.UpsertSets); err != nil {
		return nil, err
	}
	var es edits[Set, string]
	for _, s := range d.UpsertSets {
		es = append(es, upsert(s.Name, s))
	}
	for _, name := range d.RemoveSets {
		es = append(es, remove[Set](name))
	}
	for _, c := range d.ChangeSets {
		es = append(es, change(c.Name, c.apply))
	}
	return es.apply("set", n.Sets, setKey)
}

func (c SetChange) apply(s Set) (Set, error) {
	if len(c.Add)+len(c.Remove) == 0 {
		return s, invalid("change of set %q that changes nothing", s.Name)
	}
	if err := cmp.Or(checkIDs(c.Add), checkIDs(c.Remove)); err != nil {
		return s, fmt.Errorf("set %q: %w", s.Name, err)
	}
	es := make(edits[NodeID, NodeID], 0, len(c.Add)+len(c.Remove))
	for _, id := range c.Add {
		if _, there := slices.BinarySearch(s.Members, id); there {
			return s, invalid("set %q has %s already", s.Name, id)
		}
		es = append(es, upsert(id, id))
	}
	for _, id := range c.Remove {
		es = append(es, remove[NodeID](id))
	}
	var err error
	s.Members, err = es.apply("member", s.Members, idKey)
	return s, err
}

func (d *Delta) applyRules(n *Netmap) ([]Rule, error) {
	if err := checkRules(d.UpsertRules); err != nil {
		return nil, err
	}
	var es edits[Rule, string]
	for _, r := range d.UpsertRules {
		es = append(es, upsert(r.Key, r))
	}
	for _, k := range d.RemoveRules {
		es = append(es, remove[Rule](k))
	}
	return es.apply("rule", n.Rules, ruleKey)
}
