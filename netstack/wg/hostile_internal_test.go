package wg

import (
	crand "crypto/rand"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// elsewhere is an endpoint whose address matters.
type elsewhere struct{ netip.AddrPort }

func (e elsewhere) ClearSrc()           {}
func (e elsewhere) SrcToString() string { return "" }
func (e elsewhere) DstToString() string { return e.String() }
func (e elsewhere) DstIP() netip.Addr   { return e.Addr() }
func (e elsewhere) SrcIP() netip.Addr   { return netip.Addr{} }

func (e elsewhere) DstToBytes() []byte {
	b, err := e.MarshalBinary()
	if err != nil {
		panic(err)
	}
	return b
}

// sourceOf returns the nth of many source addresses.
func sourceOf(n int) elsewhere {
	return elsewhere{netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 4: byte(n >> 16), 5: byte(n >> 8), 6: byte(n), 15: 1}), 9)}
}

// putFrom passes an engine a message from the given source.
func (x *rig) putFrom(msg []byte, from elsewhere) {
	x.r.sizes[0] = copy(x.r.bufs[0], msg)
	x.r.endpoints[0] = from
	x.e.inbound(x.r, 1)
}

// statsOf returns the engine's counters for a peer.
func (x *rig) statsOf(id proto.NodeID) PeerStats {
	n := x.e.nodes[id]
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats(time.Now())
}

// TestWholeExchangeReplayed records everything that two nodes send each other over hours, and replays it to both: soon, after
// the sessions have ended, and after one was removed and added again. The replay must have no effect.
func TestWholeExchangeReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		var said [2][][]byte // to a and to b
		for n := range 1200 {
			if n%10 == 0 {
				a.fill(3, 200, 1, 2)
				a.e.outbound(a.s, 3)
				b.fill(3, 200, 2, 1)
				b.e.outbound(b.s, 3)
			}
			for a.count()+b.count() > 0 {
				said[1] = append(said[1], a.held()...)
				a.carry(b)
				said[0] = append(said[0], b.held()...)
				b.carry(a)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		kinds := map[byte]int{}
		for _, m := range slices.Concat(said[:]...) {
			kinds[m[0]]++
		}
		if kinds[noise.TypeInitiation] < 5 || kinds[noise.TypeResponse] < 5 || kinds[noise.TypeTransport] < 200 {
			t.Fatalf("recorded were %v", kinds)
		}
		r := rand.New(rand.NewPCG(1, 2))
		again := func(when string) {
			t.Helper()
			for at, to := range []*rig{a, b} {
				to.drop()
				wrote := to.wrote
				id := other(at)
				before := to.statsOf(id)
				r.Shuffle(len(said[at]), func(i, j int) { said[at][i], said[at][j] = said[at][j], said[at][i] })
				for _, m := range said[at] {
					to.putFrom(m, sourceOf(1))
				}
				after := to.statsOf(id)
				if to.wrote != wrote {
					t.Errorf("%s: %d packets came again", when, to.wrote-wrote)
				}
				if after.Endpoint != before.Endpoint || after.Handshakes != before.Handshakes || after.Sessions != before.Sessions || after.Rx != before.Rx {
					t.Errorf("%s: before %+v, then %+v", when, before, after)
				}
				for _, m := range to.held() {
					if m[0] != noise.TypeCookieReply {
						t.Errorf("%s: a message of type %d was sent in answer", when, m[0])
					}
				}
			}
		}
		again("at once")
		time.Sleep(time.Minute)
		again("a minute later")
		time.Sleep(time.Hour)
		again("when the sessions have ended")
		for at, x := range []*rig{a, b} {
			if err := x.e.RemovePeer(other(at)); err != nil {
				t.Fatal(err)
			}
		}
		a.peer(t, 2, b.key.Public())
		b.peer(t, 1, a.key.Public())
		again("when both were removed and came back")
	})
}

// other returns the other node's ID, for node index 0 or 1.
func other(at int) proto.NodeID { return proto.NodeID(2 - at) }

// TestNumbersOfNobody tries 2^16 indexes that name no session and no handshake, in all messages that contain one.
func TestNumbersOfNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		far, err := noise.NewRemote(b.key.Public().Array())
		if err != nil {
			t.Fatal(err)
		}
		before := b.statsOf(1)
		numbers, wrote := b.e.numbers(), b.wrote
		b.drop()
		r := rand.New(rand.NewPCG(3, 4))
		data, response, cookie := make([]byte, 128), make([]byte, noise.ResponseSize), make([]byte, noise.CookieReplySize)
		data[0], response[0], cookie[0] = noise.TypeTransport, noise.TypeResponse, noise.TypeCookieReply
		for n := range 1 << 16 {
			number := r.Uint32()
			if b.e.indexes.find(number).node != nil {
				continue
			}
			binary.LittleEndian.PutUint32(data[4:], number)
			b.putFrom(slices.Clone(data), sourceOf(n))
			binary.LittleEndian.PutUint32(cookie[4:], number)
			b.putFrom(cookie, sourceOf(n))
			if n%600 == 0 { // beyond a certain rate they are not read at all
				binary.LittleEndian.PutUint32(response[8:], number)
				new(noise.Jar).Sign(time.Now(), far, response)
				b.putFrom(response, sourceOf(n))
				time.Sleep(10 * time.Millisecond)
			}
		}
		after := b.statsOf(1)
		if after != before || b.e.numbers() != numbers || b.count() != 0 || b.wrote != wrote {
			t.Errorf("before %+v, then %+v; %d indexes, before %d", before, after, b.e.numbers(), numbers)
		}
		a.drop()
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		a.carry(b)
		if b.wrote != wrote+1 {
			t.Error("the session did not survive")
		}
	})
}

// TestDamagedHandshakes flips each bit of the messages of a handshake, and truncates them. The last 16 bytes prove an address
// under load, and are ignored otherwise.
func TestDamagedHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newRig(t, 1), newRig(t, 2)
		defer a.close(t)
		defer b.close(t)
		a.peer(t, 2, b.key.Public())
		b.peer(t, 1, a.key.Public())
		damage := func(to *rig, good []byte) {
			t.Helper()
			id := proto.NodeID(1)
			if to == a {
				id = 2
			}
			to.drop()
			before, numbers := to.statsOf(id), to.e.numbers()
			for n := range good {
				to.put(good[:n])
			}
			for bit := range (len(good) - 16) * 8 {
				bad := slices.Clone(good)
				bad[bit/8] ^= 1 << (bit % 8)
				to.put(bad)
			}
			to.put(append(slices.Clone(good), 0))
			after := to.statsOf(id)
			after.Drops = before.Drops
			if after != before || to.e.numbers() != numbers || to.count() != 0 {
				t.Errorf("a damaged message of type %d: %d answers, before %+v, then %+v", good[0], to.count(), before, after)
			}
		}
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		first := a.held()[0]
		damage(b, first)
		b.put(first)
		second := b.held()[0]
		damage(a, second)
		a.drop()
		a.put(second)
		a.carry(b)
		if b.wrote != 1 {
			t.Error("the good ones do not make a session after them")
		}
	})
}

// TestFakePeersLeaveNothing has 2^16 hosts begin handshakes, a quarter of which answer cookies as real hosts do. The state that
// the engine keeps is bounded, and an established peer gets through.
func TestFakePeersLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		far, err := noise.NewRemote(b.key.Public().Array())
		if err != nil {
			t.Fatal(err)
		}
		before, numbers := inUse(), b.e.numbers()
		msg := initiation(t, 9, b)
		most, came := uint64(0), b.wrote
		for n := range 1 << 16 {
			binary.LittleEndian.PutUint32(msg[4:], uint32(n))
			var jar noise.Jar
			jar.Sign(time.Now(), far, msg)
			b.drop()
			b.putFrom(msg, sourceOf(n))
			if b.count() == 1 && n%4 == 0 {
				if err := jar.Take(time.Now(), far, b.held()[0]); err != nil {
					t.Fatal(err)
				}
				jar.Sign(time.Now(), far, msg)
				b.putFrom(msg, sourceOf(n))
			}
			if n%1000 == 0 {
				time.Sleep(50 * time.Millisecond)
				a.drop()
				a.fill(1, 100, 1, 2)
				a.e.outbound(a.s, 1)
				a.carry(b)
				came++
			}
			if n%10000 == 9999 {
				most = max(most, inUse())
			}
		}
		if b.wrote != came {
			t.Errorf("%d of %d packets of an established peer came", b.wrote, came)
		}
		if n, m := b.e.awake(), b.e.numbers(); n != 1 || m != numbers {
			t.Errorf("%d peers are awake, %d indexes in use", n, m)
		}
		if grown := int64(most) - int64(before); grown > 1<<20 {
			t.Errorf("%d bytes were kept of them", grown)
		}
	})
}

// TestCookieThatCannotLeave checks that handshakes are judged while a cookie waits for room in a socket.
func TestCookieThatCannotLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRig(t, 2)
		defer x.close(t)
		waits := 0
		x.slow = func() {
			waits++
			if !x.e.gateMu.TryLock() {
				t.Fatal("the gate is shut meanwhile")
			}
			x.e.gateMu.Unlock()
		}
		msg := initiation(t, 9, x)
		for n := range 200 {
			x.putFrom(msg, sourceOf(n))
		}
		if waits == 0 {
			t.Error("no cookie was sent")
		}
	})
}

// TestClaimedKey checks that an initiation that only claims a sleeping peer's key costs no more than the pair that it is for, and
// that one that proves it gives the peer all pairs.
func TestClaimedKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRig(t, 2)
		defer x.close(t)
		keys := make([]key.NodePublic, maxRemotes)
		for i := range keys {
			l, err := noise.NewLocal([32]byte{8: byte(i)})
			if err != nil {
				t.Fatal(err)
			}
			public := l.Public()
			if keys[i], err = key.ParseNodePublic(public[:]); err != nil {
				t.Fatal(err)
			}
		}
		if err := x.e.SetPeer(PeerConfig{ID: 1, Keys: keys, Addrs: addrs(1)}); err != nil {
			t.Fatal(err)
		}
		next, err := key.NewNode(crand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if err := x.e.RotateLocalKey(next); err != nil {
			t.Fatal(err)
		}
		far, err := noise.NewRemote(x.key.Public().Array())
		if err != nil {
			t.Fatal(err)
		}
		const claimed = 2
		good := initiation(t, claimed, x)
		bad := slices.Clone(good)
		bad[100] ^= 1 // in the timestamp, which only the key's owner can seal
		new(noise.Jar).Sign(time.Now(), far, bad)
		x.put(bad)
		n := x.e.nodes[1]
		for i, r := range n.remotes {
			if used := r.noise != nil; used != (i == claimed) {
				t.Errorf("key %d is used: %v", i, used)
			}
		}
		if x.e.drops.read()[DropForged] != 1 || n.peer != nil || x.count() != 0 {
			t.Errorf("%d answers, awake: %v, drops %v", x.count(), n.peer != nil, x.e.drops.read().Map())
		}
		x.put(good)
		if len(n.pairs) != 2*maxRemotes || x.count() != 1 {
			t.Errorf("%d answers, %d pairs, want %d", x.count(), len(n.pairs), 2*maxRemotes)
		}
	})
}

// TestFloodAcrossRekey floods one end of a conversation so that no cookie is left for strangers whose messages come last in
// each second, while the session has to be renewed by the flooded end, or by the other. No packet is delayed by it.
func TestFloodAcrossRekey(t *testing.T) {
	for name, begins := range map[string]bool{"the flooded end begins": true, "the other end begins": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				flooded, other := twoRigs(t) // the first one initiates
				ours, theirs := 1, 2
				if !begins {
					flooded, other, ours, theirs = other, flooded, theirs, ours
				}
				defer flooded.close(t)
				defer other.close(t)
				far, err := noise.NewRemote(flooded.key.Public().Array())
				if err != nil {
					t.Fatal(err)
				}
				// Unsolicited responses are judged like initiations, and those that pass cost the test less.
				strangers := make([][]byte, 2200)
				for i := range strangers {
					strangers[i] = make([]byte, noise.ResponseSize)
					strangers[i][0] = noise.TypeResponse
					binary.LittleEndian.PutUint32(strangers[i][4:], uint32(i))
					new(noise.Jar).Sign(time.Now(), far, strangers[i])
				}
				before := [2]int{flooded.wrote, other.wrote}
				for n := range 200 {
					time.Sleep(time.Second)
					synctest.Wait()
					flooded.carry(other) // what its timers sent
					// From before the session must be renewed until it would end.
					if n >= 118 && n < 182 {
						for i, msg := range strangers {
							flooded.putFrom(msg, sourceOf(i))
						}
						flooded.drop()
					}
					flooded.fill(1, 100, ours, theirs)
					flooded.e.outbound(flooded.s, 1)
					other.fill(1, 100, theirs, ours)
					other.e.outbound(other.s, 1)
					for flooded.count()+other.count() > 0 {
						flooded.carry(other)
						other.carry(flooded)
					}
					if to, from := flooded.wrote-before[0], other.wrote-before[1]; to != n+1 || from != n+1 {
						t.Fatalf("of %d packets each way %d came to the flooded end, %d from it", n+1, to, from)
					}
				}
				if st := flooded.e.drops.read(); st[DropLimit] < 64*500 || flooded.statsOf(proto.NodeID(theirs)).Handshakes < 2 {
					t.Errorf("it counts %v, of the other %+v", st.Map(), flooded.statsOf(proto.NodeID(theirs)))
				}
			})
		})
	}
}

// TestHomes checks that a peer's home is where its last authentic packet came from, until the peer is removed.
func TestHomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := twoRigs(t)
		defer a.close(t)
		defer b.close(t)
		at := func() (list []netip.Addr) { return slices.Collect(maps.Keys(b.e.homes.all)) }
		if first := netip.MustParseAddr("192.0.2.9"); !b.e.homes.has(first) || len(at()) != 1 {
			t.Errorf("it is at %v, want %s", at(), first)
		}
		b.putFrom(initiation(t, 9, b), sourceOf(7)) // a stranger
		a.drop()
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		b.putFrom(a.held()[0], sourceOf(8))
		if !b.e.homes.has(sourceOf(8).Addr()) || len(at()) != 1 {
			t.Errorf("it is at %v, want %s", at(), sourceOf(8))
		}
		time.Sleep(time.Hour)
		if b.e.awake() != 0 || len(at()) != 1 {
			t.Errorf("asleep it is at %v", at())
		}
		if err := b.e.RemovePeer(1); err != nil || len(at()) != 0 {
			t.Errorf("removed it is at %v, %v", at(), err)
		}
	})
}

// inUse returns how much memory is in use.
func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkFlood measures the cost of one handshake of a stranger under load.
func BenchmarkFlood(b *testing.B) {
	x := newRig(b, 2)
	defer x.close(b)
	msg := initiation(b, 9, x)
	put := func() {
		for i := range x.r.bufs {
			x.r.sizes[i] = copy(x.r.bufs[i], msg)
			x.r.endpoints[i] = stubEndpoint("192.0.2.9:1")
		}
		x.e.inbound(x.r, len(x.r.bufs))
	}
	for range 10 {
		put()
	}
	b.ReportAllocs()
	for b.Loop() {
		put()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(x.r.bufs)), "ns/handshake")
}
