package directory

import (
	"bytes"
	"encoding/binary"
	"iter"
	"math"
	"net/netip"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// state is everything in memory. It is a value of immutable trees: a copy of it is another state, and changing one is
// never seen in the other.
type state struct {
	nodes     *iradix.Tree[*Node]        // by id
	names     *iradix.Tree[proto.NodeID] // by name
	devices   *iradix.Tree[proto.NodeID] // by device key
	ephemeral *iradix.Tree[proto.NodeID] // by id
	addrs     *iradix.Tree[proto.NodeID] // both addresses of every node
	prints    *iradix.Tree[proto.NodeID] // by device key as people see it
	joined    *iradix.Tree[proto.NodeID] // by token, NUL, id
	// trusted, users and tags are what policies are about: nodes that are not revoked, and those that are as long as somebody
	// could trust their certificates, and has to be told not to.
	trusted *iradix.Tree[proto.NodeID]
	users   *iradix.Tree[proto.NodeID] // by user, NUL, id
	tags    *iradix.Tree[proto.NodeID] // by tag, NUL, id
	held    *iradix.Tree[proto.NodeID] // every key that a node ever held; who held it
	tokens  *iradix.Tree[*Token]       // by id
	freed   *iradix.Tree[time.Time]    // by IPv4 address: until when it rests
	lapsed  *iradix.Tree[proto.NodeID] // by id; memory only
	// What Expire looks at, by the time that is over first: the certificates of trusted nodes that have not lapsed, the
	// rest of addresses, tokens.
	ends      *iradix.Tree[proto.NodeID]
	rests     *iradix.Tree[netip.Addr]
	tokenEnds *iradix.Tree[*Token]
	endpoints *iradix.Tree[[]proto.Endpoint]
	policy    *Policy                    // nil before the first one
	locks     *iradix.Tree[*Lock]        // by id
	roles     *iradix.Tree[*UserRoles]   // by login name
	traits    *iradix.Tree[*Traits]      // by id; only of nodes of which something is known
	factEnds  *iradix.Tree[proto.NodeID] // by the time that the first fact expires
	routers   *iradix.Tree[proto.NodeID] // by id; trusted nodes with routes
	stale     *iradix.Tree[proto.NodeID] // by id; whose facts have expired and are still on disk
	// When time alone changes what the policy makes of nodes, by id and by time, and the policy itself; memory only.
	lockSubjects, lockEnds *iradix.Tree[*Lock] // by kind, NUL, subject, NUL, id; by the time that is over first
	moments                *iradix.Tree[time.Time]
	due                    *iradix.Tree[proto.NodeID]
	turns                  time.Time
}

func newState() state {
	return state{
		nodes: iradix.New[*Node](), names: iradix.New[proto.NodeID](), devices: iradix.New[proto.NodeID](),
		ephemeral: iradix.New[proto.NodeID](), addrs: iradix.New[proto.NodeID](), trusted: iradix.New[proto.NodeID](),
		users: iradix.New[proto.NodeID](), tags: iradix.New[proto.NodeID](), held: iradix.New[proto.NodeID](),
		tokens: iradix.New[*Token](), freed: iradix.New[time.Time](), endpoints: iradix.New[[]proto.Endpoint](),
		lapsed: iradix.New[proto.NodeID](), ends: iradix.New[proto.NodeID](), rests: iradix.New[netip.Addr](),
		tokenEnds: iradix.New[*Token](), roles: iradix.New[*UserRoles](), traits: iradix.New[*Traits](),
		factEnds: iradix.New[proto.NodeID](), routers: iradix.New[proto.NodeID](), stale: iradix.New[proto.NodeID](),
		moments: iradix.New[time.Time](), due: iradix.New[proto.NodeID](), prints: iradix.New[proto.NodeID](),
		joined: iradix.New[proto.NodeID](), locks: iradix.New[*Lock](), lockSubjects: iradix.New[*Lock](), lockEnds: iradix.New[*Lock](),
	}
}

func idKey(id proto.NodeID) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(id))
}

func addrKey(a netip.Addr) []byte {
	b := a.As16()
	return b[:]
}

// timeKey sorts by time, and then by what it is the time of. Times that do not fit are the first or the last.
func timeKey(t time.Time, of []byte) []byte {
	n := uint64(0)
	switch {
	case t.Year() >= 2262:
		n = math.MaxInt64
	case t.Year() >= 1970:
		n = uint64(t.UnixNano())
	}
	return append(binary.BigEndian.AppendUint64(nil, n), of...)
}

// over yields what an index by time has up to and including a time, the oldest first.
func over[T any](t *iradix.Tree[T], last time.Time) iter.Seq[T] {
	end := timeKey(last.Add(1), nil)
	return func(yield func(T) bool) {
		it := t.Root().Iterator()
		for k, v, ok := it.Next(); ok && bytes.Compare(k, end) < 0; k, v, ok = it.Next() {
			if !yield(v) {
				return
			}
		}
	}
}

// memberKey is the key of a node in an index with several nodes a word.
func memberKey(word string, id proto.NodeID) []byte {
	return binary.BigEndian.AppendUint64(memberPrefix(word), uint64(id))
}

func memberPrefix(word string) []byte { return append([]byte(word), 0) }

func heldDevice(k key.DevicePublic) []byte { return append([]byte{'d'}, k.Bytes()...) }
func heldNode(k key.NodePublic) []byte     { return append([]byte{'n'}, k.Bytes()...) }

func put[T any](t **iradix.Tree[T], k []byte, v T) { *t, _, _ = (*t).Insert(k, v) }
func drop[T any](t **iradix.Tree[T], k []byte)     { *t, _, _ = (*t).Delete(k) }

// setNode replaces a node, or adds it, in all indexes. Which lock holds it is found anew.
func (s *state) setNode(n *Node) {
	if l := s.lockOf(n); l != n.Lock {
		held := *n
		n, held.Lock = &held, l
	}
	id := idKey(n.ID)
	old, known := s.nodes.Get(id)
	if known {
		s.unindex(old)
	}
	put(&s.nodes, id, n)
	put(&s.names, []byte(n.Name), n.ID)
	put(&s.devices, n.Device.Bytes(), n.ID)
	for _, a := range n.Addrs.Slice() {
		put(&s.addrs, addrKey(a), n.ID)
	}
	put(&s.prints, []byte(n.Device.String()), n.ID)
	put(&s.joined, memberKey(n.Token, n.ID), n.ID)
	if n.Ephemeral {
		put(&s.ephemeral, id, n.ID)
	}
	put(&s.trusted, id, n.ID)
	put(&s.ends, timeKey(n.Certificate.NotAfter, id), n.ID)
	if !n.User.IsZero() {
		put(&s.users, memberKey(n.User.Name, n.ID), n.ID)
	}
	for _, tag := range n.Tags {
		put(&s.tags, memberKey(tag, n.ID), n.ID)
	}
	if t, ok := s.traits.Get(id); ok && old.Level != n.Level {
		s.setTraits(n, t.clone())
	} else if ok && t.routes() {
		put(&s.routers, id, n.ID)
	}
}

// dropNode removes a node from all indexes; the keys that it held stay.
func (s *state) dropNode(n *Node) {
	s.unindex(n)
	drop(&s.nodes, idKey(n.ID))
	drop(&s.endpoints, idKey(n.ID))
	drop(&s.stale, idKey(n.ID))
	s.dropTraits(n.ID)
	s.reckon(n.ID, time.Time{})
}

func (s *state) unindex(n *Node) {
	id := idKey(n.ID)
	drop(&s.names, []byte(n.Name))
	drop(&s.devices, n.Device.Bytes())
	drop(&s.prints, []byte(n.Device.String()))
	drop(&s.joined, memberKey(n.Token, n.ID))
	drop(&s.ephemeral, id)
	drop(&s.lapsed, id)
	drop(&s.ends, timeKey(n.Certificate.NotAfter, id))
	for _, a := range n.Addrs.Slice() {
		drop(&s.addrs, addrKey(a))
	}
	s.overlook(n)
}

// overlook takes a node out of what policies are about.
func (s *state) overlook(n *Node) {
	id := idKey(n.ID)
	drop(&s.trusted, id)
	drop(&s.routers, id)
	drop(&s.users, memberKey(n.User.Name, n.ID))
	for _, tag := range n.Tags {
		drop(&s.tags, memberKey(tag, n.ID))
	}
}

// setToken replaces a token, or adds it.
func (s *state) setToken(t *Token) {
	put(&s.tokens, []byte(t.ID), t)
	put(&s.tokenEnds, timeKey(t.Expires, []byte(t.ID)), t)
}

func (s *state) dropToken(t *Token) {
	drop(&s.tokens, []byte(t.ID))
	drop(&s.tokenEnds, timeKey(t.Expires, []byte(t.ID)))
}

// rest keeps an address from being given until some time.
func (s *state) rest(a netip.Addr, until time.Time) {
	put(&s.freed, addrKey(a), until)
	put(&s.rests, timeKey(until, addrKey(a)), a)
}

func (s *state) wake(a netip.Addr) {
	until, _ := s.freed.Get(addrKey(a))
	drop(&s.freed, addrKey(a))
	drop(&s.rests, timeKey(until, addrKey(a)))
}

// taken is the state as the address allocator sees it.
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

// Len implements ipam.Taken. Addresses whose rest is over count until Expire takes them away.
func (t taken) Len() int { return t.nodes.Len() + t.freed.Len() }
