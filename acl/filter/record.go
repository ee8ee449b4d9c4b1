package filter

import (
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
)

// Kind is the kind of a Record.
type Kind uint8

// The kinds of records.
const (
	FlowStart Kind = iota + 1
	FlowEnd
	Denied
	WouldDeny // began or goes on only because a rule monitors what is not permitted
)

func (k Kind) String() string {
	switch k {
	case FlowStart:
		return "start"
	case FlowEnd:
		return "end"
	case Denied:
		return "denied"
	case WouldDeny:
		return "would-deny"
	}
	return "?"
}

// Traffic counts whole IP packets.
type Traffic struct{ Packets, Bytes uint64 }

// Party is one end of a flow as it was known at the time; zero if it is no known node of this mesh.
type Party struct {
	ID   proto.NodeID
	Name string
	Who  string // the user, or the tags
}

func partyOf(id *proto.Identity) Party {
	if id == nil {
		return Party{}
	}
	return Party{id.ID, id.Name, id.Who()}
}

// Record is one decision to report. Ports are those of the flow; for echoes the identifier takes the place of the
// requester's port.
type Record struct {
	Kind      Kind
	Direction proto.Direction
	// Reason is why something was denied, would have been denied, or ended.
	Reason Reason
	// Rule is the rule that let the flow pass; in a denial, the rule that denies it, zero if there is none.
	Rule proto.Origin
	// Near is the rule that came nearest to permitting what no rule permits, if any is about this peer. At the end of a
	// flow that a rule denies it is that rule.
	Near proto.Origin
	// Watched reports whether the flow passed only because Rule monitors what is not permitted, until Until.
	Watched bool
	Until   time.Time
	Version proto.Version
	// Posture digests the posture conditions that held between both sides.
	Posture Posture
	Self    Party
	Peer    Party
	Local   netip.AddrPort
	Remote  netip.AddrPort
	Proto   uint8
	// Traffic in each direction, and how long the flow lasted; in FlowEnd only.
	Out, In  Traffic
	Duration time.Duration
}

// event is a Record before its names are looked up: small, and written without allocating.
type event struct {
	key
	kind      Kind
	direction proto.Direction
	reason    Reason
	lasted    tick
	rule      *ruling
	near      *ruling
	by        *enforced
	peer      *proto.Identity
	sent      [2]Traffic
}

func (e *event) record() Record {
	r := Record{
		Kind:      e.kind,
		Direction: e.direction,
		Reason:    e.reason,
		Peer:      partyOf(e.peer),
		Local:     netip.AddrPortFrom(e.local.Netip(), e.localPort()),
		Remote:    netip.AddrPortFrom(e.remote.Netip(), e.remotePort()),
		Proto:     e.proto(),
		Out:       e.sent[local],
		In:        e.sent[remote],
		Duration:  e.lasted.duration(),
	}
	if e.rule != nil {
		r.Rule, r.Watched, r.Until = e.rule.Origin, e.rule.action == proto.Monitor, e.rule.until
	}
	if e.near != nil {
		r.Near = e.near.Origin
	}
	if e.by.Program != nil {
		r.Version, r.Self = e.by.version, partyOf(&e.by.self)
		r.Posture = e.by.posture(e.direction, e.remote)
	}
	return r
}

func (t tick) duration() time.Duration { return time.Duration(t) * tickLength }

// ring keeps the events of a shard until they are drained. A full ring drops further events and counts them; a quarter is
// reserved for flows, so that a storm of denials cannot hide them.
type ring struct {
	events     []event // allocated with the first event
	size       uint32  // a power of two
	head, tail uint32  // events[tail..head) are waiting
	dropped    uint64
}

const leastRing = 16

func ringSize(want int) uint32 {
	size := uint32(leastRing)
	for int(size) < want {
		size *= 2
	}
	return size
}

// add makes room for an event and returns it, zeroed (take clears what it removes).
func (r *ring) add(k Kind) *event {
	room := r.size
	if k == Denied {
		room -= room / 4
	}
	if r.head-r.tail >= room {
		r.dropped++
		return nil
	}
	if r.events == nil {
		r.events = make([]event, r.size)
	}
	r.head++
	return &r.events[(r.head-1)%r.size]
}

// take moves waiting events to b and returns how many.
func (r *ring) take(b []event) (n int) {
	for ; n < len(b) && r.tail != r.head; n++ {
		e := &r.events[r.tail%r.size]
		b[n], *e = *e, event{}
		r.tail++
	}
	return n
}

// record adds a record of a flow. It returns nil if there is no room.
func (s *shard) record(k Kind, fl *flow, r Reason, now tick) *event {
	e := s.records.add(k)
	if e == nil {
		return nil
	}
	e.key, e.kind, e.direction, e.reason = fl.key, k, fl.opened, r
	e.rule, e.by, e.peer = fl.rule, fl.by, fl.peer.identity.Load()
	if k == FlowEnd {
		e.lasted = now - fl.started
		for i, t := range fl.sent {
			e.sent[i] = t.Traffic
		}
	}
	return e
}

// deny adds a record of a denied packet. It returns nil if there is no room.
func (s *shard) deny(v *visit, r Reason, rule *ruling) *event {
	e := s.records.add(Denied)
	if e == nil {
		return nil
	}
	e.key, e.kind, e.direction, e.reason, e.by = v.key, Denied, v.d, r, v.by
	if r == NoService {
		e.near = rule
	} else {
		e.rule = rule
	}
	return e
}

// Drain passes all waiting records to emit, oldest first within each shard, and removes them.
func (f *Filter) Drain(emit func(Record)) {
	f.draining.Lock()
	defer f.draining.Unlock()
	var some [32]event
	for i := range f.shards {
		s := &f.shards[i]
		for n := len(some); n == len(some); {
			s.mu.Lock()
			n = s.records.take(some[:])
			s.mu.Unlock()
			for j := range some[:n] {
				emit(some[j].record())
			}
		}
	}
}

// Counters holds what the filter has counted since it was made.
type Counters struct {
	Out, In        Traffic // passed
	Dropped        Drops
	Flows          int // now
	Started, Ended uint64
	RecordsLost    uint64
}

// Counters reads the counters, one shard after the other.
func (f *Filter) Counters() Counters {
	c := Counters{Dropped: f.dropped.read()}
	for i := range f.shards {
		s := &f.shards[i]
		s.mu.Lock()
		c.Out.plus(s.passed[proto.Out])
		c.In.plus(s.passed[proto.In])
		c.Flows += s.live
		c.Started += s.started
		c.Ended += s.ended
		c.RecordsLost += s.records.dropped
		s.mu.Unlock()
	}
	return c
}

func (t *Traffic) plus(u Traffic) {
	t.Packets += u.Packets
	t.Bytes += u.Bytes
}
