package wg_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/netstack/wg/wgtest"
)

// chaos is a bind whose messages are lost, duplicated and delayed as fate decides.
type chaos struct {
	conn.Bind
	fate func(msg []byte) []time.Duration // when each copy is sent

	mu    sync.Mutex
	ended bool
}

// Send implements conn.Bind.
func (c *chaos) Send(bufs [][]byte, ep conn.Endpoint) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range bufs {
		for _, d := range c.fate(b) {
			if d == 0 {
				if err := c.Bind.Send([][]byte{b}, ep); err != nil {
					return err
				}
				continue
			}
			late := [][]byte{bytes.Clone(b)}
			time.AfterFunc(d, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				if !c.ended {
					_ = c.Bind.Send(late, ep)
				}
			})
		}
	}
	return nil
}

// end drops all messages still in flight.
func (c *chaos) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}

// isData reports whether a message carries a packet.
func isData(msg []byte) bool { return len(msg) > 32 && binary.LittleEndian.Uint32(msg) == 4 }

// counted is a node that numbers the packets that it sends to the other, and counts received ones.
type counted struct {
	*wgtest.Node
	sent uint64
	mu   sync.Mutex
	got  map[uint64]int
}

func newCounted(t *testing.T, make wgtest.Make, host *sim.Host, number byte, under func(conn.Bind) conn.Bind) *counted {
	t.Helper()
	c := &counted{got: map[uint64]int{}}
	c.Node = wgtest.NewNodeOver(t, make, wgtest.Open{}, host, number, under)
	c.TUN.Handle(func(pkt []byte) {
		// IPv4 without options, UDP, and the number.
		if len(pkt) < 36 {
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.got[binary.BigEndian.Uint64(pkt[28:])]++
	})
	return c
}

// send sends the next packet, of size bytes.
func (c *counted) send(t *testing.T, to *counted, size int) {
	t.Helper()
	pkt := make([]byte, size)
	pkt[0] = 0x45
	binary.BigEndian.PutUint16(pkt[2:], uint16(size))
	pkt[8], pkt[9] = 64, 17
	copy(pkt[12:], c.Addrs.V4.AsSlice())
	copy(pkt[16:], to.Addrs.V4.AsSlice())
	binary.BigEndian.PutUint64(pkt[28:], c.sent)
	c.sent++
	if !c.TUN.Send(pkt) {
		t.Fatal("the device is full")
	}
}

// count returns how many packets arrived.
func (c *counted) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.got)
}

// lost returns how many of the other's packets never arrived, and how many arrived more than once.
func (c *counted) lost(from *counted) (missing, doubled int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range from.sent {
		switch k := c.got[n]; {
		case k == 0:
			missing++
		case k > 1:
			doubled++
		}
	}
	return missing, doubled
}

// pairOf returns two nodes that know each other, with chaos between them.
func pairOf(t *testing.T, makeA, makeB wgtest.Make, link time.Duration, fate func(from int, msg []byte) []time.Duration) (a, b *counted, end func()) {
	t.Helper()
	n := sim.New(1)
	n.SetDefault(sim.Link{Latency: link})
	var under [2]*chaos
	wrap := func(i int) func(conn.Bind) conn.Bind {
		return func(inner conn.Bind) conn.Bind {
			under[i] = &chaos{Bind: inner, fate: func(msg []byte) []time.Duration { return fate(i, msg) }}
			return under[i]
		}
	}
	a = newCounted(t, makeA, n.Host("a", netip.MustParseAddr("192.0.2.1")), 1, wrap(0))
	b = newCounted(t, makeB, n.Host("b", netip.MustParseAddr("192.0.2.2")), 2, wrap(1))
	for _, x := range [][2]*counted{{a, b}, {b, a}} {
		if err := x[0].Engine.SetPeer(x[1].Config()); err != nil {
			t.Fatal(err)
		}
	}
	return a, b, func() {
		for i, x := range []*counted{a, b} {
			under[i].end()
			if err := x.Engine.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// prompt is a fate without losses and delays.
func prompt(int, []byte) []time.Duration { return []time.Duration{0} }

// jittery delays all messages by up to d.
func jittery(d time.Duration) func(int, []byte) []time.Duration {
	r := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	return func(int, []byte) []time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return []time.Duration{time.Duration(r.Int64N(int64(d)))}
	}
}
