package filter

import (
	"sync"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Reset is what the ends of a flow that died are told: one IP packet for the local host, one for the peer. Either may be
// nil. Both are valid until emit returns.
type Reset struct {
	ToLocal, ToPeer []byte
}

// sweep walks through the table, some entries at a time.
type sweep struct {
	mu      sync.Mutex
	by      *enforced // what this pass began under
	judged  *enforced // what the whole table was last judged by
	shard   int
	number  uint32
	doomed  [sweepStep]doomed
	toLocal [packet.ReplyLimit]byte
	toPeer  [packet.ReplyLimit]byte
}

// sweepStep is how many entries are looked at under one lock.
const sweepStep = 64

// doomed is what is left of a flow that is out of the table but whose ends were not told yet.
type doomed struct {
	key
	opened proto.Direction
	sent   [2]tally
	there  bool // the peer is still one of ours
}

// Sweep moves the filter's clock, ends flows that were silent for too long, judges those that an older program permitted,
// and hands emit the resets for those that died. It looks at no more than limit entries, all if limit is not positive,
// and goes on from there at the next call. It says whether the whole table was judged by the program now in force. Call
// it until it says so after each Install, and several times a second else.
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

// sweepSome looks at the next few entries of one shard and says how many.
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

// find is the program's number of the peer with that address; a filter without a program has none.
func (e *enforced) find(addr packet.Addr) (int, bool) {
	if e.Program == nil {
		return 0, false
	}
	node, _, ok := e.who(addr)
	return node, ok
}

// owns says whether addr is one of a node's, or behind it. Without a program nobody is checked: nothing passes anyway.
func (e *enforced) owns(id proto.NodeID, addr packet.Addr) bool {
	if e.Program == nil {
		return true
	}
	node, known := e.find(addr)
	return known && e.peers[node].id == id
}

// tell hands emit the packets that end a flow on both sides. TCP gets two where it is not certain which sequence number
// a side expects, as an inexact reset is ignored.
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

// reset is a TCP reset to one side, with the sequence number that it expects next.
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
