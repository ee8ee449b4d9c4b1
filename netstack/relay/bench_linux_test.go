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

// BenchmarkForward sends runs of full packets over the system's sockets. One operation is one packet sent by one node, forwarded,
// and received by another; who else works is the kernel.
func BenchmarkForward(b *testing.B) {
	p := &permit{nodes: map[string]proto.NodeID{}, until: time.Hour}
	secret, err := relaymsg.NewSecret(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	server, err := relay.NewServer(relay.ServerConfig{ID: 100, Secret: secret, Permit: p, Rand: rand.Reader, Rate: 1 << 40})
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	port, err := server.ServeUDP(nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	list := []proto.Relay{{ID: 100, Name: "r", Key: server.Key(), UDPPort: port, UDP: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}}
	got := make(chan int, 1024)
	var clients []*relay.Client
	for id := proto.NodeID(1); id <= 2; id++ {
		c, done := benchNode(b, p, id, list, got)
		defer done()
		clients = append(clients, c)
	}
	for _, c := range clients {
		for begin := time.Now(); c.States()[0].Transport != relay.UDP; time.Sleep(time.Millisecond) {
			if time.Since(begin) > time.Minute {
				b.Fatalf("%+v", c.States())
			}
		}
	}
	const size, count = 1320, 45
	run := make([]byte, size*count)
	for i := 0; i < len(run); i += size {
		run[i] = 4
	}
	via := bind.Via{Relay: 100, Peer: 2}
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	flight, received := 0, 0
	for sent := 0; sent < b.N; sent += count {
		if err := clients[0].SendRun(run, size, via); err != nil {
			b.Fatal(err)
		}
		for flight += count; flight > 8*count; {
			select {
			case n := <-got:
				flight -= n
				received += n
			case <-time.After(100 * time.Millisecond):
				flight = 0 // lost
			}
		}
	}
	b.ReportMetric(float64(received)/float64(b.N), "arrived")
}

// benchNode is a node on the system's sockets.
func benchNode(b *testing.B, p *permit, id proto.NodeID, list []proto.Relay, got chan<- int) (*relay.Client, func()) {
	b.Helper()
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	own := certificate(b, device)
	p.nodes[string(own.Certificate[0])] = id
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
