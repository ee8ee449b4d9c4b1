package bind_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
)

// listener is a Handler that records what it is given.
type listener struct {
	mu   sync.Mutex
	path []string // from and message
	stun []string
	from *bind.Endpoint
}

func (l *listener) Path(from *bind.Endpoint, msg []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.path, l.from = append(l.path, from.DstToString()+" "+string(msg[1:])), from
}

func (l *listener) STUN(from netip.AddrPort, msg []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stun = append(l.stun, from.String()+" "+string(msg[20:]))
}

// ferry is a Carrier whose header is 0xE1 and the number of the peer, from any address; 0xE0 is for itself.
type ferry struct {
	mu     sync.Mutex
	sent   []string // peer and message
	stream chan []byte
}

const relay = proto.NodeID(9)

func (f *ferry) SendRun(run []byte, size int, to bind.Via) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for m := range slices.Chunk(run, size) {
		f.sent = append(f.sent, to.Peer.String()+" "+string(m))
	}
	return nil
}

func (f *ferry) FromUDP(run []byte, size int, _ netip.AddrPort) (int, int, bind.Via, bool) {
	if run[0] != 0xe1 || min(size, len(run)) < bind.RelayHeader {
		return 0, 0, bind.Via{}, false
	}
	via := bind.Via{Relay: relay, Peer: proto.NodeID(run[bind.RelayHeader-1])}
	n := 0
	for at := 0; at < len(run); at += size {
		n += copy(run[n:], run[at+bind.RelayHeader:min(at+size, len(run))])
	}
	return n, size - bind.RelayHeader, via, true
}

func (f *ferry) Receive(closed <-chan struct{}, buf []byte) (int, int, bind.Via, error) {
	select {
	case <-closed:
		return 0, 0, bind.Via{}, net.ErrClosed
	case m := <-f.stream:
		return copy(buf, m), len(m), bind.Via{Relay: relay, Peer: 5}, nil
	}
}

func relayed(peer byte, msg []byte) []byte {
	return append([]byte{0xe1, 0, 0, 0, 0, 0, 0, peer}, msg...)
}

func stunMessage(text string) []byte {
	b := make([]byte, 20, 20+len(text))
	b[1] = 1
	binary.BigEndian.PutUint32(b[4:], 0x2112a442)
	return append(b, text...)
}

func served(f *fake) (*bind.Bind, *listener, *ferry) {
	l, c := &listener{}, &ferry{stream: make(chan []byte, 1)}
	b := bind.New(bind.Config{Inner: f, Bounds: path.Bounds{Overlay: overlay}})
	b.Serve(l, c)
	return b, l, c
}

func TestMessagesAreToldApart(t *testing.T) {
	f := &fake{}
	b, l, c := served(f)
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	data, first := message(4, 64), message(1, 148)
	const from, to = "192.0.2.1:1", "198.51.100.1"
	f.inbox = []packet{
		{data, from, to},
		{[]byte("\xd0path"), from, to},
		{stunMessage("answer"), from, to},
		{relayed(3, data), from, to},
		{relayed(3, []byte("\xd0far")), from, to},
		{relayed(3, stunMessage("no")), from, to},
		{relayed(3, relayed(4, data)), from, to}, // only one header is stripped
		{[]byte("\xd0around"), "100.64.0.9:1", to},
	}
	got := receive(t, fns[0])
	var text []string
	for _, e := range got {
		if e != nil {
			text = append(text, e.DstToString())
		}
	}
	far := b.RelayEndpoint(bind.Via{Relay: relay, Peer: 3})
	equal(t, "for the engine", text, []string{from, far.DstToString(), far.DstToString()})
	equal(t, "path messages", l.path, []string{from + " path", far.DstToString() + " far"})
	equal(t, "STUN", l.stun, []string{from + " answer"})
	if l.from != far || far.Via().Peer != 3 {
		t.Error("the relayed endpoint is not the same one again")
	}

	f.inbox = []packet{{[]byte{0xe0, 1}, from, to}, {relayed(3, nil), from, to}, {first, from, to}, {relayed(3, first), from, to}}
	passed := receive(t, fns[0])
	if passed[0] != nil || passed[1] != nil || passed[2] == nil || passed[3] != nil {
		t.Errorf("passed %v: want the third only", passed)
	}

	send(t, b, far, []byte("out"))
	equal(t, "carried", c.sent, []string{proto.NodeID(3).String() + " out"})
}

func TestWithoutAHandlerAllIsTheEngines(t *testing.T) {
	f := &fake{}
	b, fn := open(t, f)
	f.inbox = []packet{{[]byte("\xd0path"), "192.0.2.1:1", "198.51.100.1"}, {relayed(3, []byte("x")), "192.0.2.1:1", "198.51.100.1"}}
	for _, e := range receive(t, fn) {
		if e == nil {
			t.Error("dropped")
		}
	}
	if err := b.Send([][]byte{{1}}, b.RelayEndpoint(bind.Via{Relay: 1, Peer: 2})); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("sent through no relay: %v", err)
	}
}

func TestStreamsOfRelays(t *testing.T) {
	b, l, c := served(&fake{})
	fns, _, err := b.Open(0)
	if err != nil || len(fns) != 2 {
		t.Fatalf("%d functions, %v", len(fns), err)
	}
	c.stream <- message(4, 64)
	if got := receive(t, fns[1]); len(got) != 1 || got[0] != b.RelayEndpoint(bind.Via{Relay: relay, Peer: 5}) {
		t.Errorf("got %v", got)
	}
	c.stream <- []byte("\xd0path")
	ended := make(chan error)
	go func() {
		_, err := fns[1]([][]byte{make([]byte, 64)}, make([]int, 1), make([]conn.Endpoint, 1))
		ended <- err
	}()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the end of a stream: %v", err)
	}
	if len(l.path) > 1 {
		t.Errorf("path messages %q", l.path)
	}
}

func TestSendTo(t *testing.T) {
	f := &fake{}
	b, _ := open(t, f)
	if err := b.SendTo([]byte("x"), at("[::ffff:192.0.2.7]:3478")); err != nil {
		t.Error(err)
	}
	if err := b.SendRunTo(bytes.Repeat([]byte("x"), 2050), 100, at("192.0.2.7:3478")); err != nil {
		t.Error(err)
	}
	sent, _ := f.took()
	equal(t, "sent", sent, []string{"192.0.2.7:3478", "192.0.2.7:3478", "192.0.2.7:3478", "192.0.2.7:3478"})
	if err := b.SendTo([]byte("x"), at("100.64.0.9:1")); err == nil {
		t.Error("sent into the mesh")
	}
}

// runs is an inner Bind that returns one run after the other.
type runs struct {
	conn.Bind
	inbox []run
}

type run struct {
	data []byte
	size int
}

func (r *runs) OpenRuns(port uint16) ([]bind.RunFunc, uint16, error) {
	return []bind.RunFunc{func(buf []byte) (int, int, conn.Endpoint, error) {
		if len(r.inbox) == 0 {
			return 0, 0, nil, net.ErrClosed
		}
		x := r.inbox[0]
		r.inbox = r.inbox[1:]
		ep := &fakeEndpoint{conn.StdNetEndpoint{AddrPort: at("192.0.2.1:1")}, netip.MustParseAddr("198.51.100.1")}
		return copy(buf, x.data), x.size, ep, nil
	}}, port, nil
}

func (r *runs) SendRun([]byte, int, conn.Endpoint) error { return nil }

// TestRunsAreTakenApart checks that each message reaches its recipient in order, whatever messages the kernel joins into one
// run, and that runs are not split more than necessary.
func TestRunsAreTakenApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner := &runs{Bind: &fake{}}
		b := bind.New(bind.Config{Inner: inner})
		l := &listener{}
		b.Serve(l, &ferry{})
		fns, _, err := b.OpenRuns(1)
		if err != nil {
			t.Fatal(err)
		}
		var want, wantPath []string
		for range rapid.IntRange(1, 3).Draw(t, "runs") {
			size := rapid.IntRange(12, 24).Draw(t, "size")
			var all []byte
			count := rapid.IntRange(1, 12).Draw(t, "messages")
			for i := range count {
				length := size
				if i == count-1 {
					length = rapid.IntRange(9, size).Draw(t, "last")
				}
				body := rapid.SliceOfN(rapid.ByteRange('a', 'z'), length, length).Draw(t, "body")
				peer := rapid.SampledFrom([]byte{0, 0, 3, 4}).Draw(t, "peer")
				from := "192.0.2.1:1"
				inside := body
				if peer > 0 {
					copy(body, relayed(peer, nil))
					inside = body[bind.RelayHeader:]
					from = b.RelayEndpoint(bind.Via{Relay: relay, Peer: proto.NodeID(peer)}).DstToString()
				}
				if rapid.IntRange(0, 3).Draw(t, "path") == 0 {
					inside[0] = 0xd0
					wantPath = append(wantPath, from+" "+string(inside[1:]))
				} else {
					want = append(want, from+" "+string(inside))
				}
				all = append(all, body...)
			}
			inner.inbox = append(inner.inbox, run{all, size})
		}
		var got []string
		buf := make([]byte, bind.RunSize)
		for {
			n, size, from, err := fns[0](buf)
			if err != nil {
				break
			}
			for m := range slices.Chunk(buf[:n], size) {
				got = append(got, from.DstToString()+" "+string(m))
			}
			clear(buf[:n]) // engines open messages in place
		}
		if !slices.Equal(got, want) {
			t.Fatalf("got  %q\nwant %q", got, want)
		}
		if !slices.Equal(l.path, wantPath) {
			t.Fatalf("path messages %q\nwant %q", l.path, wantPath)
		}
	})
}

// FuzzRuns receives arbitrary input from outside, joined by the kernel or not. No more comes out than went in, nothing comes
// twice, and nothing but WireGuard's messages reaches the engine, except from inside a relay's message.
func FuzzRuns(f *testing.F) {
	f.Add([]byte{0xd0, 1, 2, 3, 0xe1, 1, 2, 3, 4}, uint16(4))
	f.Add(append(relayed(3, []byte("abcd")), relayed(4, []byte("ef"))...), uint16(12))
	f.Add(append(stunMessage("abcd"), relayed(3, stunMessage("efgh"))...), uint16(24))
	f.Add(append(relayed(3, []byte{0xd0}), 0xe1, 0xe0), uint16(9))
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		if len(data) == 0 || len(data) > bind.RunSize {
			return
		}
		inner := &runs{Bind: &fake{}, inbox: []run{{data, max(1, int(size))}}}
		b, l := bind.New(bind.Config{Inner: inner}), &listener{}
		b.Serve(l, &ferry{})
		fns, _, err := b.OpenRuns(1)
		if err != nil {
			t.Fatal(err)
		}
		buf, came := make([]byte, bind.RunSize), 0
		for range len(data) + 2 {
			n, each, from, err := fns[0](buf)
			if err != nil {
				break
			}
			if came += n; n > 0 && each <= 0 {
				t.Fatalf("a run of %d bytes has messages of %d", n, each)
			}
			for m := range slices.Chunk(buf[:n], max(1, each)) {
				if e, ok := from.(*bind.Endpoint); ok && e.Via() == (bind.Via{}) && (m[0] == 0xd0 || m[0]&0xf0 == 0xe0) {
					t.Errorf("the engine gets %x", m)
				}
			}
		}
		for _, m := range l.path {
			_, rest, _ := strings.Cut(m, " ")
			came += len(rest) + 1
		}
		for _, m := range l.stun {
			_, rest, _ := strings.Cut(m, " ")
			came += len(rest) + 20
		}
		if len(inner.inbox) > 0 || came > len(data) {
			t.Errorf("%d bytes came of %d, %d runs are left", came, len(data), len(inner.inbox))
		}
	})
}

// TestOneSocketForAll checks that path messages and STUN use the same port as the engine, in both directions.
func TestOneSocketForAll(t *testing.T) {
	n := sim.New(1)
	n.SetDefault(sim.Link{})
	a := bind.New(bind.Config{Inner: n.Host("a", netip.MustParseAddr("192.0.2.1")).Bind()})
	b := bind.New(bind.Config{Inner: n.Host("b", netip.MustParseAddr("192.0.2.2")).Bind()})
	heard := &echo{t: t, b: b, done: make(chan string, 1)}
	answer := &echo{t: t, done: make(chan string, 1)}
	a.Serve(answer, nil)
	b.Serve(heard, nil)
	fromA, _, err := a.Open(1000)
	if err != nil {
		t.Fatal(err)
	}
	fromB, _, err := b.Open(2000)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	pump(&readers, a, fromA, func([]byte, conn.Endpoint) { t.Error("for the engine") })
	pump(&readers, b, fromB, func([]byte, conn.Endpoint) { t.Error("for the engine") })
	if err := a.SendTo([]byte("\xd0ping"), at("192.0.2.2:2000")); err != nil {
		t.Fatal(err)
	}
	if got := <-heard.done; got != "192.0.2.1:1000" {
		t.Errorf("heard from %s", got)
	}
	if got := <-answer.done; got != "192.0.2.2:2000" {
		t.Errorf("answer from %s", got)
	}
	a.Close()
	b.Close()
	readers.Wait()
}

// echo is a Handler that sends back what it receives, if it has a Bind.
type echo struct {
	t    *testing.T
	b    *bind.Bind
	done chan string
}

func (e *echo) Path(from *bind.Endpoint, msg []byte) {
	if e.b != nil {
		if err := e.b.Send([][]byte{msg}, from); err != nil {
			e.t.Error(err)
		}
	}
	e.done <- from.DstToString()
}

func (e *echo) STUN(netip.AddrPort, []byte) {}
