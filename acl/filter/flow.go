package filter

import (
	"math/bits"
	"sync"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// side is one end of a flow.
type side uint8

const (
	local side = iota
	remote
)

// sender returns the side that sends packets of direction d.
func sender(d proto.Direction) side {
	if d == proto.In {
		return remote
	}
	return local
}

// key names a flow: both addresses, and protocol<<32 | local port<<16 | remote port.
type key struct {
	local, remote packet.Addr
	ports         uint64
}

// echo stands in for the port of the side that answers echoes. The requester has the identifier in place of its port, so a
// reply can only ever belong to a request that went the other way.
const echo = 8

// of sets k to the key of the flow of a packet of direction d. It fills k in place, word by word: copying it would be wide
// loads right after narrow stores, which stall until the stores retire.
func (k *key) of(d proto.Direction, p *packet.Packet) {
	src, dst := uint64(p.SrcPort), uint64(p.DstPort)
	if isICMP(p.Proto) {
		if src, dst = uint64(p.EchoID), echo; p.IsEchoReply() {
			src, dst = dst, src
		}
	}
	from, to := &k.local, &k.remote
	if d == proto.In {
		from, to = to, from
		src, dst = dst, src
	}
	from.Hi, from.Lo, to.Hi, to.Lo = p.Src.Hi, p.Src.Lo, p.Dst.Hi, p.Dst.Lo
	k.ports = uint64(p.Proto)<<32 | src<<16 | dst
}

func (k *key) equal(l *key) bool {
	return (k.local.Hi^l.local.Hi)|(k.local.Lo^l.local.Lo)|(k.remote.Hi^l.remote.Hi)|(k.remote.Lo^l.remote.Lo)|
		(k.ports^l.ports) == 0
}

func (k *key) proto() uint8       { return uint8(k.ports >> 32) }
func (k *key) localPort() uint16  { return uint16(k.ports >> 16) }
func (k *key) remotePort() uint16 { return uint16(k.ports) }

// service returns the port that was connected to, for a flow opened in direction opened.
func (k *key) service(opened proto.Direction) uint16 {
	if opened == proto.In {
		return k.localPort()
	}
	return k.remotePort()
}

// seed makes hashes unpredictable to peers, who choose half of what is hashed.
type seed [6]uint64

// hash spreads k over 64 bits: the low bits choose the shard, the high 32 are the tag. The three products of the first
// round do not depend on each other. Ports and the last round are multiplied by constants that are known to be good, since
// some random factors hardly mix at all.
func (s *seed) hash(k *key) uint64 {
	h := mix(k.local.Hi^s[0], k.remote.Hi^s[1]) ^ mix(k.local.Lo^s[2], k.remote.Lo^s[3]) ^ mix(k.ports^s[4], 0xa0761d6478bd642f)
	return mix(h^s[5], 0xe7037ed1a0b428db)
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// state is the stage of a flow's life.
type state uint8

const (
	vacant  state = iota // the entry holds no flow
	opening              // one side sent
	open                 // both sides sent
	closing              // TCP: both sent FIN, or one sent RST
	dead                 // no longer permitted; stays until Sweep has reset both ends
)

// flow is one entry of the table: two cache lines. A packet of an established flow needs only the first.
type flow struct {
	key
	by      *enforced // what last permitted it
	peer    *peer
	state   state
	opened  proto.Direction
	class   uint8 // of timeouts
	fins    uint8 // one bit per side
	expires tick

	rule    *ruling
	sent    [2]tally // by side
	started tick
	tag     uint32
}

// tally is what one side sent. What the other side expects next, which a reset must hit exactly (RFC 5961), is one of two
// numbers: next, the end of all that was sent, or acked, the last acknowledgement of the other side, if it misses something
// before that end.
type tally struct {
	Traffic
	next, acked uint32
}

// touch counts a packet that side s sent and updates the flow's state.
func (f *flow) touch(s side, p *packet.Packet, w Traffic, now tick) {
	f.sent[s&1].plus(w)
	switch {
	case f.class != tcpFlow:
		if s != sender(f.opened) {
			f.state = open
		}
	default:
		f.segment(s, p)
	}
	f.expires = now + idleFor(f.class, f.state)
}

// segment tracks a TCP connection.
func (f *flow) segment(s side, p *packet.Packet) {
	end := p.Seq + p.SegmentLength()
	if p.Flags&packet.SYN != 0 {
		f.synchronize(s, p, end)
	}
	f.advance(s, end)
	if p.Flags&packet.ACK != 0 {
		f.acknowledge(s, p.Ack)
	}
	if p.Flags&(packet.FIN|packet.RST) != 0 {
		if p.Flags&packet.FIN != 0 {
			f.fins |= 1 << s
		}
		if f.fins == 3 || p.Flags&packet.RST != 0 {
			f.state = closing
		}
	}
}

// synchronize handles a SYN of side s, after which its sequence numbers continue with end.
func (f *flow) synchronize(s side, p *packet.Packet, end uint32) {
	mine, others, answers := &f.sent[s&1], &f.sent[s&1^1], p.Flags&packet.ACK != 0
	switch {
	case f.state == opening:
		mine.next, mine.acked = end, end
		if answers && s != sender(f.opened) {
			f.state = open
		}
	case f.state == open && answers && (end != mine.next || p.Ack != others.acked): // not the same answer again
		// Both hosts have forgotten the connection, whose end the filter did not see, and use its ports for another. A SYN alone
		// would not show that: a host that still has the connection refuses it.
		mine.next, mine.acked = end, end
		others.next, others.acked = p.Ack, p.Ack
	}
}

// advance records how far side s has sent.
func (f *flow) advance(s side, end uint32) {
	if mine := &f.sent[s&1]; int32(end-mine.next) > 0 {
		mine.next = end
	}
}

// acknowledge records how much side s acknowledges of what the other side sent.
func (f *flow) acknowledge(s side, ack uint32) {
	others := &f.sent[s&1^1]
	if int32(ack-others.acked) > 0 {
		others.acked = ack
	}
	if int32(ack-others.next) > 0 {
		others.next = ack
	}
}

// opens reports whether p can begin a flow.
func opens(p *packet.Packet) bool {
	if p.Proto == proto.ProtoTCP {
		return isOpening(p)
	}
	return !p.IsEchoReply()
}

// isOpening reports whether p is a pure TCP SYN.
func isOpening(p *packet.Packet) bool {
	const mask = packet.SYN | packet.ACK | packet.RST | packet.FIN
	return p.Proto == proto.ProtoTCP && p.Flags&mask == packet.SYN
}

// tick counts tenths of a second since the filter was made.
type tick uint32

const (
	second     tick = 10
	tickLength      = time.Second / time.Duration(second)
)

// Timeout classes.
const (
	tcpFlow = iota
	udpFlow
	otherFlow
)

// idle is how long a flow may be silent. An open TCP connection outlasts the two hours after which hosts send keepalives
// (RFC 5382); one closed by both sides lingers for retransmissions. Both lengths are powers of two so that masked indexes
// need no bounds check.
var idle = [4][8]tick{
	tcpFlow:   {opening: 60 * second, open: 3 * 3600 * second, closing: 60 * second},
	udpFlow:   {opening: 30 * second, open: 180 * second},
	otherFlow: {opening: 30 * second, open: 60 * second},
}

func idleFor(class uint8, s state) tick { return idle[class&3][s&7] }

func classOf(protocol uint8) uint8 {
	switch protocol {
	case proto.ProtoTCP:
		return tcpFlow
	case proto.ProtoUDP:
		return udpFlow
	}
	return otherFlow
}

// shard is a part of the flow table under one lock. The index uses open addressing with linear probing; its slots are
// tag<<32 | (flow number + 1). Flows themselves never move.
//
//	hash ─► tag ─► index ─► number ─► chunks[number/chunk][number%chunk]
type shard struct {
	mu     sync.Mutex
	index  []uint64
	chunks []*[chunk]flow
	spare  []uint32 // numbers of vacant entries
	used   uint32   // entries that ever held a flow; all beyond are vacant
	live   int
	hand   uint32 // where reclaim looks next

	passed  [3]Traffic // by direction
	started uint64
	ended   uint64
	records ring
}

const (
	chunk      = 128
	firstIndex = 64
)

func (s *shard) at(number uint32) *flow { return &s.chunks[number/chunk][number%chunk] }

func (s *shard) find(k *key, tag uint32) *flow {
	mask := uint32(len(s.index) - 1)
	for i := tag; ; i++ {
		slot := s.index[i&mask]
		if slot == 0 {
			return nil
		}
		if uint32(slot>>32) == tag {
			if f := s.at(uint32(slot) - 1); f.equal(k) {
				return f
			}
		}
	}
}

// insert adds a flow and returns its entry, zero except for its key and tag.
func (s *shard) insert(k *key, tag uint32) *flow {
	if 2*(s.live+1) > len(s.index) {
		s.grow()
	}
	var number uint32
	if n := len(s.spare); n > 0 {
		number = s.spare[n-1]
		s.spare = s.spare[:n-1]
	} else {
		number = s.used
		s.used++
		if number/chunk == uint32(len(s.chunks)) {
			s.chunks = append(s.chunks, new([chunk]flow))
		}
	}
	s.live++
	s.place(uint64(tag)<<32 | uint64(number+1))
	f := s.at(number)
	f.key, f.tag = *k, tag
	return f
}

func (s *shard) place(slot uint64) {
	mask := uint32(len(s.index) - 1)
	i := uint32(slot>>32) & mask
	for s.index[i] != 0 {
		i = (i + 1) & mask
	}
	s.index[i] = slot
}

// grow doubles the index. Slots hold their tags, so the flows themselves are not read.
func (s *shard) grow() {
	old := s.index
	s.index = make([]uint64, max(2*len(old), firstIndex))
	for _, slot := range old {
		if slot != 0 {
			s.place(slot)
		}
	}
}

// remove takes a flow out of the table and closes the gap in the index by moving back entries displaced past it.
func (s *shard) remove(f *flow) {
	mask := uint32(len(s.index) - 1)
	i := f.tag & mask
	var number uint32
	for {
		if slot := s.index[i]; uint32(slot>>32) == f.tag {
			if number = uint32(slot) - 1; s.at(number) == f {
				break
			}
		}
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; s.index[j] != 0; j = (j + 1) & mask {
		if home := uint32(s.index[j] >> 32); (j-home)&mask >= (j-i)&mask {
			s.index[i] = s.index[j]
			i = j
		}
	}
	s.index[i] = 0
	f.peer.flows.Add(-1)
	*f = flow{}
	s.spare = append(s.spare, number)
	s.live--
}
