package interop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/redoubt-mesh/redoubt/netstack/wg"
	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/scripts/lab"
	"github.com/redoubt-mesh/redoubt/scripts/lab/labtest"
)

// pair is two ends on one LAN that do not know each other yet, and a stranger.
type pair struct {
	ctx      context.Context
	a        *own
	b        *other
	stranger *lab.Host
}

// alone is write-locked by a test that floods: it uses all processors, and concurrent tests would time out.
var alone sync.RWMutex

func newPair(t *testing.T) *pair {
	t.Helper()
	return newPairOf(t, startOwn, alone.RLocker())
}

func newPairOf(t *testing.T, start func(testing.TB, *lab.Host, byte) *own, turn sync.Locker) *pair {
	t.Helper()
	t.Parallel()
	dir := need(t)
	turn.Lock()
	t.Cleanup(turn.Unlock)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	w := labtest.World(t)
	lan := labtest.LAN(t, w, "lan")
	a, b := labtest.Host(t, w, "a", lan), labtest.Host(t, w, "b", lan)
	return &pair{ctx, start(t, a, 1), startOther(ctx, t, dir, b), labtest.Host(t, w, "stranger", lan)}
}

// meet introduces both ends to each other; only the initiator gets the other's address.
func (p *pair) meet(t *testing.T, weBegin, v6 bool, psk [32]byte) {
	t.Helper()
	at := func(h *lab.Host) netip.AddrPort {
		if v6 {
			return netip.AddrPortFrom(h.V6(), port)
		}
		return netip.AddrPortFrom(h.V4(), port)
	}
	var a, b netip.AddrPort
	if weBegin {
		b = at(p.b.Host)
	} else {
		a = at(p.a.Host)
	}
	p.a.meet(t, &p.b.end, b, psk)
	p.b.meet(p.ctx, t, p.a, a, psk)
}

// order returns the initiator first.
func (p *pair) order(weBegin bool) (first, second *end) {
	if weBegin {
		return &p.a.end, &p.b.end
	}
	return &p.b.end, &p.a.end
}

// sides runs a test with each end as the initiator.
func sides(t *testing.T, f func(*testing.T, bool)) {
	t.Run("ours begins", func(t *testing.T) { f(t, true) })
	t.Run("theirs begins", func(t *testing.T) { f(t, false) })
}

func TestBegin(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, psk := range [][32]byte{{}, {1, 2, 3, 31: 9}} {
			name := fmt.Sprintf("IPv6 %v, pre-shared key %v", v6, psk != [32]byte{})
			t.Run(name, func(t *testing.T) {
				sides(t, func(t *testing.T, weBegin bool) {
					p := newPair(t)
					p.meet(t, weBegin, v6, psk)
					first, second := p.order(weBegin)
					reaches(p.ctx, t, first, second)
					reaches(p.ctx, t, second, first)
					transfer(p.ctx, t, first, second)
					transfer(p.ctx, t, second, first)
					s := p.a.stats(t)
					if s.Handshakes != 1 || s.Sessions != 1 || s.Drops.Sum() != 0 || s.Rx < 4*bulk || s.Tx < 4*bulk {
						t.Errorf("our end counts %+v", s)
					}
					if at := p.b.shown(p.ctx, t, "latest-handshakes"); at == "0" || at == "" {
						t.Errorf("wg show says of handshakes: %q", at)
					}
				})
			})
		}
	}
}

// TestPortable checks that our engine moves packets as it does on systems other than Linux: on the device and sockets of
// wireguard-go's module.
func TestPortable(t *testing.T) {
	sides(t, func(t *testing.T, weBegin bool) {
		p := newPairOf(t, func(t testing.TB, host *lab.Host, number byte) *own {
			return startOn(t, host, number, wgtun.CreateTUN, conn.NewDefaultBind())
		}, alone.RLocker())
		p.meet(t, weBegin, false, [32]byte{3})
		first, second := p.order(weBegin)
		reaches(p.ctx, t, first, second)
		transfer(p.ctx, t, first, second)
		transfer(p.ctx, t, second, first)
		if s := p.a.stats(t); s.Handshakes != 1 || s.Sessions != 1 || s.Drops.Sum() != 0 || s.Rx < 4*bulk || s.Tx < 4*bulk {
			t.Errorf("our end counts %+v", s)
		}
		if err := p.a.Do(p.a.engine.Rebind); err != nil {
			t.Fatal(err)
		}
		reaches(p.ctx, t, second, first)
	})
}

// TestSecrets checks that nothing passes if the pre-shared keys differ or the key is unknown.
func TestSecrets(t *testing.T) {
	sides(t, func(t *testing.T, weBegin bool) {
		p := newPair(t)
		p.meet(t, weBegin, false, [32]byte{1})
		p.b.meet(p.ctx, t, p.a, netip.AddrPort{}, [32]byte{2})
		first, second := p.order(weBegin)
		for _, a := range second.addrs.Slice() {
			ctx, cancel := context.WithTimeout(p.ctx, 2*time.Second)
			_, err := first.Ping(ctx, a)
			cancel()
			if err == nil {
				t.Error("with different pre-shared keys an answer comes")
			}
		}
		if s := p.a.stats(t); s.Handshakes != 0 {
			t.Errorf("our end counts %+v", s)
		}
		if at := p.b.shown(p.ctx, t, "latest-handshakes"); at != "0" && !weBegin {
			t.Errorf("wg show says of handshakes: %q", at)
		}
		p.b.meet(p.ctx, t, p.a, netip.AddrPort{}, [32]byte{1})
		reaches(p.ctx, t, first, second)
	})
}

// TestRoam checks that when either end changes its address and sends something, the other follows.
func TestRoam(t *testing.T) {
	sides(t, func(t *testing.T, weMove bool) {
		p := newPair(t)
		p.meet(t, true, false, [32]byte{})
		reaches(p.ctx, t, &p.a.end, &p.b.end)
		moved, other := p.order(weMove)
		if err := moved.Ports[0].Renumber(77); err != nil {
			t.Fatal(err)
		}
		reaches(p.ctx, t, moved, other)
		reaches(p.ctx, t, other, moved)
		want := netip.AddrPortFrom(moved.V4(), port)
		if weMove {
			if at := p.b.shown(p.ctx, t, "endpoints"); at != want.String() {
				t.Errorf("wg show says that we are at %s, want %s", at, want)
			}
		} else if at := p.a.stats(t).Endpoint; at != want {
			t.Errorf("our end says that the other is at %s, want %s", at, want)
		}
		transfer(p.ctx, t, &p.a.end, &p.b.end)
		if s := p.a.stats(t); s.Handshakes != 1 {
			t.Errorf("it took %d handshakes", s.Handshakes)
		}
	})
}

// TestRestart checks that when either end loses its sessions, the other notices the silence and starts a new handshake.
func TestRestart(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		p := newPair(t)
		p.meet(t, true, false, [32]byte{})
		reaches(p.ctx, t, &p.a.end, &p.b.end)
		if err := p.a.engine.RemovePeer(2); err != nil {
			t.Fatal(err)
		}
		p.meet(t, true, false, [32]byte{})
		reaches(p.ctx, t, &p.a.end, &p.b.end)
		transfer(p.ctx, t, &p.b.end, &p.a.end)
	})
	t.Run("theirs", func(t *testing.T) {
		p := newPair(t)
		p.meet(t, true, false, [32]byte{})
		reaches(p.ctx, t, &p.a.end, &p.b.end)
		if err := p.b.process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-p.b.process.Done()
		p.b.start(p.ctx, t)
		p.b.configure(p.ctx, t)
		p.b.meet(p.ctx, t, p.a, netip.AddrPort{}, [32]byte{}) // it cannot initiate, so we must
		reaches(p.ctx, t, &p.a.end, &p.b.end)
		transfer(p.ctx, t, &p.b.end, &p.a.end)
		if s := p.a.stats(t); s.Handshakes != 2 {
			t.Errorf("our end counts %+v", s)
		}
	})
}

// flood sends initiations from an unknown key to a key until stop is called.
func flood(ctx context.Context, t *testing.T, from *lab.Host, to netip.AddrPort, target key.NodePublic) (stop func()) {
	t.Helper()
	far, err := noise.NewRemote(target.Array())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := noise.NewLocal([32]byte{8: 99})
	if err != nil {
		t.Fatal(err)
	}
	link, err := noise.NewPair(stranger, far)
	if err != nil {
		t.Fatal(err)
	}
	var msg [noise.InitiationSize]byte
	if _, err := link.Initiate(&msg, [32]byte{8: 5}, 0, noise.Stamp(time.Now())); err != nil {
		t.Fatal(err)
	}
	sock, err := from.ListenUDP(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var jar noise.Jar
		for n := uint32(0); ctx.Err() == nil; n++ {
			binary.LittleEndian.PutUint32(msg[4:], n)
			jar.Sign(time.Now(), far, msg[:])
			// What does not fit is lost, as on a network.
			_, _ = sock.WriteToUDPAddrPort(msg[:], to)
			// A burst exceeds what an end queues before it demands cookies, and the pause leaves a busy machine time for
			// others.
			if n%256 == 255 {
				time.Sleep(32 * time.Millisecond)
			}
		}
	}()
	return func() {
		cancel()
		<-done
		_ = sock.Close()
	}
}

// cookies counts the cookie replies to a host in a capture.
func cookies(frames []lab.Frame, to *lab.Host) (n int) {
	const headers = 14 + 20 + 8
	for _, f := range frames {
		_, dst, ok := f.Addrs()
		if ok && dst == to.V4() && len(f.Data) == headers+noise.CookieReplySize && f.Data[headers] == noise.TypeCookieReply {
			n++
		}
	}
	return n
}

// TestLoad checks that while one end is flooded, the other can still initiate or respond: it gets a cookie, and must return
// it.
func TestLoad(t *testing.T) {
	t.Run("theirs is flooded", func(t *testing.T) {
		p := newPairOf(t, startOwn, &alone)
		load(t, p, &p.b.end, true)
		if s := p.a.stats(t); s.Unanswered == 0 {
			t.Errorf("our first attempt was answered: %+v", s)
		}
	})
	t.Run("ours is flooded", func(t *testing.T) {
		p := newPairOf(t, startOwn, &alone)
		load(t, p, &p.a.end, false)
		s, err := p.a.engine.Stats()
		if err != nil || s.Drops[wg.DropNoCookie] == 0 || s.Drops[wg.DropLimit] == 0 {
			t.Errorf("our end counts %v, %v", s.Drops.Map(), err)
		}
	})
	t.Run("theirs is flooded, and begins", func(t *testing.T) {
		p := newPairOf(t, startOwn, &alone)
		load(t, p, &p.b.end, false)
	})
	t.Run("ours is flooded, and begins", func(t *testing.T) {
		p := newPairOf(t, startOwn, &alone)
		load(t, p, &p.a.end, true)
		if s := p.a.stats(t); s.Unanswered == 0 {
			t.Errorf("the first answer was taken: %+v", s)
		}
	})
}

func load(t *testing.T, p *pair, flooded *end, weBegin bool) {
	t.Helper()
	first, second := p.order(weBegin)
	quiet := first
	if flooded == first {
		quiet = second
	}
	stop := flood(p.ctx, t, p.stranger, netip.AddrPortFrom(flooded.V4(), port), flooded.public)
	defer stop()
	watch, err := p.stranger.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	await(t, "load", func() error {
		if cookies(watch.Frames(), p.stranger) == 0 {
			return errors.New("the stranger is not asked for a cookie")
		}
		return nil
	})
	_, _ = watch.Stop() // it may have missed some
	wire, err := quiet.Ports[0].CaptureWire()
	if err != nil {
		t.Fatal(err)
	}
	p.meet(t, weBegin, false, [32]byte{})
	reaches(p.ctx, t, first, second)
	transfer(p.ctx, t, first, second)
	frames, _ := wire.Stop() // as above
	if cookies(frames, quiet.Host) == 0 {
		t.Error("no cookie came to who is not flooded")
	}
}
