package relay_test

import (
	"crypto/rand"
	"crypto/tls"
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/relay"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// The size of a run of full packets.
const (
	packetSize  = 1320
	packetCount = 45
)

// lane is a relay and two nodes on the system's sockets, one of which sends runs to the other.
type lane struct {
	from *relay.Client
	run  []byte
	got  chan int // how many packets arrived; some may be lost
	lost *time.Timer
}

// newLane returns a lane whose ends have learned all numbers.
func newLane(tb testing.TB) *lane {
	tb.Helper()
	p := &permit{nodes: map[string]proto.NodeID{}, until: time.Hour}
	secret, err := relaymsg.NewSecret(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	server, err := relay.NewServer(relay.ServerConfig{ID: 100, Secret: secret, Permit: p, Rand: rand.Reader, Rate: 1 << 40})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = server.Close() })
	port, err := server.ServeUDP(nil, 0)
	if err != nil {
		tb.Fatal(err)
	}
	list := []proto.Relay{{ID: 100, Name: "r", Key: server.Key(), UDPPort: port, UDP: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}
	l := &lane{got: make(chan int, 1024), run: make([]byte, packetSize*packetCount), lost: time.NewTimer(time.Hour)}
	var clients []*relay.Client
	for id := proto.NodeID(1); id <= 2; id++ {
		c, done := laneNode(tb, p, id, list, l.got)
		tb.Cleanup(done)
		clients = append(clients, c)
	}
	for _, c := range clients {
		for begin := time.Now(); c.States()[0].Transport != relay.UDP; time.Sleep(time.Millisecond) {
			if time.Since(begin) > time.Minute {
				tb.Fatalf("%+v", c.States())
			}
		}
	}
	l.from = clients[0]
	for i := 0; i < len(l.run); i += packetSize {
		l.run[i] = 4
	}
	for range 100 {
		l.send(tb)
		l.await(packetCount)
	}
	return l
}

func (l *lane) send(tb testing.TB) {
	if err := l.from.SendRun(l.run, packetSize, bind.Via{Relay: 100, Peer: 2}); err != nil {
		tb.Fatal(err)
	}
}

// await waits until n packets have arrived, or some are lost, and returns how many arrived.
func (l *lane) await(n int) (came int) {
	for came < n {
		l.lost.Reset(100 * time.Millisecond)
		select {
		case k := <-l.got:
			came += k
		case <-l.lost.C:
			return came
		}
	}
	return came
}

// BenchmarkForward sends runs of full packets over the system's sockets. One operation is one packet sent by one node,
// forwarded, and received by another; the rest of the work is the kernel's.
func BenchmarkForward(b *testing.B) {
	l := newLane(b)
	b.SetBytes(packetSize)
	b.ReportAllocs()
	b.ResetTimer()
	flight, received := 0, 0
	for sent := 0; sent < b.N; sent += packetCount {
		l.send(b)
		if flight += packetCount; flight > 8*packetCount {
			n := l.await(flight - 8*packetCount)
			received += n
			if flight -= n; flight > 8*packetCount {
				flight = 0 // lost
			}
		}
	}
	b.ReportMetric(float64(received)/float64(b.N), "arrived")
}

// TestForwardDoesNotAllocate checks that sending, forwarding and receiving a packet does not allocate. A run may, now and then:
// the client tends its relays meanwhile, and pools drop items under the race detector.
func TestForwardDoesNotAllocate(t *testing.T) {
	l := newLane(t)
	came := 0
	const runs = 100
	n := testing.AllocsPerRun(runs, func() {
		l.send(t)
		came += l.await(packetCount)
	})
	if n >= packetCount/4 {
		t.Errorf("%g allocations for a run of %d packets", n, packetCount)
	}
	if want := runs * packetCount; came < want/2 {
		t.Errorf("%d packets came, want %d", came, want)
	}
}

// laneNode creates a node on the system's sockets.
func laneNode(b testing.TB, p *permit, id proto.NodeID, list []proto.Relay, got chan<- int) (*relay.Client, func()) {
	b.Helper()
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	own := certificate(b, device)
	p.mu.Lock()
	p.nodes[string(own.Certificate[0])] = id
	p.mu.Unlock()
	x := bind.New(bind.Config{})
	c := relay.New(relay.Config{Self: id, Certificate: func() *tls.Certificate { return &own }, Send: x.SendRunTo, Rand: rand.Reader})
	x.Serve(nobody{}, c)
	fns, _, err := x.OpenRuns(0)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	for _, fn := range fns {
		go func() {
			defer func() { done <- struct{}{} }()
			buf := make([]byte, bind.RunSize)
			for {
				n, size, _, err := fn(buf)
				if err != nil {
					return
				}
				select {
				case got <- (n + size - 1) / size:
				default:
				}
			}
		}()
	}
	c.SetRelays(list)
	return c, func() {
		_ = c.Close()
		_ = x.Close()
		for range fns {
			<-done
		}
	}
}
