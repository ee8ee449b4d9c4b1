package wg

import (
	"crypto/rand"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/tun"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// stub is a device and a bind in one, which receive nothing by themselves: tests call the engine's data path directly. Sent
// messages are kept in preallocated buffers.
type stub struct {
	events chan tun.Event
	closed chan struct{}
	mu     sync.Mutex // timers send too
	sent   [][]byte
	room   [][]byte
	wrote  int
	fail   error  // returned when sending
	slow   func() // called when sending, unless nil
}

const stubBatch = 128

func newStub() *stub {
	return &stub{
		events: make(chan tun.Event), closed: make(chan struct{}),
		sent: make([][]byte, 0, stubBatch), room: slots(stubBatch, slotSize),
	}
}

func (s *stub) Read([][]byte, []int, int) (int, error) { <-s.closed; return 0, os.ErrClosed }
func (s *stub) MTU() (int, error)                      { return tun.DefaultMTU, nil }
func (s *stub) Name() (string, error)                  { return "stub", nil }
func (s *stub) File() *os.File                         { return nil }
func (s *stub) Events() <-chan tun.Event               { return s.events }
func (s *stub) BatchSize() int                         { return stubBatch }

func (s *stub) Write(bufs [][]byte, _ int) (int, error) {
	s.wrote += len(bufs)
	return len(bufs), nil
}

func (s *stub) Close() error {
	close(s.events)
	close(s.closed)
	return nil
}

// stubBind is the bind side of a stub.
type stubBind struct{ *stub }

func (b stubBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	return []conn.ReceiveFunc{func([][]byte, []int, []conn.Endpoint) (int, error) {
		<-b.closed
		return 0, net.ErrClosed
	}}, port, nil
}

func (b stubBind) Close() error         { return nil }
func (b stubBind) SetMark(uint32) error { return nil }
func (b stubBind) BatchSize() int       { return stubBatch }

func (b stubBind) Send(bufs [][]byte, _ conn.Endpoint) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slow != nil {
		b.slow()
	}
	if b.fail != nil {
		return b.fail
	}
	for _, buf := range bufs {
		n := len(b.sent)
		if n == len(b.room) {
			return nil // enough are kept
		}
		b.sent = append(b.sent, b.room[n][:copy(b.room[n], buf)])
	}
	return nil
}

// count returns how many messages are kept.
func (s *stub) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// drop discards the sent messages.
func (s *stub) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = s.sent[:0]
}

// held returns copies of the sent messages.
func (s *stub) held() (out [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.sent {
		out = append(out, slices.Clone(m))
	}
	return out
}

func (b stubBind) ParseEndpoint(s string) (conn.Endpoint, error) { return stubEndpoint(s), nil }

type stubEndpoint string

func (e stubEndpoint) ClearSrc()           {}
func (e stubEndpoint) SrcToString() string { return "" }
func (e stubEndpoint) DstToString() string { return string(e) }
func (e stubEndpoint) DstToBytes() []byte  { return []byte(e) }
func (e stubEndpoint) DstIP() netip.Addr   { return netip.MustParseAddr("192.0.2.9") }
func (e stubEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }

// rig is an engine on a stub.
type rig struct {
	*stub
	e   *Inline
	key key.NodePrivate
	s   *sender
	r   *receiver
}

func newRig(t testing.TB, number byte) *rig {
	t.Helper()
	k, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x := &rig{stub: newStub(), key: k}
	x.e = NewInline(proto.NodeID(number), x.stub, stubBind{x.stub}, slog.New(slog.DiscardHandler))
	if err := x.e.Configure(k, 0); err != nil {
		t.Fatal(err)
	}
	x.s = newSender(stubBatch)
	x.s.bufs = sendSlots(stubBatch, slotSize)
	x.r = newReceiver(stubBatch)
	x.r.bufs = receiveSlots(stubBatch, slotSize)
	return x
}

func (x *rig) close(t testing.TB) {
	t.Helper()
	if err := x.e.Close(); err != nil {
		t.Error(err)
	}
}

func addrs(n int) proto.Addrs {
	return proto.Addrs{V4: netip.AddrFrom4([4]byte{100, 64, byte(n >> 8), byte(n)})}
}

func (x *rig) peer(t testing.TB, number int, k key.NodePublic, routes ...string) {
	t.Helper()
	cfg := PeerConfig{
		ID: proto.NodeID(number), Keys: []key.NodePublic{k}, Addrs: addrs(number),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.9:1")},
	}
	for _, r := range routes {
		cfg.Routes = append(cfg.Routes, netip.MustParsePrefix(r))
	}
	err := x.e.SetPeer(cfg)
	if err != nil {
		t.Fatal(err)
	}
}

// fill fills the batch with packets.
func (x *rig) fill(count, size, from, to int) {
	for i := range count {
		b := x.s.bufs[i][noise.HeaderSize:]
		clear(b[:size])
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[2:], uint16(size))
		copy(b[12:], addrs(from).V4.AsSlice())
		copy(b[16:], addrs(to).V4.AsSlice())
		x.s.sizes[i] = size
	}
}

// carry delivers what one engine sent to the other.
func (x *rig) carry(to *rig) {
	x.mu.Lock()
	for i, m := range x.sent {
		to.r.sizes[i] = copy(to.r.bufs[i], m)
		to.r.endpoints[i] = stubEndpoint("192.0.2.9:1")
	}
	n := len(x.sent)
	x.sent = x.sent[:0]
	x.mu.Unlock()
	to.e.inbound(to.r, n)
}

// twoRigs returns two engines with a session between them.
func twoRigs(t testing.TB) (a, b *rig) {
	t.Helper()
	a, b = newRig(t, 1), newRig(t, 2)
	a.peer(t, 2, b.key.Public())
	b.peer(t, 1, a.key.Public())
	a.fill(1, 100, 1, 2)
	a.e.outbound(a.s, 1)
	for range 2 {
		a.carry(b)
		b.carry(a)
	}
	if b.wrote != 1 {
		t.Fatal("the first packet did not come")
	}
	return a, b
}

func TestPathDoesNotAllocate(t *testing.T) {
	a, b := twoRigs(t)
	defer a.close(t)
	defer b.close(t)
	for _, size := range []int{64, 1420} {
		b.wrote = 0
		const runs = 50
		n := testing.AllocsPerRun(runs, func() {
			a.fill(stubBatch, size, 1, 2)
			a.e.outbound(a.s, stubBatch)
			a.carry(b)
		})
		if n != 0 {
			t.Errorf("%g allocations for a batch of packets of %d bytes", n, size)
		}
		if want := (runs + 1) * stubBatch; b.wrote != want {
			t.Errorf("%d packets came, want %d", b.wrote, want)
		}
	}
}

func BenchmarkPath(b *testing.B) {
	for name, size := range map[string]int{"64": 64, "1420": 1420} {
		b.Run(name, func(b *testing.B) {
			x, y := twoRigs(b)
			defer x.close(b)
			defer y.close(b)
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				x.fill(stubBatch, size, 1, 2)
				x.e.outbound(x.s, stubBatch)
				x.carry(y)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/stubBatch, "ns/packet")
		})
	}
}

// TestPacketsOfAnySize checks that packets larger than the MTU do no harm, and neither do the largest and the smallest.
func TestPacketsOfAnySize(t *testing.T) {
	a, b := twoRigs(t)
	defer a.close(t)
	defer b.close(t)
	largest := len(a.s.bufs[0]) - noise.HeaderSize
	for _, size := range []int{0, 1, 19, 20, 21, 39, 40, 1419, 1420, 1421, 1900, largest - 17, largest - 1, largest} {
		b.wrote = 0
		a.fill(3, max(size, 20), 1, 2)
		for i := range 3 {
			a.s.sizes[i] = size
		}
		a.e.outbound(a.s, 3)
		for _, m := range a.held() {
			if len(m) > slotSize {
				t.Fatalf("a packet of %d bytes became %d", size, len(m))
			}
		}
		a.carry(b)
		want := 3
		if size < 20 {
			want = 0
		}
		if b.wrote != want {
			t.Errorf("%d packets of %d bytes came, want %d", b.wrote, size, want)
		}
	}
}

// awake counts the peers that are awake.
func (e *Inline) awake() (n int) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, x := range e.nodes {
		x.mu.Lock()
		if x.peer != nil {
			n++
		}
		x.mu.Unlock()
	}
	return n
}

// numbers counts the indexes in use.
func (e *Inline) numbers() int {
	e.indexes.mu.RLock()
	defer e.indexes.mu.RUnlock()
	return len(e.indexes.all)
}

func TestPeersSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		for n := range 2000 {
			k, err := key.NewNode(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			a.peer(t, 10+n, k.Public())
		}
		if n := a.e.awake(); n != 1 {
			t.Errorf("%d of 2001 peers are awake, one was used", n)
		}
		before, err := a.e.Peers()
		if err != nil {
			t.Fatal(err)
		}
		// Its session ends, and so do handshakes that get no response.
		for n := range 20 {
			a.fill(1, 100, 1, 10+n)
			a.e.outbound(a.s, 1)
		}
		if n := a.e.awake(); n != 21 {
			t.Errorf("%d peers are awake, want 21", n)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n, m, w := a.e.awake(), a.e.numbers(), a.e.staged.Load(); n+m != 0 || w != 0 {
			t.Errorf("at the end %d peers are awake, %d indexes in use, %d bytes wait", n, m, w)
		}
		after, err := a.e.Peers()
		if err != nil {
			t.Fatal(err)
		}
		if !after[0].LastHandshake.Equal(before[0].LastHandshake) || after[0].Rx != before[0].Rx || after[0].Endpoint != before[0].Endpoint {
			t.Errorf("a sleeping peer forgot: %+v, before %+v", after[0], before[0])
		}
	})
}

// TestOldInitiations checks that an initiation that was answered once never has an effect again: not when the peer sleeps, nor
// after it was removed and added again.
func TestOldInitiations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newRig(t, 1), newRig(t, 2)
		defer a.close(t)
		defer b.close(t)
		a.peer(t, 2, b.key.Public())
		b.peer(t, 1, a.key.Public())
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		old := a.held()[0]
		a.carry(b)
		if b.count() != 1 {
			t.Fatal("no response")
		}
		try := func(when string) {
			t.Helper()
			b.drop()
			b.r.sizes[0] = copy(b.r.bufs[0], old)
			b.r.endpoints[0] = stubEndpoint("203.0.113.66:6")
			b.e.inbound(b.r, 1)
			stats, err := b.e.Peers()
			if err != nil {
				t.Fatal(err)
			}
			if b.count() != 0 || stats[0].Endpoint == netip.MustParseAddrPort("203.0.113.66:6") || b.e.numbers() != 0 {
				t.Errorf("%s: a replayed initiation has an effect", when)
			}
		}
		time.Sleep(time.Hour)
		try("when the peer sleeps")
		if err := b.e.RemovePeer(1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		b.peer(t, 1, a.key.Public())
		try("when the peer was removed")
	})
}

func TestStrangersLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		numbers := b.e.numbers()
		l, err := noise.NewRemote(b.key.Public().Array())
		if err != nil {
			t.Fatal(err)
		}
		b.drop()
		for n := range uint32(1500) {
			var seed [32]byte
			binary.LittleEndian.PutUint32(seed[8:], n+1)
			stranger, err := noise.NewLocal(seed)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := noise.NewPair(stranger, l)
			if err != nil {
				t.Fatal(err)
			}
			var msg [noise.InitiationSize]byte
			if _, err := pair.Initiate(&msg, seed, n, noise.Stamp(time.Now())); err != nil {
				t.Fatal(err)
			}
			var jar noise.Jar
			jar.Sign(time.Now(), l, msg[:])
			b.r.sizes[0] = copy(b.r.bufs[0], msg[:])
			b.r.endpoints[0] = stubEndpoint("198.51.100.1:1")
			b.e.inbound(b.r, 1)
			if n%500 == 0 {
				time.Sleep(time.Second)
			}
		}
		if n, m := b.e.awake(), b.e.numbers(); n != 1 || m != numbers {
			t.Errorf("%d peers are awake, %d indexes in use", n, m)
		}
		for _, m := range b.held() {
			if m[0] != noise.TypeCookieReply {
				t.Fatal("a stranger got an answer")
			}
		}
		if b.count() == 0 {
			t.Error("a flood was not met with cookies")
		}
		b.drop()
		b.wrote = 0
		a.fill(10, 500, 1, 2)
		a.e.outbound(a.s, 10)
		a.carry(b)
		if b.wrote != 10 {
			t.Errorf("%d of 10 packets came during the flood", b.wrote)
		}
	})
}

func TestDamagedMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		good := a.held()[0]
		a.drop()
		before, err := b.e.Peers()
		if err != nil {
			t.Fatal(err)
		}
		b.wrote = 0
		count := uint64(0)
		put := func(msg []byte) {
			count++
			b.r.sizes[0] = copy(b.r.bufs[0], msg)
			b.r.endpoints[0] = stubEndpoint("203.0.113.66:6")
			b.e.inbound(b.r, 1)
		}
		for n := range len(good) - 1 {
			put(good[:n+1])
		}
		for bit := range len(good) * 8 {
			bad := slices.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			put(bad)
		}
		put(append(slices.Clone(good), 0))
		after, err := b.e.Peers()
		if err != nil {
			t.Fatal(err)
		}
		if st, err := b.e.Stats(); err != nil || st.Drops.Sum() != count {
			t.Errorf("of %d damaged messages were counted %v, %v", count, st.Drops, err)
		}
		after[0].Drops = before[0].Drops
		if b.wrote != 0 || after[0] != before[0] {
			t.Errorf("damaged messages had an effect: %d packets, %+v", b.wrote, after[0])
		}
		put(good)
		if b.wrote != 1 {
			t.Error("the good one does not come after them")
		}
		put(good)
		if b.wrote != 1 {
			t.Error("it comes twice")
		}
	})
}

func TestWaitingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newRig(t, 1)
		defer a.close(t)
		const peers = 100
		for n := range peers {
			k, err := key.NewNode(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			a.peer(t, 10+n, k.Public())
		}
		for range 3 {
			for n := range peers {
				a.fill(stubBatch, 1420, 1, 10+n)
				a.e.outbound(a.s, stubBatch)
			}
		}
		if n := a.e.staged.Load(); n > maxStaged || n < maxStaged/2 {
			t.Errorf("%d bytes wait", n)
		}
		for _, n := range a.e.nodes {
			if len(n.waiting) > maxWaiting {
				t.Errorf("%d packets wait for one peer", len(n.waiting))
			}
		}
		for n := range peers {
			if err := a.e.RemovePeer(proto.NodeID(10 + n)); err != nil {
				t.Fatal(err)
			}
		}
		if n := a.e.staged.Load(); n != 0 {
			t.Errorf("%d bytes wait for nobody", n)
		}
	})
}

func TestUAPIText(t *testing.T) {
	a, b := twoRigs(t)
	defer a.close(t)
	defer b.close(t)
	r, w := io.Pipe()
	go func() { w.CloseWithError(a.e.WriteUAPI(w)) }()
	st, err := readState(r)
	if err != nil {
		t.Fatal(err)
	}
	got, want := st.peers[b.key.Public()], a.statsOf(2)
	if got.Rx != want.Rx || got.Tx != want.Tx || got.Endpoint != want.Endpoint || got.LastHandshake.UnixNano() != want.LastHandshake.UnixNano() {
		t.Errorf("the text says %+v, want %+v", got, want)
	}
}

func FuzzInbound(f *testing.F) {
	f.Add([]byte{})
	f.Add(append([]byte{1}, make([]byte, noise.InitiationSize-1)...))
	f.Add(append([]byte{2}, make([]byte, noise.ResponseSize-1)...))
	f.Add(append([]byte{3}, make([]byte, noise.CookieReplySize-1)...))
	f.Add(append([]byte{4}, make([]byte, 100)...))
	var a, b *rig
	var numbers int
	var index uint32
	var since time.Time
	begin := func() {
		a, b = twoRigs(f)
		numbers, index, since = b.e.numbers(), b.e.nodes[1].peer.Current(time.Now()).Index, time.Now()
	}
	end := func() { a.close(f); b.close(f) }
	run := newRunReceiver()
	begin()
	f.Cleanup(func() { end() })
	f.Fuzz(func(t *testing.T, msg []byte) {
		if time.Since(since) > time.Minute { // before the session must be renewed
			end()
			begin()
		}
		msg = msg[:min(len(msg), slotSize)]
		b.put(msg)
		if len(msg) >= 12 { // and as one that names the session
			named := slices.Clone(msg)
			binary.LittleEndian.PutUint32(named[4:], index)
			b.put(named)
			binary.LittleEndian.PutUint32(named[8:], index)
			b.put(named)
		}
		for _, size := range []int{noise.Overhead, noise.CookieReplySize, noise.ResponseSize, noise.InitiationSize, max(1, len(msg))} {
			b.e.inboundRun(run, slices.Clone(msg), size, stubEndpoint("192.0.2.9:1"))
		}
		if b.wrote != 1 || b.e.numbers() != numbers || b.e.nodes[1].endpoint != stubEndpoint("192.0.2.9:1") {
			t.Error("something forged has an effect")
		}
		if src, n, ok := source(msg); ok && (n > len(msg) || !src.IsValid() || len(flow(msg[:n])) == 0) {
			t.Error("a packet is misread")
		}
		destination(msg)
	})
}

// BenchmarkPeers measures the time to load a netmap of ten thousand peers.
func BenchmarkPeers(b *testing.B) {
	const peers = 10000
	keys := make([]key.NodePublic, peers)
	for i := range keys {
		k, err := key.NewNode(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		keys[i] = k.Public()
	}
	for b.Loop() {
		a := newRig(b, 1)
		for i, k := range keys {
			a.peer(b, 10+i, k)
		}
		a.close(b)
	}
}
