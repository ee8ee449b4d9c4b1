package filter

import (
	"sync"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Reset holds the packets that end a dead flow: one IP packet for the local host, one for the peer. Either may be nil. Both
// are valid until emit returns.
type Reset struct {
	ToLocal, ToPeer []byte
}

// sweep is the state of a walk through the table, a few entries at a time.
type sweep struct {
	mu      sync.Mutex
	by      *enforced // in force when this pass began
	judged  *enforced // what the whole table was last judged by
	shard   int
	number  uint32
	doomed  [sweepStep]doomed
	toLocal [packet.ReplyLimit]byte
	toPeer  [packet.ReplyLimit]byte
}

// sweepStep is how many entries are visited per lock.
const sweepStep = 64

// doomed is a flow that has been removed from the table but whose ends have not been reset yet.
type doomed struct {
	key
	opened proto.Direction
	sent   [2]tally
	there  bool // the peer is still in the program
}

// Sweep advances the filter's clock, ends flows that were silent for too long, judges those that an older program permitted,
// and passes the resets for those that died to emit. It visits about limit entries, all of them if limit is not positive,
// and continues there at the next call. It reports whether the whole table has been judged by the program in force. Call it
// until it reports true after each Install, and several times a second otherwise.
func (f *Filter) Sweep(limit int, emit func(Reset)) (done bool) {
	w := &f.sweep
	w.mu.Lock()
	defer w.mu.Unlock()
	now, by := f.tick(), f.current.Load()
	f.fragments.expire(now)
	if by != w.by {
		w.by, w.shard, w.number = by, 0, 0
	}
	for left := limit; limit <= 0 || left > 0; {
		if w.shard == shardCount {
			w.judged, w.shard, w.number = by, 0, 0
			break
		}
		left -= f.sweepSome(now, emit)
	}
	return w.judged == f.current.Load()
}

// sweepSome visits the next few entries of one shard and returns how many.
func (f *Filter) sweepSome(now tick, emit func(Reset)) (looked int) {
	w := &f.sweep
	s := &f.shards[w.shard]
	ended := 0
	s.mu.Lock()
	by := f.current.Load() // as in visit
	v := visit{f: f, s: s, by: by, now: now}
	end := min(s.used, w.number+sweepStep)
	for ; w.number < end; w.number++ {
		looked++
		fl := s.at(w.number)
		if fl.state == vacant {
			continue
		}
		if fl = v.review(fl); fl != nil && fl.state == dead {
			node, known := by.find(fl.remote)
			w.doomed[ended] = doomed{fl.key, fl.opened, fl.sent, known && by.peers[node] == fl.peer}
			ended++
			s.ended++
			s.remove(fl)
		}
	}
	if w.number >= s.used {
		w.shard, w.number = w.shard+1, 0
	}
	s.mu.Unlock()
	for i := range w.doomed[:ended] {
		f.tell(&w.doomed[i], emit)
	}
	return max(looked, 1)
}

// find returns the program's number of the node behind an address; without a program there is none.
func (e *enforced) find(addr packet.Addr) (int, bool) {
	if e.Program == nil {
		return 0, false
	}
	node, _, ok := e.who(addr)
	return node, ok
}

// owns reports whether addr belongs to a node or lies behind it. Without a program it is always true: nothing passes anyway.
func (e *enforced) owns(id proto.NodeID, addr packet.Addr) bool {
	if e.Program == nil {
		return true
	}
	node, known := e.find(addr)
	return known && e.peers[node].id == id
}

// tell passes the packets that end a flow on both sides to emit. If it is uncertain which sequence number a TCP endpoint
// expects, it gets two resets, as an inexact one is ignored.
func (f *Filter) tell(d *doomed, emit func(Reset)) {
	w := &f.sweep
	if d.proto() != proto.ProtoTCP {
		if isICMP(d.proto()) && d.opened == proto.In {
			return
		}
		quote := packet.AppendQuote(w.toPeer[:0], d.local, d.remote, d.proto(), d.localPort(), d.remotePort())
		emit(Reset{ToLocal: packet.AppendProhibited(w.toLocal[:0], d.remote, d.local, quote)})
		return
	}
	sure := Reset{ToLocal: d.reset(w.toLocal[:0], local, d.sent[remote].next)}
	if d.there {
		sure.ToPeer = d.reset(w.toPeer[:0], remote, d.sent[local].next)
	}
	emit(sure)
	var other Reset
	if d.sent[remote].acked != d.sent[remote].next {
		other.ToLocal = d.reset(w.toLocal[:0], local, d.sent[remote].acked)
	}
	if d.there && d.sent[local].acked != d.sent[local].next {
		other.ToPeer = d.reset(w.toPeer[:0], remote, d.sent[local].acked)
	}
	if other.ToLocal != nil || other.ToPeer != nil {
		emit(other)
	}
}

// reset returns a TCP reset to one side, with the sequence number that it expects next.
func (d *doomed) reset(b []byte, to side, seq uint32) []byte {
	s := packet.Segment{
		Src: d.remote, SrcPort: d.remotePort(), Dst: d.local, DstPort: d.localPort(),
		Seq: seq, Ack: d.sent[to].next, Flags: packet.RST | packet.ACK,
	}
	if to == remote {
		s.Src, s.Dst, s.SrcPort, s.DstPort = s.Dst, s.Src, s.DstPort, s.SrcPort
	}
	return packet.AppendSegment(b, s)
}
