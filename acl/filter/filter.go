package filter

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Config bounds a Filter. Zero values take the defaults.
type Config struct {
	MaxFlows int              // flows at once; 131072
	PerPeer  int              // flows at once with one peer; a quarter of MaxFlows
	Records  int              // records kept until they are drained; 4096
	Refusals int              // answers a second to what the local host may not send; 1000
	Now      func() time.Time // time.Now
}

const shardCount = 16

// Filter decides about every packet of one node. All methods may be called at the same time from anywhere.
type Filter struct {
	now     func() time.Time
	start   time.Time
	current atomic.Pointer[enforced] // never nil
	clock   atomic.Uint32            // the tick that Sweep or Install saw last
	seed    seed

	perPeer  int32
	perShard int
	refusals allowance
	dropped  drops

	shards    [shardCount]shard
	fragments fragments
	sweep     sweep
	installs  sync.Mutex
	draining  sync.Mutex
}

// enforced is a program with what the filter knows of its peers. A flow remembers by which one it was last permitted;
// being another one than the current is what makes it due for review.
type enforced struct {
	*Program
	peers []*peer // by the program's number
}

// peer counts a node's flows. It stays the same from program to program for as long as the node is in each of them.
type peer struct {
	id       proto.NodeID
	identity atomic.Pointer[proto.Identity]
	flows    atomic.Int32
	dropped  atomic.Pointer[drops] // nil: none
}

// Verdict is what becomes of a packet.
type Verdict struct {
	Pass   bool
	Reason Reason
	// Refuse says that the sender, on this host, should be told: see AppendReply.
	Refuse bool
	rule   *ruling
}

// Rule is the rule that lets the packet pass. In a denial it is the one that denies or, where none does, that came
// nearest, if any is about this peer.
func (v Verdict) Rule() (proto.Origin, bool) {
	if v.rule == nil {
		return proto.Origin{}, false
	}
	return v.rule.Origin, true
}

// AppendReply appends to b the IP packet that tells the local host that pkt, which the verdict is about, was refused: a
// TCP reset or an ICMP error, at most packet.ReplyLimit bytes. It appends nothing where no answer is due.
func (v Verdict) AppendReply(b, pkt []byte) []byte {
	var p packet.Packet
	if !v.Refuse || packet.Parse(pkt, &p) != packet.OK {
		return b
	}
	return packet.AppendRefusal(b, pkt, &p)
}

// New makes a filter that lets nothing pass until a program is installed.
func New(c Config) *Filter {
	if c.MaxFlows <= 0 {
		c.MaxFlows = 131072
	}
	if c.PerPeer <= 0 {
		c.PerPeer = max(c.MaxFlows/4, 1)
	}
	if c.Records <= 0 {
		c.Records = 4096
	}
	if c.Refusals <= 0 {
		c.Refusals = 1000
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	f := &Filter{now: c.Now, start: c.Now(), perPeer: int32(c.PerPeer), perShard: max(c.MaxFlows/shardCount, 1)}
	for i := range f.seed {
		f.seed[i] = rand.Uint64()
	}
	for i := range f.shards {
		f.shards[i].grow()
		f.shards[i].records.size = ringSize(c.Records / shardCount)
	}
	f.refusals.fill(c.Refusals)
	f.current.Store(&enforced{})
	return f
}

// Install puts a program in force, at once and for every packet that comes after; nil lets nothing pass. Flows that the
// program before permitted are judged again: each at its next packet, all of them by Sweep, which should follow.
func (f *Filter) Install(p *Program) {
	f.installs.Lock()
	defer f.installs.Unlock()
	f.tick()
	next := &enforced{Program: p}
	if p != nil {
		before := f.current.Load()
		known := make(map[proto.NodeID]*peer, len(before.peers))
		for _, q := range before.peers {
			known[q.id] = q
		}
		next.peers = make([]*peer, len(p.peers))
		for n := range p.peers {
			id := &p.peers[n]
			q := known[id.ID]
			if q == nil {
				q = &peer{id: id.ID}
			}
			q.identity.Store(id)
			next.peers[n] = q
		}
	}
	f.current.Store(next)
}

// Out judges a packet that the local host sends into the mesh.
func (f *Filter) Out(pkt []byte) Verdict { return f.one(proto.Out, 0, pkt) }

// In judges a packet from the mesh whose sender the engine checked to be the owner of its source address.
func (f *Filter) In(pkt []byte) Verdict { return f.one(proto.In, 0, pkt) }

// InFrom judges a packet that came from a peer, which may use its own addresses only.
func (f *Filter) InFrom(from proto.NodeID, pkt []byte) Verdict {
	if from == 0 {
		return f.discard(Spoofed)
	}
	return f.one(proto.In, from, pkt)
}

// OutSegments judges a packet that the host leaves to be cut into n segments, as a device with segmentation offload gives
// it: one verdict is for all of them, and they are counted as the n packets that will be.
func (f *Filter) OutSegments(pkt []byte, n int) Verdict { return f.segments(proto.Out, 0, pkt, n) }

// InSegments judges a packet that was joined from n segments, which had the same headers but for what segmentation changes.
// From is who sent them all, zero where the engine checked that it is the owner of their source address.
func (f *Filter) InSegments(from proto.NodeID, pkt []byte, n int) Verdict {
	return f.segments(proto.In, from, pkt, n)
}

// OutBatch judges packets that the local host sent together, as a TUN device reads them: packet i is
// bufs[i][offset:][:sizes[i]]. Verdicts must be at least as long as sizes. Each packet after another of the same flow
// costs less than half.
func (f *Filter) OutBatch(bufs [][]byte, sizes []int, offset int, verdicts []Verdict) {
	f.batch(proto.Out, 0, bufs[:len(sizes)], sizes, offset, verdicts)
}

// InBatch judges packets that came together from one peer: packet i is bufs[i][offset:]. From is zero where the engine
// checked that the peers are the owners of the source addresses. Verdicts must be at least as long as bufs.
func (f *Filter) InBatch(from proto.NodeID, bufs [][]byte, offset int, verdicts []Verdict) {
	f.batch(proto.In, from, bufs, nil, offset, verdicts)
}

func (f *Filter) one(d proto.Direction, from proto.NodeID, pkt []byte) Verdict {
	var r run
	var p packet.Packet
	v := f.decide(&r, d, from, pkt, &p, 1)
	r.release()
	return v
}

func (f *Filter) segments(d proto.Direction, from proto.NodeID, pkt []byte, n int) Verdict {
	var r run
	var p packet.Packet
	v := f.decide(&r, d, from, pkt, &p, n)
	r.release()
	if !v.Pass && n > 1 {
		f.drop(f.other(d, &p, v.Reason), v.Reason, n-1)
	}
	return v
}

// run is a row of packets of the same flow. While it lasts, the flow's shard stays locked and the flow found.
type run struct {
	s   *shard // locked, if not nil
	fl  *flow
	tag uint32
}

func (r *run) release() {
	if r.s != nil {
		r.s.mu.Unlock()
		r.s, r.fl = nil, nil
	}
}

// batch judges packets that come one after the other. Those that only carry on what the one before them did are not
// looked up again.
func (f *Filter) batch(d proto.Direction, from proto.NodeID, bufs [][]byte, sizes []int, offset int, verdicts []Verdict) {
	var r run
	var p packet.Packet
	for i := 0; i < len(bufs); {
		pkt := bufs[i][offset:]
		if sizes != nil {
			pkt = pkt[:sizes[i]]
		}
		v := f.decide(&r, d, from, pkt, &p, 1)
		verdicts[i] = v
		if i++; r.fl == nil {
			continue
		}
		rest := sizes
		if sizes != nil {
			rest = sizes[i:]
		}
		more := p.Follow(pkt, bufs[i:], rest, offset)
		if more.Packets == 0 {
			continue
		}
		r.carry(d, &more)
		same := verdicts[i : i+more.Packets]
		for j := range same {
			same[j] = v
		}
		i += more.Packets
	}
	r.release()
}

// carry takes note of packets that carry on what one did that passed by the run's flow.
func (r *run) carry(d proto.Direction, more *packet.Run) {
	s, w := sender(d), Traffic{uint64(more.Packets), uint64(more.Bytes)}
	r.fl.sent[s].plus(w)
	r.s.passed[d].plus(w)
	if r.fl.class == tcpFlow {
		r.fl.advance(s, more.End)
		r.fl.acknowledge(s, more.Ack)
	}
}

// decide judges one packet of a run, which stands for n, and reads it into p; from is its sender where the engine names
// it, else zero.
func (f *Filter) decide(r *run, d proto.Direction, from proto.NodeID, pkt []byte, p *packet.Packet, n int) Verdict {
	if fault := packet.Parse(pkt, p); fault != packet.OK {
		r.release()
		return f.discard(Reason(fault))
	}
	switch {
	case n > 1 && !comesInSegments(p):
		return f.discardOf(d, p, BadSegments)
	case p.Fragment:
		r.release()
		return f.fragment(d, from, p)
	case isICMP(p.Proto) && !p.IsEchoRequest() && !p.IsEchoReply():
		r.release()
		return f.control(d, from, pkt, p)
	}
	return f.flow(r, d, from, p, weigh(p, n))
}

// flow judges a packet by the flow that it belongs to, or opens.
func (f *Filter) flow(r *run, d proto.Direction, from proto.NodeID, p *packet.Packet, w Traffic) Verdict {
	var k key
	k.of(d, p)
	if r.fl == nil || !k.equal(&r.fl.key) {
		if r.s != nil {
			r.release()
		}
		h := f.seed.hash(&k)
		s, tag := &f.shards[h%shardCount], uint32(h>>32)
		s.mu.Lock()
		r.s, r.tag, r.fl = s, tag, s.find(&k, tag)
	}
	by, now := f.current.Load(), tick(f.clock.Load())
	if fl := r.fl; fl != nil && fl.by == by && now < fl.expires && !isOpening(p) && (from == 0 || from == fl.peer.id) {
		fl.touch(sender(d), p, w, now)
		r.s.passed[d].plus(w)
		return Verdict{Pass: true, rule: fl.rule}
	}
	return f.visit(r, d, from, &k, p, w)
}

func isICMP(protocol uint8) bool { return protocol == proto.ProtoICMP || protocol == proto.ProtoICMPv6 }

// tick moves the coarse clock, and with it everything that is allowed so often a second. It never goes back: to a time that
// is set back it stands still, so that no flow is taken for younger than it is.
func (f *Filter) tick() tick {
	now := tick(max(f.now().Sub(f.start), 0) / tickLength)
	for {
		before := tick(f.clock.Load())
		if now <= before {
			return before
		}
		if f.clock.CompareAndSwap(uint32(before), uint32(now)) {
			f.refusals.pass(now - before)
			return now
		}
	}
}

// weigh is what p counts for, which stands for n packets: all of them carry its headers.
func weigh(p *packet.Packet, n int) Traffic {
	if n <= 1 {
		return Traffic{1, uint64(p.Length)}
	}
	return Traffic{uint64(n), uint64(p.Length) + uint64(n-1)*uint64(p.Payload)}
}

// comesInSegments says whether there is such a thing as p in several segments: it is for payload of TCP, in the midst of a
// connection, and of UDP.
func comesInSegments(p *packet.Packet) bool {
	switch {
	case p.Fragment:
		return false
	case p.Proto == proto.ProtoTCP:
		return p.Flags&(packet.SYN|packet.RST) == 0
	}
	return p.Proto == proto.ProtoUDP
}

// allowance lets so many things a second happen.
type allowance struct {
	rate int64
	left atomic.Int64
}

func (a *allowance) fill(rate int) {
	a.rate = int64(rate)
	a.left.Store(a.rate)
}

func (a *allowance) take() bool { return a.left.Load() > 0 && a.left.Add(-1) >= 0 }

// pass lets time pass: at most one second's worth is saved up.
func (a *allowance) pass(t tick) {
	more := min(int64(t)*a.rate/int64(second), a.rate)
	if left := a.left.Add(more); left > a.rate {
		a.left.Add(a.rate - left)
	}
}
