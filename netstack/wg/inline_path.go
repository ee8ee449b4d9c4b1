package wg

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/netstack/wg/session"
)

const (
	slotSize   = 2048    // of a buffer, unless the MTU needs more
	jumboSize  = 1 << 16 // of buffers in which the kernel or a bind joins messages
	maxContent = jumboSize - noise.Overhead
	// maxJoined and maxJoinedCount are how many bytes and messages a bind joins at most.
	maxJoined      = 65000
	maxJoinedCount = 64
	// maxWaiting and maxStaged limit what waits for a session: packets of one peer, and bytes of all peers.
	maxWaiting = 128
	maxStaged  = 8 << 20
)

// slots returns n buffers in one block of memory.
func slots(n, size int) [][]byte {
	all := make([]byte, n*size)
	out := make([][]byte, n)
	for i := range out {
		out[i] = all[i*size : (i+1)*size : (i+1)*size]
	}
	return out
}

// sendSlots returns buffers for packets that are sealed in place. Whatever is read into them leaves room for padding and tag in
// their capacity, even if the packet is larger than it should be.
func sendSlots(n, size int) [][]byte {
	out := slots(n, size)
	for i := range out {
		out[i] = out[i][:size-noise.Overhead]
	}
	return out
}

// slotFor returns the size of a buffer for a message of this MTU.
func slotFor(mtu int) int { return max(slotSize, (mtu+2*noise.Overhead+63)&^63) }

// sender is the state of the device's reader.
type sender struct {
	bufs    [][]byte
	sizes   []int
	jumbo   [][]byte // each holds the first message of a run, so that the bind can join the others to it
	msgs    [][]byte
	touched []*node
	super   *tun.Super // for splitting oversized packets; nil until needed
}

func newSender(batch int) *sender {
	return &sender{
		sizes: make([]int, batch), msgs: make([][]byte, 0, batch),
		jumbo: slots(batch*slotSize/jumboSize, jumboSize), // enough to join all
	}
}

// readDevice seals and sends the host's packets until the device breaks.
func (e *Inline) readDevice() {
	defer e.stop()
	batch := max(1, e.tun.BatchSize())
	s := newSender(batch)
	slot := 0
	for {
		if want := slotFor(int(e.mtu.Load())); want != slot {
			slot = want
			s.bufs = sendSlots(batch, slot)
		}
		n, err := e.tun.Read(s.bufs, s.sizes, noise.HeaderSize)
		if n > 0 {
			e.outbound(s, n)
		}
		if err != nil && !errors.Is(err, wgtun.ErrTooManySegments) {
			e.log.Debug("the device cannot be read any more", "err", err)
			return
		}
	}
}

// outbound sends a batch, grouped by peer and in order.
func (e *Inline) outbound(s *sender, count int) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var last *node
	var lastTo netip.Addr
	for i, size := range s.sizes[:count] {
		to, ok := destination(s.bufs[i][noise.HeaderSize : noise.HeaderSize+size])
		if !ok {
			continue
		}
		if to != lastTo {
			last, lastTo = e.behind(to), to
		}
		if last == nil {
			e.lose(nil, DropNoPeer, 1)
			continue
		}
		if _, limit := e.mtuTo(last); limit > 0 && size > limit {
			e.oversize(s, last, s.bufs[i][noise.HeaderSize:noise.HeaderSize+size], limit)
			continue
		}
		if len(last.batch) == 0 {
			s.touched = append(s.touched, last)
		}
		last.batch = append(last.batch, i)
	}
	now := e.now()
	for _, n := range s.touched {
		e.transmit(s, n, now)
		n.batch = n.batch[:0]
	}
	clear(s.touched)
	s.touched = s.touched[:0]
}

// transmit sends a batch's packets for one peer, or stages them until there is a session.
func (e *Inline) transmit(s *sender, n *node, now time.Time) {
	n.mu.Lock()
	e.wake(n, now)
	if len(n.waiting) > 0 && n.peer.Current(now) != nil {
		e.flush(n, now)
	}
	cur, endpoint := n.peer.Current(now), n.endpoint
	if cur == nil {
		e.wait(s, n, n.batch, now)
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()

	sent := e.seal(s, n, cur)
	if sent > 0 {
		e.send(n, endpoint, s.msgs)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peer == nil {
		return
	}
	if sent > 0 {
		e.step(n, now, session.Sent{Data: true})
	}
	if sent < len(n.batch) { // the session has reached its message limit
		e.wait(s, n, n.batch[sent:], now)
		return
	}
	e.settle(n)
}

// seal fills s.msgs, and returns how many of the packets were sealed.
func (e *Inline) seal(s *sender, n *node, cur *session.Session) int {
	mtu, _ := e.mtuTo(n)
	s.msgs = s.msgs[:0]
	joined, count, jumbo := 0, 0, 0
	for i, at := range n.batch {
		buf, size := s.bufs[at][:cap(s.bufs[at])], s.sizes[at]
		if full := session.Padded(size, mtu) + noise.Overhead; count == 0 || joined+full > maxJoined || count == maxJoinedCount {
			joined, count = 0, 0
			if len(n.batch)-i > 1 && jumbo < len(s.jumbo) {
				big := s.jumbo[jumbo]
				jumbo++
				copy(big[noise.HeaderSize:], buf[noise.HeaderSize:noise.HeaderSize+size])
				buf = big
			}
		}
		sealed, ok := cur.Seal(buf, size, mtu)
		if !ok {
			return i
		}
		joined += sealed
		count++
		s.msgs = append(s.msgs, buf[:sealed])
	}
	return len(n.batch)
}

// wait stages packets of a batch and asks for a session. The caller holds the node's lock.
func (e *Inline) wait(s *sender, n *node, places []int, now time.Time) {
	for _, at := range places {
		e.stage(n, s.bufs[at][noise.HeaderSize:noise.HeaderSize+s.sizes[at]])
	}
	e.step(n, now, session.Want{})
	e.settle(n)
}

// stage queues a copy of a packet until there is a session. The caller holds the node's lock.
func (e *Inline) stage(n *node, pkt []byte) {
	room := noise.HeaderSize + session.Padded(len(pkt), maxContent) + noise.Overhead // whatever the MTU is when it is sent
	if e.staged.Add(int64(room)) > maxStaged {
		e.staged.Add(-int64(room))
		e.lose(n, DropNoAnswer, 1)
		return
	}
	if len(n.waiting) >= maxWaiting { // the oldest is the least useful
		e.staged.Add(-int64(cap(n.waiting[0])))
		n.waiting = slices.Delete(n.waiting, 0, 1)
		e.lose(n, DropNoAnswer, 1)
	}
	buf := make([]byte, noise.HeaderSize+len(pkt), room)
	copy(buf[noise.HeaderSize:], pkt)
	n.waiting = append(n.waiting, buf)
}

// flush sends the waiting packets. The caller holds the node's lock.
func (e *Inline) flush(n *node, now time.Time) {
	mtu, _ := e.mtuTo(n)
	list := n.waiting
	n.waiting = nil
	var msgs [][]byte
	for i, buf := range list {
		cur := n.peer.Current(now)
		if cur == nil {
			n.waiting = list[i:]
			break
		}
		sealed, ok := cur.Seal(buf[:cap(buf)], len(buf)-noise.HeaderSize, mtu)
		if !ok {
			n.waiting = list[i:]
			break
		}
		e.staged.Add(-int64(cap(buf)))
		msgs = append(msgs, buf[:sealed])
	}
	for chunk := range slices.Chunk(msgs, max(1, e.bind.BatchSize())) {
		e.send(n, n.endpoint, chunk)
	}
	if len(msgs) > 0 {
		e.step(n, now, session.Sent{Data: true})
	}
	if len(n.waiting) > 0 {
		e.step(n, now, session.Want{})
	}
}

func (e *Inline) dropWaiting(n *node) {
	for _, buf := range n.waiting {
		e.staged.Add(-int64(cap(buf)))
	}
	n.waiting = nil
}

// sendKeepalive sends an empty message. The caller holds the node's lock.
func (e *Inline) sendKeepalive(n *node, now time.Time) {
	cur := n.peer.Current(now)
	if cur == nil {
		return
	}
	var buf [noise.Overhead]byte
	if size, ok := cur.Seal(buf[:], 0, int(e.mtu.Load())); ok {
		e.send(n, n.endpoint, [][]byte{buf[:size]})
	}
}

// send hands messages to the bind. Those that cannot be sent are lost, as any packet may be.
func (e *Inline) send(n *node, to conn.Endpoint, msgs [][]byte) {
	if to == nil {
		e.lose(n, DropUnsent, len(msgs))
		return
	}
	total := 0
	for _, m := range msgs {
		total += len(m)
	}
	if err := sendError(e.bind.Send(msgs, to)); err != nil {
		e.log.Debug("not sent", "node", n.id, "messages", len(msgs), "err", err)
		e.lose(n, DropUnsent, len(msgs))
		return
	}
	n.tx.Add(uint64(total))
}

// sendError unwraps the report that segmentation offload is disabled: the messages were then resent without it.
func sendError(err error) error {
	if err == nil {
		return nil // the common case allocates nothing
	}
	var gso conn.ErrUDPGSODisabled
	if errors.As(err, &gso) {
		return gso.RetryErr
	}
	return err
}

// receiver is the state of one socket's reader.
type receiver struct {
	bufs      [][]byte
	sizes     []int
	endpoints []conn.Endpoint
	out       [][]byte // packets for the host
	heads     [][]byte // each holds the first packet of a flow, so that the device can join the others to it
	flows     []uint64
	seed      maphash.Seed
	run       run
}

// maxHeads is how many flows of a batch can have their packets joined.
const maxHeads = 8

func newReceiver(batch int) *receiver {
	return &receiver{
		sizes: make([]int, batch), endpoints: make([]conn.Endpoint, batch), out: make([][]byte, 0, batch),
		heads: slots(min(maxHeads, batch), jumboSize), flows: make([]uint64, 0, maxHeads), seed: maphash.MakeSeed(),
	}
}

// run is a series of consecutive messages received in one session.
type run struct {
	entry
	from  conn.Endpoint
	src   netip.Addr // of the last packet, if the peer may send from there
	bytes int
	data  bool
	msgs  int
}

const (
	maxBadReceives = 10
	badReceiveWait = time.Second / 3
)

// receive opens and delivers packets received on one socket until it closes.
func (e *Inline) receive(fn conn.ReceiveFunc) {
	batch := max(1, e.bind.BatchSize())
	r := newReceiver(batch)
	slot, bad := 0, 0
	for {
		if want := slotFor(int(e.mtu.Load())); want != slot {
			slot = want
			r.bufs = receiveSlots(batch, slot)
		}
		n, err := fn(r.bufs, r.sizes, r.endpoints)
		if err == nil {
			bad = 0
			e.inbound(r, n)
			continue
		}
		if bad++; !e.tryAgain(err, bad) {
			return
		}
	}
}

// tryAgain waits, and reports whether to receive again from a socket that has failed bad times in a row.
func (e *Inline) tryAgain(err error, bad int) bool {
	var lasting net.Error
	if errors.Is(err, net.ErrClosed) || e.halted() {
		return false
	}
	if bad > maxBadReceives || (errors.As(err, &lasting) && !lasting.Timeout()) {
		e.log.Warn("nothing more is received by a socket", "err", err)
		return false
	}
	select {
	case <-e.stopping:
	case <-time.After(badReceiveWait):
	}
	return true
}

func (e *Inline) halted() bool {
	select {
	case <-e.stopping:
		return true
	default:
		return false
	}
}

// joinedSlots is how many buffers at the end of a batch the system's bind reads joined datagrams into.
const joinedSlots = 2

func receiveSlots(batch, size int) [][]byte {
	if batch < 2*joinedSlots {
		return slots(batch, size)
	}
	return append(slots(batch-joinedSlots, size), slots(joinedSlots, jumboSize)...)
}

// inbound handles a received batch.
func (e *Inline) inbound(r *receiver, count int) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	now := e.now()
	for i, size := range r.sizes[:count] {
		if size == 0 {
			continue // the bind has taken the message: it was not WireGuard's, or not wanted
		}
		if size < noise.Overhead {
			e.lose(nil, DropMalformed, 1)
			continue
		}
		msg := r.bufs[i][:size]
		if binary.LittleEndian.Uint32(msg) == noise.TypeTransport {
			e.transport(r, msg, r.endpoints[i], now)
			continue
		}
		e.note(r, now)
		e.handshake(msg, r.endpoints[i], now)
	}
	e.note(r, now)
	e.deliver(r)
	clear(r.endpoints[:count])
}

// deliver writes the opened packets to the device.
func (e *Inline) deliver(r *receiver) {
	if len(r.out) > 0 {
		if _, err := e.tun.Write(r.out, noise.HeaderSize); err != nil && !e.halted() {
			e.log.Debug("packets for the host were lost", "err", err)
		}
	}
	clear(r.out[:cap(r.out)])
	r.out, r.flows = r.out[:0], r.flows[:0]
}

// transport opens one transport message.
func (e *Inline) transport(r *receiver, msg []byte, from conn.Endpoint, now time.Time) {
	index := binary.LittleEndian.Uint32(msg[4:])
	if r.run.session == nil || r.run.session.Index != index {
		e.note(r, now)
		x := e.indexes.find(index)
		if x.session == nil || !x.session.Alive(now) {
			e.lose(x.node, DropNoSession, 1)
			return
		}
		r.run = run{entry: x}
	}
	size := len(msg)
	content, err := r.run.session.Open(msg)
	if err != nil {
		e.lose(r.run.node, dropOf[err], 1)
		return
	}
	r.run.from = from
	r.run.bytes += size
	r.run.msgs++
	if len(content) == 0 {
		return
	}
	r.run.data = true
	src, n, ok := source(content)
	if !ok {
		e.lose(r.run.node, DropMalformed, 1)
		return
	}
	if src != r.run.src {
		if e.behind(src) != r.run.node {
			e.lose(r.run.node, DropSource, 1)
			return
		}
		r.run.src = src
	}
	r.out = append(r.out, e.head(r, msg[:noise.HeaderSize+n:noise.HeaderSize+n]))
}

// head moves the first packet of a flow into a buffer with room to join others to it.
func (e *Inline) head(r *receiver, buf []byte) []byte {
	if len(r.flows) == len(r.heads) {
		return buf
	}
	h := maphash.Bytes(r.seed, flow(buf[noise.HeaderSize:]))
	if slices.Contains(r.flows, h) {
		return buf
	}
	big := r.heads[len(r.flows)]
	r.flows = append(r.flows, h)
	return big[:copy(big, buf)]
}

// note reports the run's messages to its peer.
func (e *Inline) note(r *receiver, now time.Time) {
	x := r.run
	r.run = run{}
	if x.msgs == 0 {
		return
	}
	n := x.node
	n.rx.Add(uint64(x.bytes))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peer == nil {
		return
	}
	e.cameFrom(n, x.from)
	e.step(n, now, session.Received{Session: x.session, Data: x.data})
	e.settle(n)
}

// handshake handles a message that is not a transport message.
func (e *Inline) handshake(msg []byte, from conn.Endpoint, now time.Time) {
	switch binary.LittleEndian.Uint32(msg) {
	case noise.TypeInitiation:
		l := e.admit(msg, from, now)
		if l == nil {
			return
		}
		if l.refuses(now) {
			e.lose(nil, DropWrongKey, 1)
			return
		}
		in, err := l.Open(msg)
		if err != nil {
			e.lose(nil, DropForged, 1)
			return
		}
		if n := e.byKey[in.Remote]; n != nil {
			e.answer(n, l, in, from, len(msg), now)
		} else {
			e.lose(nil, DropStranger, 1)
		}
	case noise.TypeResponse:
		if e.admit(msg, from, now) == nil {
			return
		}
		e.tell(e.indexes.find(binary.LittleEndian.Uint32(msg[8:])).node, session.Response{Message: msg}, from, len(msg), now)
	case noise.TypeCookieReply:
		index := binary.LittleEndian.Uint32(msg[4:])
		e.tell(e.indexes.find(index).node, session.CookieReply{Index: index, Message: msg}, from, len(msg), now)
	default:
		e.lose(nil, DropMalformed, 1)
	}
}

// tell passes a message to the peer whose handshake it names, if there is one.
func (e *Inline) tell(n *node, ev session.Event, from conn.Endpoint, size int, now time.Time) {
	if n == nil {
		e.lose(nil, DropNoSession, 1)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peer != nil {
		e.stepFrom(n, now, ev, from, size)
		e.settle(n)
	}
}

// answer handles an initiation that claims to be from a peer. Until that is proven, a sleeping peer has only the pair that it is
// for: anyone can claim a key, and each pair costs as much as another handshake.
func (e *Inline) answer(n *node, l *local, in *noise.Initiation, from conn.Endpoint, size int, now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	slept := n.peer == nil
	if slept {
		e.rouse(n, now)
		claimed := slices.DeleteFunc(slices.Clone(n.remotes), func(r *remoteKey) bool { return r.public.Array() != in.Remote })
		e.pairUp(n, []*local{l}, claimed, now)
	}
	i := slices.IndexFunc(n.pairs, func(p *session.Pair) bool {
		return p.Local == l.Local && p.Remote.Public() == in.Remote
	})
	if i >= 0 {
		e.stepFrom(n, now, session.Initiation{Pair: n.pairs[i], Message: in}, from, size)
	}
	if slept && !n.peer.Idle() {
		e.equip(n, now)
	}
	e.settle(n)
}

// admit returns the key of ours that a handshake message is for, or nil if it should not be read.
func (e *Inline) admit(msg []byte, from conn.Endpoint, now time.Time) *local {
	var reply [noise.CookieReplySize]byte
	l, v, err := e.judge(msg, from, now, &reply)
	switch {
	case err != nil:
		e.log.Debug("a handshake is not taken", "err", err)
	case v == noise.Pass:
		return l
	case v == noise.Challenge:
		if err := e.bind.Send([][]byte{reply[:]}, from); err != nil {
			e.log.Debug("a cookie is not sent", "err", err)
		}
		e.lose(nil, DropNoCookie, 1)
	case v == noise.Refuse:
		e.lose(nil, DropLimit, 1)
	default:
		e.lose(nil, DropWrongKey, 1)
	}
	return nil
}

// judge asks the gate about a handshake message; the key is the one of ours that it is for. It does not send the reply, which may
// take until a socket has room: other handshakes would wait for that.
func (e *Inline) judge(
	msg []byte, from conn.Endpoint, now time.Time, reply *[noise.CookieReplySize]byte,
) (*local, noise.Verdict, error) {
	e.gateMu.Lock()
	defer e.gateMu.Unlock()
	for _, l := range e.locals {
		v, err := e.gate.Admit(now, rand.Reader, l.Local, msg, from.DstToBytes(), from.DstIP(), reply)
		if v != noise.Drop || err != nil {
			return l, v, err
		}
	}
	return nil, noise.Drop, nil
}

// destination returns the destination address of a packet.
func destination(pkt []byte) (netip.Addr, bool) {
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(pkt[16:20])), true
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(pkt[24:40])), true
	}
	return netip.Addr{}, false
}

// source returns the source address of a packet, and its length without padding.
func source(pkt []byte) (netip.Addr, int, bool) {
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		n := int(binary.BigEndian.Uint16(pkt[2:]))
		return netip.AddrFrom4([4]byte(pkt[12:16])), n, n >= 20 && n <= len(pkt)
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		n := 40 + int(binary.BigEndian.Uint16(pkt[4:]))
		return netip.AddrFrom16([16]byte(pkt[8:24])), n, n <= len(pkt)
	}
	return netip.Addr{}, 0, false
}

// flow returns the part of a packet, already checked by source, that identifies its flow: the addresses, and the ports if they
// are in the usual place.
func flow(pkt []byte) []byte {
	if pkt[0]>>4 == 4 {
		return pkt[12:min(len(pkt), 24)]
	}
	return pkt[8:min(len(pkt), 44)]
}
