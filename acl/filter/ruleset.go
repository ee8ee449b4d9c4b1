package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Ruleset is what a node enforces: a netmap whose certificates have been checked.
type Ruleset struct {
	Version proto.Version
	Mesh    proto.Mesh
	Self    proto.Identity
	// Peers are those with a valid certificate. A member of a set that is not among them is ignored.
	Peers []proto.Identity
	// Routes are the prefixes outside the mesh that lie behind peers, each once.
	Routes []Route
	Sets   []proto.Set
	Rules  []proto.Rule
}

// Program is a compiled Ruleset: immutable, and a pure function of it. The nil Program lets nothing pass.
type Program struct {
	version proto.Version
	self    proto.Identity
	peers   []proto.Identity
	nodes   nodeTable // address of a peer -> its index in peers
	routed  routeTable
	local   localTable
	// rows[direction] holds the services permitted between each peer, then each place behind one, and each class of local
	// addresses.
	rows     [3][]*services
	postures [3]postures // by direction
}

// ErrRuleset reports that a ruleset contradicts itself; neither it nor an older one should be enforced.
var ErrRuleset = errors.New("ruleset refused")

// Compile turns a ruleset into the form that packets are judged by. It does not keep the ruleset, but its identities.
//
//	rules ─► by selector (set or prefix) ─► by signature: peers that the same selectors pick share one row
//	                                         row ─► per class of local addresses: services, shared when equal
func Compile(r Ruleset) (*Program, error) {
	p := &Program{version: r.Version, self: r.Self, peers: r.Peers}
	c := compiler{Program: p, numbers: make(map[proto.NodeID]int, len(r.Peers))}
	if err := c.identities(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRuleset, err)
	}
	if err := c.routes(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRuleset, err)
	}
	if err := c.services(r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRuleset, err)
	}
	return p, nil
}

// Version returns the version of the policy that the program enforces.
func (p *Program) Version() proto.Version {
	if p == nil {
		return proto.Version{}
	}
	return p.version
}

// Why reports whether a connection between this node's own address and a peer's is permitted, and by which rule. If it is
// not, the rule is the one that denies it or, if there is none, the one that comes nearest to permitting it; it is zero if
// no rule is about this peer.
func (p *Program) Why(dir proto.Direction, peer netip.Addr, protocol uint8, port uint16) (proto.Origin, Reason) {
	if p == nil {
		return proto.Origin{}, Closed
	}
	own := p.self.Addrs.V6
	if peer.Is4() {
		own = p.self.Addrs.V4
	}
	e := p.Explain(dir, own, peer, protocol, port)
	switch {
	case e.Pass:
		return e.Rule, Permitted
	case e.Reason == Forbidden:
		return e.Rule, e.Reason
	}
	return e.Near, e.Reason
}

// Explanation reports what happens to a connection, and why.
type Explanation struct {
	Pass bool
	// Reason is Permitted, or why the connection does not pass or would not pass if it were not monitored.
	Reason Reason
	Rule   proto.Origin // permits, monitors or denies; zero if there is none
	Action proto.Action // Rule's
	Until  time.Time    // when a monitoring Rule ends
	Near   proto.Origin // nearest to permitting what no rule permits; zero if none is about this peer
}

// Explain reports what would happen to a connection between an address on this node's side and a remote one.
func (p *Program) Explain(dir proto.Direction, local, remote netip.Addr, protocol uint8, port uint16) Explanation {
	if p == nil {
		return Explanation{Reason: Closed}
	}
	_, s, reason := p.ends(dir, packet.AddrOf(local), packet.AddrOf(remote))
	if reason != Permitted {
		return Explanation{Reason: reason}
	}
	at := point(protocol, port)
	e := Explanation{}
	var near *ruling
	if rule := s.find(at); rule == nil {
		near, e.Reason = s.lacks(at)
	} else {
		e.Pass, e.Rule, e.Action, e.Until = rule.passes(), rule.Origin, rule.action, rule.until
		switch rule.action {
		case proto.Allow:
		case proto.Monitor:
			near, e.Reason = s.lacks(at)
		default:
			e.Reason = Forbidden
		}
	}
	if near != nil {
		e.Near = near.Origin
	}
	return e
}

// ends finds out which nodes the two sides of a connection are, and what may pass between them. It refuses unknown ones.
func (p *Program) ends(dir proto.Direction, local, remote packet.Addr) (node int, _ *services, _ Reason) {
	node, row, known := p.who(remote)
	class, ours := p.local.class(local)
	switch {
	case dir == proto.In && known && !ours:
		return 0, nil, ForeignDestination
	case dir == proto.Out && remote.IsGroup():
		return 0, nil, Multicast
	case dir == proto.Out && (!ours || !p.local.opens[class]):
		return 0, nil, ForeignSource
	case !known:
		return 0, nil, UnknownPeer
	}
	return node, p.rows[dir][row*p.local.classes+class], Permitted
}

// judge returns the rule that lets a connection open, or the reason why it may not, with the rule that denies it or else
// the nearest one.
func (s *services) judge(at uint32) (*ruling, Reason) {
	switch rule := s.find(at); {
	case rule.passes():
		return rule, Permitted
	case rule != nil:
		return rule, Forbidden
	}
	return s.lacks(at)
}

// lacks returns the reason why no rule allows a protocol and port, and the rule that comes nearest.
func (s *services) lacks(at uint32) (*ruling, Reason) {
	if near := s.near(at); near != nil {
		return near, NoService
	}
	return nil, NoRule
}

// nodeTable finds a peer by address: open addressing over a power-of-two number of slots, at most half of them used.
type nodeTable struct {
	slots []nodeSlot
	mask  uint64
}

type nodeSlot struct {
	addr packet.Addr
	node int // index plus one; zero means free
}

func newNodeTable(n int) nodeTable {
	size := 8
	for size < 2*n {
		size *= 2
	}
	return nodeTable{make([]nodeSlot, size), uint64(size - 1)}
}

// slot returns the slot that holds addr, or the free slot where it belongs. Addresses are chosen by the coordinator, not by
// an attacker, so a fixed multiplier will do.
func (t *nodeTable) slot(addr packet.Addr) *nodeSlot {
	h := (addr.Hi ^ addr.Lo) * 0x9e3779b97f4a7c15
	for i := h >> 32; ; i++ {
		s := &t.slots[i&t.mask]
		if s.node == 0 || s.addr == addr {
			return s
		}
	}
}

func (t *nodeTable) find(addr packet.Addr) (node int, ok bool) {
	if t.mask == 0 {
		return 0, false
	}
	s := t.slot(addr)
	return s.node - 1, s.node != 0
}
