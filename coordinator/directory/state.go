package directory

import (
	"encoding/binary"
	"iter"
	"math"
	"net/netip"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// state is everything held in memory. It is a value: a copy is independent, and changes to one are never visible in the other.
type state struct {
	nodes     index[proto.NodeID, *Node]
	names     index[string, proto.NodeID]
	devices   index[string, proto.NodeID] // by deviceKey
	machines  index[string, proto.NodeID] // by the name of the hardware device, if known
	ephemeral index[proto.NodeID, proto.NodeID]
	addrs     index[string, proto.NodeID] // by addrKey; both addresses of every node
	prints    index[string, proto.NodeID] // by device key in its printed form
	joined    index[string, proto.NodeID] // by memberKey of the token
	// trusted, users and tags hold the nodes that policies apply to: those that are not Apart, and revoked ones while somebody
	// might still trust their certificates and must be told not to.
	trusted index[proto.NodeID, proto.NodeID]
	// overlooked holds all other nodes. They can be locked like any other.
	overlooked index[proto.NodeID, proto.NodeID]
	users      index[string, proto.NodeID] // by memberKey of the login name
	tags       index[string, proto.NodeID] // by memberKey of the tag
	held       index[string, proto.NodeID] // every key that a node ever held, and its holder
	// keyEnds holds the retired node keys, by timeKey of when they are forgotten.
	keyEnds index[string, givenUp]
	tokens  index[string, *Token]    // by id
	freed   index[string, time.Time] // by addrKey of the IPv4 address: until when it is held back
	lapsed  index[proto.NodeID, proto.NodeID]
	// What Expire examines, by timeKey of the expiry: certificates of trusted nodes that have not lapsed, held-back addresses,
	// tokens.
	ends         index[string, proto.NodeID]
	rests        index[string, netip.Addr]
	tokenEnds    index[string, *Token]
	reaches      index[proto.NodeID, proto.Reach]
	peers        index[proto.NodeID, *proto.Peer]  // trusted nodes that have not lapsed, shared by netmaps
	locks        index[string, *Lock]              // by id
	policy       *Policy                           // nil before the first one
	keys         *Keys                             // nil until first recorded
	roles        index[string, *UserRoles]         // by login name
	traits       index[proto.NodeID, *Traits]      // only for nodes with something known about them
	factEnds     index[string, proto.NodeID]       // by timeKey of when the first fact expires
	routers      index[proto.NodeID, proto.NodeID] // trusted nodes with routes
	stale        index[proto.NodeID, proto.NodeID] // nodes whose expired facts are still on disk
	lockSubjects index[string, *Lock]              // by Lock.key
	lockEnds     index[string, *Lock]              // by timeKey of when the lock expires
	relays       index[proto.NodeID, *proto.Relay] // relays in service; memory only
	// Machines waiting for approval: by deviceKey, by code, by memberPrefix of the token and deviceKey, and by timeKey of when
	// they are forgotten.
	candidates, candidateCodes, candidateTokens, candidateEnds index[string, *Candidate]

	// When time alone changes how the policy treats nodes, by node and by timeKey, and when it changes the policy itself;
	// memory only.
	moments index[proto.NodeID, time.Time]
	due     index[string, proto.NodeID]
	turns   time.Time

	refusals index[string, time.Time] // by key of tx.room, when all of its room is free again; memory only
}

func newState() state {
	type id = proto.NodeID
	return state{
		nodes: newIndex[id, *Node](), names: newIndex[string, id](), devices: newIndex[string, id](), machines: newIndex[string, id](),
		ephemeral: newIndex[id, id](), addrs: newIndex[string, id](), trusted: newIndex[id, id](), overlooked: newIndex[id, id](),
		users: newIndex[string, id](), tags: newIndex[string, id](), held: newIndex[string, id](), keyEnds: newIndex[string, givenUp](),
		tokens: newIndex[string, *Token](), freed: newIndex[string, time.Time](), reaches: newIndex[id, proto.Reach](),
		peers:  newIndex[id, *proto.Peer](),
		lapsed: newIndex[id, id](), ends: newIndex[string, id](), rests: newIndex[string, netip.Addr](),
		tokenEnds: newIndex[string, *Token](), roles: newIndex[string, *UserRoles](), traits: newIndex[id, *Traits](),
		factEnds: newIndex[string, id](), routers: newIndex[id, id](), stale: newIndex[id, id](),
		moments: newIndex[id, time.Time](), due: newIndex[string, id](),
		prints: newIndex[string, id](), joined: newIndex[string, id](),
		candidates: newIndex[string, *Candidate](), candidateCodes: newIndex[string, *Candidate](),
		candidateTokens: newIndex[string, *Candidate](), candidateEnds: newIndex[string, *Candidate](),
		locks: newIndex[string, *Lock](), lockSubjects: newIndex[string, *Lock](), lockEnds: newIndex[string, *Lock](),
		relays: newIndex[id, *proto.Relay](), refusals: newIndex[string, time.Time](),
	}
}

func addrKey(a netip.Addr) string {
	b := a.As16()
	return string(b[:])
}

// idKey sorts in the same order as the id.
func idKey(id proto.NodeID) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(id)))
}

// timeKey sorts by time, then by of. Times out of range sort first or last.
func timeKey(t time.Time, of string) string {
	n := uint64(0)
	switch {
	case t.Year() >= 2262:
		n = math.MaxInt64
	case t.Year() >= 1970:
		n = uint64(t.UnixNano())
	}
	b := make([]byte, 0, 8+len(of))
	return string(append(binary.BigEndian.AppendUint64(b, n), of...))
}

// timeOf returns the time encoded in k; ok is false if the time did not fit.
func timeOf(k string) (time.Time, bool) {
	n := binary.BigEndian.Uint64([]byte(k[:8]))
	return time.Unix(0, int64(n)).UTC(), n < math.MaxInt64
}

// over yields the entries of an index by time up to and including last, oldest first.
func over[V any](x index[string, V], last time.Time) iter.Seq[V] {
	end := timeKey(last.Add(1), "")
	return func(yield func(V) bool) {
		for k, v := range x.all() {
			if k >= end || !yield(v) {
				return
			}
		}
	}
}

// memberKey is the key of a node in an index that holds several nodes per word.
func memberKey(word string, id proto.NodeID) string { return memberPrefix(word) + idKey(id) }

func memberPrefix(word string) string { return word + "\x00" }

// members yields the nodes indexed under word, sorted by id.
func members(x index[string, proto.NodeID], word string) iter.Seq[proto.NodeID] {
	return func(yield func(proto.NodeID) bool) {
		prefix := memberPrefix(word)
		for k, id := range x.from(prefix) {
			if !strings.HasPrefix(k, prefix) || !yield(id) {
				return
			}
		}
	}
}

func deviceKey(k key.DevicePublic) string { return string(k.Bytes()) }

func heldDevice(k key.DevicePublic) string { return "d" + deviceKey(k) }
func heldNode(k key.NodePublic) string     { return "n" + string(k.Bytes()) }

// setNode adds or replaces a node in all indexes. It recomputes which lock applies to the node.
func (s *state) setNode(n *Node) {
	if l := s.lockOf(n); l != n.Lock {
		held := *n
		n, held.Lock = &held, l
	}
	id := n.ID
	old, known := s.nodes.Get(id)
	lapsed := false
	if known {
		_, lapsed = s.lapsed.Get(id)
		lapsed = lapsed && n.Certificate.Sequence == old.Certificate.Sequence // until it renews
		s.unindex(old)
	}
	put(&s.nodes, id, n)
	if lapsed {
		put(&s.lapsed, id, id)
	}
	put(&s.names, n.Name, n.ID)
	put(&s.devices, deviceKey(n.Device), n.ID)
	if m := n.Attestation.Device; m != "" {
		put(&s.machines, m, n.ID)
	}
	for _, a := range n.Addrs.Slice() {
		put(&s.addrs, addrKey(a), n.ID)
	}
	if n.Ephemeral {
		put(&s.ephemeral, id, n.ID)
	}
	put(&s.prints, n.Device.String(), n.ID)
	put(&s.joined, memberKey(n.Token, n.ID), n.ID)
	t, ok := s.traits.Get(id)
	if ok && old.Level != n.Level { // also of a node that policies do not see now: they may see it again
		s.setTraits(n, t.clone())
	}
	if !s.seen(n) {
		put(&s.overlooked, id, id)
		return
	}
	put(&s.trusted, id, n.ID)
	if !lapsed {
		put(&s.ends, timeKey(n.Certificate.NotAfter, idKey(n.ID)), n.ID)
		if !n.Barred() {
			s.present(n)
		}
	}
	if !n.User.IsZero() {
		put(&s.users, memberKey(n.User.Name, n.ID), n.ID)
	}
	for _, tag := range n.Tags {
		put(&s.tags, memberKey(tag, n.ID), n.ID)
	}
	if ok && t.routes() {
		put(&s.routers, id, n.ID)
	}
}

// dropNode removes a node from all indexes; the keys it held remain.
func (s *state) dropNode(n *Node) {
	s.unindex(n)
	drop(&s.nodes, n.ID)
	drop(&s.reaches, n.ID)
	drop(&s.stale, n.ID)
	s.dropTraits(n.ID)
	s.reckon(n.ID, time.Time{})
}

func (s *state) unindex(n *Node) {
	id := n.ID
	drop(&s.names, n.Name)
	drop(&s.devices, deviceKey(n.Device))
	if m := n.Attestation.Device; m != "" {
		drop(&s.machines, m)
	}
	drop(&s.prints, n.Device.String())
	drop(&s.joined, memberKey(n.Token, n.ID))
	drop(&s.ephemeral, id)
	drop(&s.lapsed, id)
	drop(&s.peers, id)
	drop(&s.ends, timeKey(n.Certificate.NotAfter, idKey(n.ID)))
	for _, a := range n.Addrs.Slice() {
		drop(&s.addrs, addrKey(a))
	}
	s.overlook(n)
	drop(&s.overlooked, id)
}

// overlook removes a node from those that policies apply to.
func (s *state) overlook(n *Node) {
	put(&s.overlooked, n.ID, n.ID)
	drop(&s.trusted, n.ID)
	drop(&s.routers, n.ID)
	drop(&s.users, memberKey(n.User.Name, n.ID))
	for _, tag := range n.Tags {
		drop(&s.tags, memberKey(tag, n.ID))
	}
}

// present builds what peers see of a node.
func (s *state) present(n *Node) {
	reach, _ := s.reaches.Get(n.ID)
	put(&s.peers, n.ID, &proto.Peer{ID: n.ID, Certificate: n.Certificate.DER, Reach: reach})
}

// setToken adds or replaces a token.
func (s *state) setToken(t *Token) {
	put(&s.tokens, t.ID, t)
	put(&s.tokenEnds, timeKey(t.Expires, t.ID), t)
}

func (s *state) dropToken(t *Token) {
	drop(&s.tokens, t.ID)
	drop(&s.tokenEnds, timeKey(t.Expires, t.ID))
}

// rest holds an address back until a time.
func (s *state) rest(a netip.Addr, until time.Time) {
	put(&s.freed, addrKey(a), until)
	put(&s.rests, timeKey(until, addrKey(a)), a)
}

func (s *state) wake(a netip.Addr) {
	until, _ := s.freed.Get(addrKey(a))
	drop(&s.freed, addrKey(a))
	drop(&s.rests, timeKey(until, addrKey(a)))
}

// taken presents the state to the address allocator.
type taken struct {
	state
	now time.Time
}

// Has implements ipam.Taken.
func (t taken) Has(a netip.Addr) bool {
	if _, ok := t.addrs.Get(addrKey(a)); ok {
		return true
	}
	until, ok := t.freed.Get(addrKey(a))
	return ok && t.now.Before(until)
}

// Len implements ipam.Taken. Addresses whose hold has ended count until Expire removes them.
func (t taken) Len() int { return t.nodes.Len() + t.freed.Len() }
