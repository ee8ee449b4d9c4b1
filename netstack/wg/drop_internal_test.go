package wg

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
	"github.com/redoubt-mesh/redoubt/proto"
)

// put passes an engine one message from the network.
func (x *rig) put(msg []byte) {
	x.r.sizes[0] = copy(x.r.bufs[0], msg)
	x.r.endpoints[0] = stubEndpoint("192.0.2.9:1")
	x.e.inbound(x.r, 1)
}

// initiation returns the initiation of a handshake with b by a node whose private key is made from seed.
func initiation(t testing.TB, seed byte, b *rig) []byte {
	t.Helper()
	far, err := noise.NewRemote(b.key.Public().Array())
	if err != nil {
		t.Fatal(err)
	}
	l, err := noise.NewLocal([32]byte{8: seed})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := noise.NewPair(l, far)
	if err != nil {
		t.Fatal(err)
	}
	var msg [noise.InitiationSize]byte
	if _, err := pair.Initiate(&msg, [32]byte{8: 5}, 1, noise.Stamp(time.Now())); err != nil {
		t.Fatal(err)
	}
	new(noise.Jar).Sign(time.Now(), far, msg[:])
	return msg[:]
}

// TestEveryDropIsCounted makes an engine drop something for each reason, and checks where it is counted.
func TestEveryDropIsCounted(t *testing.T) {
	// data returns a message of the session between a and b.
	data := func(a *rig, size, from int) []byte {
		a.drop()
		a.fill(1, size, from, 2)
		a.e.outbound(a.s, 1)
		return a.held()[0]
	}
	for _, c := range []struct {
		why   Drop
		count int // of drops
		peer  bool
		do    func(t *testing.T, a, b *rig)
	}{
		{DropMalformed, 1, false, func(_ *testing.T, _, b *rig) { b.put(make([]byte, 31)) }},
		{DropMalformed, 1, false, func(_ *testing.T, _, b *rig) { b.put(append([]byte{9}, make([]byte, 99)...)) }},
		{DropMalformed, 0, false, func(_ *testing.T, _, b *rig) { b.put(nil) }}, // the bind has taken the message itself
		{DropMalformed, 1, true, func(_ *testing.T, a, b *rig) {
			a.fill(1, 100, 1, 2)
			a.s.bufs[0][noise.HeaderSize+3] = 200 // longer than the packet is
			a.drop()
			a.e.outbound(a.s, 1)
			b.put(a.held()[0])
		}},
		{DropNoSession, 1, false, func(_ *testing.T, a, b *rig) {
			msg := data(a, 100, 1)
			msg[4] ^= 1
			b.put(msg)
		}},
		{DropForged, 1, true, func(_ *testing.T, a, b *rig) {
			msg := data(a, 100, 1)
			msg[len(msg)-1] ^= 1
			b.put(msg)
		}},
		{DropReplay, 1, true, func(_ *testing.T, a, b *rig) {
			msg := data(a, 100, 1)
			b.put(msg)
			b.put(msg)
		}},
		{DropSource, 1, true, func(_ *testing.T, a, b *rig) { b.put(data(a, 100, 77)) }},
		{DropWrongKey, 1, false, func(t *testing.T, a, b *rig) { b.put(initiation(t, 9, a)) }},
		{DropStranger, 1, false, func(t *testing.T, _, b *rig) { b.put(initiation(t, 9, b)) }},
		{DropForged, 1, false, func(t *testing.T, _, b *rig) {
			msg := initiation(t, 9, b)
			msg[20] ^= 1
			far, err := noise.NewRemote(b.key.Public().Array())
			if err != nil {
				t.Fatal(err)
			}
			new(noise.Jar).Sign(time.Now(), far, msg)
			b.put(msg)
		}},
		{DropNoPeer, 1, false, func(_ *testing.T, a, _ *rig) {
			a.fill(1, 100, 1, 77)
			a.e.outbound(a.s, 1)
		}},
		{DropUnsent, 1, true, func(_ *testing.T, a, _ *rig) {
			a.fail = errors.New("the cable is cut")
			a.fill(1, 100, 1, 2)
			a.e.outbound(a.s, 1)
		}},
	} {
		t.Run(c.why.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := twoRigs(t)
				defer a.close(t)
				defer b.close(t)
				c.do(t, a, b)
				var want, own Drops
				want[c.why] = uint64(c.count)
				if c.peer {
					own = want
				}
				at, id := b, 1
				if c.why >= DropNoPeer {
					at, id = a, 2
				}
				st, err := at.e.Stats()
				if err != nil {
					t.Fatal(err)
				}
				if st.Drops != want {
					t.Errorf("the engine counts %v, want %v", st.Drops.Map(), want.Map())
				}
				if got := at.statsOf(proto.NodeID(id)).Drops; got != own {
					t.Errorf("its peer %v, want %v", got.Map(), own.Map())
				}
			})
		})
	}
}

// TestHandshakesAreCounted checks the counters for a repeated handshake, an unanswered one, and too many of them.
func TestHandshakesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newRig(t, 1), newRig(t, 2)
		defer a.close(t)
		defer b.close(t)
		a.peer(t, 2, b.key.Public())
		b.peer(t, 1, a.key.Public())
		a.fill(3, 100, 1, 2)
		a.e.outbound(a.s, 3)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		s, err := a.e.Peer(2)
		if err != nil {
			t.Fatal(err)
		}
		var want Drops
		want[DropNoAnswer] = 3
		if s.Drops != want || s.Unanswered < 15 || s.Handshakes != 0 || s.Sessions != 0 {
			t.Errorf("where nobody answers: %+v", s)
		}
		if list, err := a.e.Active(); err != nil || len(list) != 0 {
			t.Errorf("active: %+v, %v", list, err)
		}
		a.drop()
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		first := a.held()[0]
		a.carry(b)
		b.carry(a)
		a.carry(b)
		b.put(first)
		for _, x := range []*rig{a, b} {
			list, err := x.e.Active()
			if err != nil || len(list) != 1 || list[0].Handshakes != 1 || list[0].Sessions != 1 {
				t.Fatalf("after a handshake: %+v, %v", list, err)
			}
		}
		if s, err := b.e.Peer(1); err != nil || s.Drops[DropStale] != 1 {
			t.Errorf("an initiation came twice: %+v, %v", s, err)
		}
		// Under load a handshake is answered with a cookie, until there are too many.
		flood := initiation(t, 9, b)
		for range 5000 {
			b.put(flood)
		}
		st, err := b.e.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if n := st.Drops[DropStranger] + st.Drops[DropNoCookie] + st.Drops[DropLimit]; n != 5000 || st.Drops[DropNoCookie] != 2048 {
			t.Errorf("a flood: %v", st.Drops.Map())
		}
	})
}

// TestResponsesThatNobodyWaitsFor checks how unexpected or forged responses and cookie replies are counted.
func TestResponsesThatNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newRig(t, 1), newRig(t, 2)
		defer a.close(t)
		defer b.close(t)
		a.peer(t, 2, b.key.Public())
		b.peer(t, 1, a.key.Public())
		a.fill(1, 100, 1, 2)
		a.e.outbound(a.s, 1)
		a.carry(b)
		response := b.held()[0]
		sign := func(msg []byte) []byte {
			far, err := noise.NewRemote(a.key.Public().Array())
			if err != nil {
				t.Fatal(err)
			}
			new(noise.Jar).Sign(time.Now(), far, msg)
			return msg
		}
		change := func(at int) []byte {
			msg := slices.Clone(response)
			msg[at] ^= 1
			return sign(msg)
		}
		cookie := make([]byte, noise.CookieReplySize)
		cookie[0] = noise.TypeCookieReply
		a.put(change(8))  // another handshake
		a.put(change(50)) // not authentic
		a.put(cookie)     // for no handshake of ours
		copy(cookie[4:], response[8:12])
		a.put(cookie)
		a.put(response)
		a.put(response) // there is a session already
		st, err := a.e.Stats()
		if err != nil {
			t.Fatal(err)
		}
		var want Drops
		want[DropNoSession], want[DropForged] = 3, 2
		if st.Drops != want {
			t.Errorf("counted were %v, want %v", st.Drops.Map(), want.Map())
		}
	})
}

func TestDropTexts(t *testing.T) {
	seen := map[string]bool{}
	for d := range numDrops {
		if seen[d.String()] || d.String() == "" {
			t.Errorf("reason %d: %q", d, d)
		}
		seen[d.String()] = true
	}
	var d Drops
	d[DropReplay] = 3
	if m := d.Map(); len(m) != 1 || m["replay"] != 3 || d.Sum() != 3 {
		t.Errorf("%v", m)
	}
}
