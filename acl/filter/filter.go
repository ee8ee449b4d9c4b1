package filter

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Config bounds a Filter. Zero values select the defaults.
type Config struct {
	MaxFlows int // concurrent flows; 131072
	PerPeer  int // concurrent flows with one peer; a quarter of MaxFlows
	Records  int // records kept until they are drained; 4096
	Refusals int // refusals per second sent to the local host; 1000
	// Now is the clock by which flows and fragments time out; time.Now. It should count the time that the machine sleeps, which
	// Go's monotonic clock does not do everywhere, and should not jump when the system's clock is set.
	Now func() time.Time
}

const shardCount = 16

// Filter decides about every packet of one node. Its methods are safe for concurrent use.
type Filter struct {
	now     func() time.Time
	start   time.Time
	current atomic.Pointer[enforced] // never nil
	clock   atomic.Uint32            // the latest tick that Sweep or Install read
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

// enforced is an installed program with the filter's state about its peers. A flow holds a pointer to the one that last
// permitted it; if that is not the current one, the flow is due for review.
type enforced struct {
	*Program
	peers []*peer // by their number in the program
}

// peer counts a node's flows. It is carried over from program to program as long as the node is in each of them.
type peer struct {
	id       proto.NodeID
	identity atomic.Pointer[proto.Identity]
	flows    atomic.Int32
	dropped  atomic.Pointer[drops] // nil until a packet is dropped
}

// Verdict is the decision about a packet.
type Verdict struct {
	Pass   bool
	Reason Reason
	// Refuse reports whether the sender, on this host, should get an answer: see AppendReply.
	Refuse bool
	rule   *ruling
}

// Rule returns the rule that lets the packet pass. For a denied packet it is the rule that denies it or, if there is none,
// the nearest rule about this peer, if any.
func (v Verdict) Rule() (proto.Origin, bool) {
	if v.rule == nil {
		return proto.Origin{}, false
	}
	return v.rule.Origin, true
}

// AppendReply appends to b the IP packet that reports to the local host that pkt, which v is about, was refused: a TCP
// reset or an ICMP error of at most packet.ReplyLimit bytes. It appends nothing if no answer is due.
func (v Verdict) AppendReply(b, pkt []byte) []byte {
	var p packet.Packet
	if !v.Refuse || packet.Parse(pkt, &p) != packet.OK {
		return b
	}
	return packet.AppendRefusal(b, pkt, &p)
}

// New returns a filter that lets nothing pass until a program is installed.
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

// Install puts p in force at once, for every later packet; nil lets nothing pass. Flows that the previous program
// permitted are judged again: each at its next packet, and all of them by Sweep, which should be called next.
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
func (f *Filter) Out(pkt []byte) Verdict { return f.one(proto.Out, pkt) }

// In judges a packet from the mesh whose source address the engine has already checked to belong to its sender.
func (f *Filter) In(pkt []byte) Verdict { return f.one(proto.In, pkt) }

// OutSegments judges a packet that the host wants cut into n segments, as a device with segmentation offload delivers it.
// The verdict applies to all segments, and they are counted as n packets.
func (f *Filter) OutSegments(pkt []byte, n int) Verdict {
	var r run
	var p packet.Packet
	v := f.decide(&r, proto.Out, 0, pkt, &p, n)
	r.release()
	if !v.Pass && n > 1 {
		f.drop(f.other(proto.Out, &p, v.Reason), v.Reason, n-1)
	}
	return v
}

// OutBatch judges packets that the local host sent together, as a TUN device reads them: packet i is
// bufs[i][offset:][:sizes[i]]. Verdicts must be at least as long as sizes. A packet that follows another of the same flow
// costs less than half.
func (f *Filter) OutBatch(bufs [][]byte, sizes []int, offset int, verdicts []Verdict) {
	f.batch(proto.Out, 0, bufs[:len(sizes)], sizes, offset, verdicts)
}

// InBatch judges packets that came together from one peer: packet i is bufs[i][offset:]. From is zero if the engine has
// already checked that the senders own the source addresses. Verdicts must be at least as long as bufs.
func (f *Filter) InBatch(from proto.NodeID, bufs [][]byte, offset int, verdicts []Verdict) {
	f.batch(proto.In, from, bufs, nil, offset, verdicts)
}

func (f *Filter) one(d proto.Direction, pkt []byte) Verdict {
	var r run
	var p packet.Packet
	v := f.decide(&r, d, 0, pkt, &p, 1)
	r.release()
	return v
}

// run is a sequence of packets of the same flow. While it lasts, the flow's shard stays locked and the flow is not looked up again.
type run struct {
	s   *shard // locked if not nil
	fl  *flow
	tag uint32
}

func (r *run) release() {
	if r.s != nil {
		r.s.mu.Unlock()
		r.s, r.fl = nil, nil
	}
}

// batch judges consecutive packets. Packets that merely continue what the one before them did are not looked up again.
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

// carry accounts for packets that continue a packet that passed by the run's flow.
func (r *run) carry(d proto.Direction, more *packet.Run) {
	s, w := sender(d), Traffic{uint64(more.Packets), uint64(more.Bytes)}
	r.fl.sent[s].plus(w)
	r.s.passed[d].plus(w)
	if r.fl.class == tcpFlow {
		r.fl.advance(s, more.End)
		r.fl.acknowledge(s, more.Ack)
	}
}

// decide parses one packet of a run into p and judges it; it stands for n packets. From is its sender if the engine names
// one, else zero.
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

// flow judges a packet by the flow that it belongs to or opens.
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

// tick advances the coarse clock and refills the allowance of refusals. The clock never goes back: if the time is set back
// it stands still, so that no flow looks younger than it is.
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

// weigh returns the traffic that p counts for if it stands for n packets, all of which carry its headers.
func weigh(p *packet.Packet, n int) Traffic {
	if n <= 1 {
		return Traffic{1, uint64(p.Length)}
	}
	return Traffic{uint64(n), uint64(p.Length) + uint64(n-1)*uint64(p.Payload)}
}

// comesInSegments reports whether p can stand for several segments: only TCP payload in the middle of a connection, and UDP,
// can be segmented.
func comesInSegments(p *packet.Packet) bool {
	switch {
	case p.Fragment:
		return false
	case p.Proto == proto.ProtoTCP:
		return p.Flags&(packet.SYN|packet.RST) == 0
	}
	return p.Proto == proto.ProtoUDP
}

// allowance is a token bucket that holds at most one second's worth. A token consists of as many parts as a second has ticks, so
// that what a tick adds needs no rounding.
type allowance struct {
	rate int64
	left atomic.Int64 // in parts
}

const token = int64(second)

func (a *allowance) fill(rate int) {
	a.rate = int64(rate)
	a.left.Store(a.rate * token)
}

func (a *allowance) take() bool { return a.left.Load() >= token && a.left.Add(-token) >= 0 }

// pass refills the bucket for t ticks.
func (a *allowance) pass(t tick) {
	full := a.rate * token
	if left := a.left.Add(min(int64(t)*a.rate, full)); left > full {
		a.left.Add(full - left)
	}
}
