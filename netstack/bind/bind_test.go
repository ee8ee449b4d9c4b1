package bind_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// message returns a WireGuard message of the given type and size.
func message(kind uint32, size int) []byte {
	b := make([]byte, size)
	binary.LittleEndian.PutUint32(b, kind)
	return b
}

// fake is an inner Bind that records what is sent, and receives what is put into its inbox.
type fake struct {
	mu      sync.Mutex
	port    uint16
	taken   uint16 // a port that cannot be opened
	mark    uint32
	markErr error
	sent    []string // destinations
	sources []string
	fail    map[string]error // by destination
	inbox   []packet
	open    bool
}

type packet struct {
	data     []byte
	from, to string
}

type fakeEndpoint struct {
	conn.StdNetEndpoint
	src netip.Addr
}

func (e *fakeEndpoint) SrcIP() netip.Addr { return e.src }

func (f *fake) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if port != 0 && port == f.taken {
		return nil, 0, syscall.EADDRINUSE
	}
	if port == 0 {
		f.port += 1000
		port = f.port
	}
	f.open = true
	return []conn.ReceiveFunc{f.receive}, port, nil
}

func (f *fake) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if len(f.inbox) == 0 {
		return 0, net.ErrClosed
	}
	n := min(len(f.inbox), len(bufs))
	for i, p := range f.inbox[:n] {
		sizes[i] = copy(bufs[i], p.data)
		eps[i] = &fakeEndpoint{conn.StdNetEndpoint{AddrPort: at(p.from)}, netip.MustParseAddr(p.to)}
	}
	f.inbox = f.inbox[n:]
	return n, nil
}

func (f *fake) Close() error { f.open = false; return nil }

func (f *fake) SetMark(mark uint32) error { f.mark = mark; return f.markErr }

func (f *fake) BatchSize() int { return 8 }

func (f *fake) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return &fakeEndpoint{StdNetEndpoint: conn.StdNetEndpoint{AddrPort: a}}, err
}

func (f *fake) Send(bufs [][]byte, ep conn.Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	source := ""
	if ep.SrcIP().IsValid() {
		source = ep.SrcIP().String()
	}
	f.sent, f.sources = append(f.sent, ep.DstToString()), append(f.sources, source)
	if err := f.fail[ep.DstToString()+" from "+source]; err != nil {
		return err
	}
	return f.fail[ep.DstToString()]
}

// took returns what was sent since the last call.
func (f *fake) took() (sent, sources []string) {
	sent, sources = f.sent, f.sources
	f.sent, f.sources = nil, nil
	return sent, sources
}

var overlay = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")}

func open(t *testing.T, f *fake) (*bind.Bind, conn.ReceiveFunc) {
	t.Helper()
	b := bind.New(bind.Config{Inner: f, Bounds: path.Bounds{Overlay: overlay}})
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	return b, fns[0]
}

func send(t *testing.T, b *bind.Bind, ep conn.Endpoint, msg []byte) {
	t.Helper()
	if err := b.Send([][]byte{msg}, ep); err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want []T) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestCandidates(t *testing.T) {
	f := &fake{}
	b, _ := open(t, f)
	ep, err := b.ParseEndpoint("192.0.2.1:1,[2001:db8::1]:2,192.0.2.3:3")
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"192.0.2.1:1", "[2001:db8::1]:2", "192.0.2.3:3"}
	for _, c := range []struct {
		name string
		msg  []byte
		want []string
	}{
		{"initiation", message(1, 148), all},
		{"keepalive", message(4, 32), all},
		{"response", message(2, 92), all[:1]},
		{"cookie", message(3, 64), all[:1]},
		{"data", message(4, 148), all[:1]},
		{"something of type 1", message(1, 32), all[:1]},
	} {
		send(t, b, ep, c.msg)
		sent, _ := f.took()
		equal(t, c.name, sent, c.want)
	}
	if err := b.Send([][]byte{message(1, 148), message(1, 148)}, ep); err != nil {
		t.Fatal(err)
	}
	sent, _ := f.took()
	equal(t, "a batch", sent, all[:1])
	if got := ep.DstToString(); got != "?192.0.2.1:1,[2001:db8::1]:2,192.0.2.3:3" {
		t.Errorf("text %s", got)
	}

	unreachable := errors.New("unreachable")
	f.fail = map[string]error{all[0]: unreachable, all[1]: unreachable}
	send(t, b, ep, message(1, 148)) // one was sent
	f.fail[all[2]] = unreachable
	if err := b.Send([][]byte{message(1, 148)}, ep); !errors.Is(err, unreachable) {
		t.Errorf("nothing got away: %v", err)
	}
}

func TestRefusedCandidates(t *testing.T) {
	b, _ := open(t, &fake{})
	for _, s := range []string{"", "x", "192.0.2.1", "192.0.2.1:1,", "224.0.0.1:1", "127.0.0.1:1", "100.64.0.7:1", "192.0.2.1:1,100.64.0.7:1"} {
		if ep, err := b.ParseEndpoint(s); err == nil {
			t.Errorf("%q is %s", s, ep.DstToString())
		}
	}
	if err := b.Send(nil, &conn.StdNetEndpoint{}); !errors.Is(err, conn.ErrWrongEndpointType) {
		t.Errorf("another bind's endpoint: %v", err)
	}
	b.SetBounds(path.Bounds{Loopback: true})
	if _, err := b.ParseEndpoint("127.0.0.1:1"); err != nil {
		t.Error(err)
	}
}

// receive returns the endpoints of a batch; nil if a packet was dropped.
func receive(t *testing.T, fn conn.ReceiveFunc) []*bind.Endpoint {
	t.Helper()
	bufs, sizes, eps := make([][]byte, 8), make([]int, 8), make([]conn.Endpoint, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 256)
	}
	n, err := fn(bufs, sizes, eps)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]*bind.Endpoint, n)
	for i := range n {
		if sizes[i] > 0 {
			out[i] = eps[i].(*bind.Endpoint)
		}
	}
	return out
}

func TestInterning(t *testing.T) {
	f := &fake{}
	b, fn := open(t, f)
	data := message(4, 64)
	one, two := packet{data, "192.0.2.1:1", "198.51.100.1"}, packet{data, "192.0.2.2:1", "198.51.100.1"}
	oneElsewhere := packet{data, "192.0.2.1:1", "198.51.100.2"}
	f.inbox = []packet{one, one, two, one, oneElsewhere}
	got := receive(t, fn)
	if got[0] != got[1] || got[0] != got[3] || got[0] == got[2] || got[0] == got[4] {
		t.Errorf("endpoints %v", got)
	}
	if s := got[0].DstToString() + " " + got[0].SrcToString(); s != "192.0.2.1:1 198.51.100.1" {
		t.Errorf("endpoint %s", s)
	}
	if _, known, err := bind.ParseText(got[0].DstToString()); !known || err != nil {
		t.Error("where a packet came from is not known")
	}

	send(t, b, got[0], data)
	got[0].ClearSrc()
	send(t, b, got[0], data)
	send(t, b, got[2], data)
	b.ForgetSources()
	send(t, b, got[2], data)
	_, sources := f.took()
	equal(t, "sources", sources, []string{"198.51.100.1", "", "198.51.100.1", ""})

	f.inbox = []packet{one, two}
	again := receive(t, fn)
	if again[0] == got[0] || again[1] == got[2] {
		t.Error("what was forgotten is given again")
	}
	send(t, b, again[0], data)
	_, sources = f.took()
	equal(t, "sources", sources, []string{"198.51.100.1"})
}

func TestLostSource(t *testing.T) {
	f := &fake{fail: map[string]error{"192.0.2.1:1 from 198.51.100.1": syscall.EINVAL}}
	b, fn := open(t, f)
	f.inbox = []packet{{message(4, 64), "192.0.2.1:1", "198.51.100.1"}}
	ep := receive(t, fn)[0]
	send(t, b, ep, message(4, 64))
	send(t, b, ep, message(4, 64))
	_, sources := f.took()
	equal(t, "sources", sources, []string{"198.51.100.1", "", ""})
	f.fail["192.0.2.1:1"] = syscall.EPERM
	if err := b.Send([][]byte{message(4, 64)}, ep); !errors.Is(err, syscall.EPERM) {
		t.Errorf("error %v", err)
	}
}

func TestReceiveDrops(t *testing.T) {
	f := &fake{}
	_, fn := open(t, f)
	first, other := message(1, 148), message(1, 148)
	other[100] = 1
	data := message(4, 148)
	f.inbox = []packet{
		{data, "100.64.0.9:1", "198.51.100.1"}, // came back through the tunnel
		{first, "192.0.2.1:1", "198.51.100.1"},
		{first, "[2001:db8::1]:1", "2001:db8::2"}, // the same again
		{other, "192.0.2.1:1", "198.51.100.1"},
		{data, "192.0.2.1:1", "198.51.100.1"},
		{data, "192.0.2.1:1", "198.51.100.1"},
	}
	var passed []bool
	for _, ep := range receive(t, fn) {
		passed = append(passed, ep != nil)
	}
	equal(t, "passed", passed, []bool{false, true, false, true, true, true})
}

func TestOpen(t *testing.T) {
	f := &fake{}
	b := bind.New(bind.Config{Inner: f, Mark: 7})
	_, first, err := b.Open(0)
	if err != nil || f.mark != 7 {
		t.Fatalf("mark %d, %v", f.mark, err)
	}
	if _, again, err := b.Open(0); err != nil || again != first {
		t.Errorf("port %d after %d, %v", again, first, err)
	}
	f.taken = first
	if _, again, err := b.Open(0); err != nil || again == first {
		t.Errorf("port %d, %v", again, err)
	}
	if _, _, err := b.Open(first); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
	f.markErr = syscall.EPERM
	if _, _, err := b.Open(0); !errors.Is(err, syscall.EPERM) || f.open {
		t.Errorf("without its mark: %v, open %t", err, f.open)
	}
}

func TestNoAllocations(t *testing.T) {
	f := &fake{}
	b, _ := open(t, f)
	ep := &fakeEndpoint{conn.StdNetEndpoint{AddrPort: at("192.0.2.1:1")}, netip.MustParseAddr("198.51.100.1")}
	data := message(4, 64)
	inner := func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		for i := range bufs {
			sizes[i], eps[i] = copy(bufs[i], data), ep
		}
		return len(bufs), nil
	}
	fn := b.Wrap(inner)
	bufs, sizes, eps := make([][]byte, 8), make([]int, 8), make([]conn.Endpoint, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 64)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = fn(bufs, sizes, eps) }); n != 0 {
		t.Errorf("receiving allocates %v times", n)
	}
}

func TestTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []netip.AddrPort
		for range rapid.IntRange(1, path.MaxCandidates).Draw(t, "n") {
			b := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr")
			a, _ := netip.AddrFromSlice(b[:rapid.SampledFrom([]int{4, 16}).Draw(t, "size")])
			list = append(list, netip.AddrPortFrom(a, rapid.Uint16().Draw(t, "port")))
		}
		got, known, err := bind.ParseText(bind.FormatCandidates(list))
		if err != nil || known || !slices.Equal(got, list) {
			t.Fatalf("%v became %v, %t, %v", list, got, known, err)
		}
	})
}

func FuzzParseText(f *testing.F) {
	for _, s := range []string{"192.0.2.1:1", "?192.0.2.1:1", "?192.0.2.1:1,[2001:db8::1]:2", "[fe80::1%eth0]:1", ",", "?"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, known, err := bind.ParseText(s)
		if err != nil {
			return
		}
		if len(list) == 0 || len(list) > path.MaxCandidates || (known && len(list) != 1) {
			t.Fatalf("%q: %v, %t", s, list, known)
		}
		again, _, err := bind.ParseText(bind.FormatCandidates(list))
		if err != nil || !slices.Equal(again, list) {
			t.Fatalf("%q: %v, then %v, %v", s, list, again, err)
		}
	})
}

// TestRealAndSimulated checks that packets take the same route over the system's sockets and over simulated ones.
func TestRealAndSimulated(t *testing.T) {
	n := sim.New(1)
	n.SetDefault(sim.Link{})
	for _, c := range []struct {
		name   string
		a, b   conn.Bind
		target string
	}{
		{"system", nil, nil, "127.0.0.1"},
		{"system IPv6", nil, nil, "::1"},
		{"simulated", n.Host("a", netip.MustParseAddr("192.0.2.1")).Bind(), n.Host("b", netip.MustParseAddr("192.0.2.2")).Bind(), "192.0.2.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := bind.New(bind.Config{Inner: c.a, Bounds: path.Bounds{Loopback: true}}), bind.New(bind.Config{Inner: c.b})
			fromA, _, err := a.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			fromB, port, err := b.Open(0)
			if err != nil {
				t.Fatal(err)
			}
			to, err := a.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(c.target), port).String())
			if err != nil {
				t.Fatal(err)
			}
			answered := make(chan []byte, 1)
			var readers sync.WaitGroup
			pump(&readers, b, fromB, func(msg []byte, ep conn.Endpoint) {
				if err := b.Send([][]byte{append(msg, '!')}, ep); err != nil {
					t.Error(err)
				}
			})
			pump(&readers, a, fromA, func(msg []byte, _ conn.Endpoint) { answered <- msg })
			send(t, a, to, []byte("hello"))
			if got := <-answered; string(got) != "hello!" {
				t.Errorf("got %q", got)
			}
			a.Close()
			b.Close()
			readers.Wait()
		})
	}
}

// pump receives until the bind is closed.
func pump(readers *sync.WaitGroup, b *bind.Bind, fns []conn.ReceiveFunc, f func([]byte, conn.Endpoint)) {
	for _, fn := range fns {
		readers.Go(func() {
			bufs, sizes, eps := make([][]byte, b.BatchSize()), make([]int, b.BatchSize()), make([]conn.Endpoint, b.BatchSize())
			for i := range bufs {
				bufs[i] = make([]byte, 65535)
			}
			for {
				n, err := fn(bufs, sizes, eps)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				for i := range n {
					if sizes[i] > 0 {
						f(bytes.Clone(bufs[i][:sizes[i]]), eps[i])
					}
				}
			}
		})
	}
}
