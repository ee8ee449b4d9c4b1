package relay

import (
	"bytes"
	crand "crypto/rand"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

func packets(size int, texts ...string) []byte {
	var out []byte
	for _, s := range texts {
		b := make([]byte, size)
		copy(b, s)
		out = append(out, b...)
	}
	return out
}

// TestHeadersOfRuns checks that wrapping, forwarding and stripping leaves packets unchanged, whatever the headers on the way.
func TestHeadersOfRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 1452).Draw(t, "size")
		run := make([]byte, rapid.IntRange(1, min(64*size, bind.MaxRun)).Draw(t, "length"))
		for i := range run {
			run[i] = byte(rand.Uint32())
		}
		size = min(size, len(run))
		kinds := rapid.SliceOfN(rapid.SampledFrom([]relaymsg.Kind{relaymsg.Data, relaymsg.DataFor}), 2, 2).Draw(t, "kinds")
		var got []byte
		err := sendWrapped(bytes.Clone(run), size, 0, relaymsg.Header{Kind: kinds[0], Number: 5, Session: 6}, 7, func(r []byte, each int) error {
			if len(r) > bind.MaxRun || (len(r)+each-1)/each > bind.MaxRunCount {
				t.Fatalf("a run of %d bytes in messages of %d", len(r), each)
			}
			r = bytes.Clone(r)
			skip, h := headSize(kinds[0]), relaymsg.Header{Kind: kinds[1], Number: 8, Session: 9}
			take := func(r []byte, each int) error {
				if at := relaymsg.ParseHeader(r); at != h || (h.Kind == relaymsg.DataFor && relaymsg.Peer(r) != 3) {
					t.Fatalf("header %+v", at)
				}
				n, _ := strip(r, each, headSize(kinds[1]))
				got = append(got, r[:n]...)
				return nil
			}
			if headSize(kinds[1]) > skip {
				return sendWrapped(r, each, skip, h, 3, func(r []byte, each int) error { return take(bytes.Clone(r), each) })
			}
			n, each := rewrap(r, each, skip, h, 3)
			return take(r[:n], each)
		})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, run) {
			t.Fatalf("%d bytes became %d", len(run), len(got))
		}
	})
}

func TestSameHead(t *testing.T) {
	run := packets(10, "\xe0aaaaaaa", "\xe0aaaaaaa", "\xe0baaaaaa")
	if n := sameHead(run, 10); n != 20 {
		t.Errorf("%d", n)
	}
	if n := sameHead(run[:23], 10); n != 20 {
		t.Errorf("cut off: %d", n)
	}
	if n := sameHead(run[:4], 10); n != 4 {
		t.Errorf("short: %d", n)
	}
}

func TestCookies(t *testing.T) {
	j := &jar{secret: [32]byte{1}}
	now := time.Unix(1_800_000_000, 0)
	a, b := netip.MustParseAddrPort("192.0.2.1:5"), netip.MustParseAddrPort("192.0.2.1:6")
	c := j.give(now, a, 7)
	for name, good := range map[string]bool{
		"": j.take(now, a, 7, c), "soon": j.take(now.Add(cookieLife), a, 7, c),
	} {
		if !good {
			t.Errorf("not taken %s", name)
		}
	}
	for name, good := range map[string]bool{
		"from another port": j.take(now, b, 7, c), "for another session": j.take(now, a, 8, c), "late": j.take(now.Add(2*cookieLife), a, 7, c),
		"of another relay": (&jar{}).take(now, a, 7, c), "before its time": j.take(now.Add(-2*cookieLife), a, 7, c),
	} {
		if good {
			t.Errorf("taken %s", name)
		}
	}
}

func TestPace(t *testing.T) {
	p := &pace{rate: 2, burst: 3}
	now := time.Unix(0, 1)
	count := func() (n int) {
		for p.take(now, 5) {
			n++
		}
		return n
	}
	if n := count(); n != 3 {
		t.Errorf("%d at once", n)
	}
	now = now.Add(time.Second)
	if n := count(); n != 2 {
		t.Errorf("%d after a second", n)
	}
	if now = now.Add(-time.Hour); p.take(now, 5) {
		t.Error("a clock that goes back gives tokens")
	}
}

func frameOf(size int) *frame {
	f := newFrame()
	f.b = append(f.b, make([]byte, size)...)
	return f
}

// TestQueue checks that, whatever is put, the bytes are bounded, the frames of each source stay in order, and a source that
// sends little loses nothing to one that floods.
func TestQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := &queue{limit: 10_000}
		sent := map[proto.NodeID]uint32{}
		for range rapid.IntRange(1, 200).Draw(t, "frames") {
			from := proto.NodeID(rapid.IntRange(1, 3).Draw(t, "from"))
			f := frameOf(rapid.IntRange(8, 3000).Draw(t, "size"))
			sent[from]++
			f.b[0], f.b[1] = byte(from), byte(sent[from])
			q.put(from, f)
			if q.bytes > q.limit {
				t.Fatalf("%d bytes wait", q.bytes)
			}
			if rapid.Bool().Draw(t, "take") {
				q.take(nil, 1)
			}
		}
		last := map[byte]byte{}
		for len(q.sources) > 0 {
			b := q.take(nil, 1)
			if len(b) == 0 {
				t.Fatal("nothing is taken of a queue that is not empty")
			}
			if n, ok := last[b[0]]; ok && b[1] <= n {
				t.Fatalf("%d after %d", b[1], n)
			}
			last[b[0]] = b[1]
		}
		if q.bytes != 0 {
			t.Fatalf("%d bytes wait in an empty queue", q.bytes)
		}
	})
}

func TestQueueIsFair(t *testing.T) {
	q := &queue{limit: 1 << 20}
	for range 10 {
		q.put(2, frameOf(1000))
	}
	for range 100 {
		q.put(1, frameOf(60_000))
	}
	if len(q.sources[0].frames) != 10 {
		t.Errorf("the source that sends little has lost %d", 10-len(q.sources[0].frames))
	}
	small, large := 0, 0
	for len(q.sources) == 2 {
		if b := q.take(nil, 1); len(b) == 1000 {
			small++
		} else {
			large++
		}
	}
	if small != 10 || large > 3 {
		t.Errorf("%d large frames went before the last of %d small ones", large, small)
	}
	for range 2 * maxControl {
		q.putControl([]byte{1})
	}
	if b := q.take(nil, 1); len(b) < maxControl || b[maxControl-1] != 1 {
		t.Error("control frames do not go first")
	}
	q.clear()
	if q.bytes != 0 || len(q.sources) != 0 {
		t.Errorf("%d bytes after clear", q.bytes)
	}
}

func TestChoose(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, c := range map[string]struct {
		home proto.NodeID
		all  []candidate
		want proto.NodeID
	}{
		"none":              {0, nil, 0},
		"all dead":          {1, []candidate{{1, dead, ms(1)}, {2, dead, 0}}, 0},
		"the nearest":       {0, []candidate{{1, healthy, ms(30)}, {2, healthy, ms(20)}}, 2},
		"measured first":    {0, []candidate{{1, healthy, 0}, {2, healthy, ms(200)}}, 2},
		"it stays":          {1, []candidate{{1, healthy, ms(30)}, {2, healthy, ms(21)}}, 1},
		"clearly nearer":    {1, []candidate{{1, healthy, ms(50)}, {2, healthy, ms(20)}}, 2},
		"far, but not much": {1, []candidate{{1, healthy, ms(200)}, {2, healthy, ms(180)}}, 1},
		"it died":           {1, []candidate{{1, dead, ms(30)}, {2, healthy, ms(90)}}, 2},
		"it is doubtful":    {1, []candidate{{1, unsure, ms(30)}, {2, healthy, ms(90)}}, 2},
		"all are doubtful":  {1, []candidate{{1, unsure, 0}, {2, unsure, 0}}, 1},
		"it is gone":        {9, []candidate{{1, healthy, 0}, {2, healthy, 0}}, 1},
	} {
		if got := choose(c.home, c.all); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestRenewal checks that a session is bound again well before it ends, and only once, even if it is short.
func TestRenewal(t *testing.T) {
	now, r := time.Unix(1_000_000, 0), chances{crand.Reader}
	secret := r.Secret()
	key, err := secret.Agree(secret.Public(), [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for life, want := range map[time.Duration]time.Duration{
		time.Hour: time.Hour - 2*time.Minute, 100 * time.Second: 75 * time.Second, 8 * time.Second: 6 * time.Second,
	} {
		l := &link{want: true, addrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}}
		l.cur = &bound{since: now, until: now.Add(life), heard: now, pinged: now, key: key}
		if got := l.renewal().Sub(now); got != want {
			t.Errorf("of %s: after %s, want %s", life, got, want)
		}
		if l.Step(now.Add(want-time.Millisecond), ticked{}, r); l.try != nil {
			t.Errorf("of %s: it is bound anew before that", life)
		}
		if l.Step(now.Add(want), ticked{}, r); l.try == nil {
			t.Errorf("of %s: it is not bound anew", life)
		}
	}
}

// TestManyPeers checks that a session that has more peers than numbers reaches them all, and that a peer in use keeps its number.
func TestManyPeers(t *testing.T) {
	const steady = proto.NodeID(1)
	now := time.Unix(1_800_000_000, 0)
	// deliver sends a packet from a peer through a relay's session to a node, and returns the header that it had.
	from, to := &session{id: 5}, &route{session: 5}
	deliver := func(peer proto.NodeID) relaymsg.Header {
		t.Helper()
		h := from.number(peer, now)
		run := make([]byte, headSize(h.Kind))
		putHead(run, h, peer)
		if got := to.sender(h, run); got != peer {
			t.Fatalf("a packet from %s seems to be from %s", peer, got)
		}
		if h.Kind == relaymsg.DataFor {
			from.learned(&relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Learned, Number: h.Number}, Peer: peer})
		}
		return h
	}
	first := deliver(steady).Number
	for n := range 3 * maxPeers {
		deliver(proto.NodeID(2 + n))
		if h := deliver(steady); h.Number != first {
			t.Fatalf("after %d peers the one in use has number %d, want %d", n+1, h.Number, first)
		}
		now = now.Add(10 * time.Millisecond)
	}
	// All speak at once.
	for n := range 3 * maxPeers {
		deliver(proto.NodeID(2 + n))
	}
	for n := range 3 * maxPeers {
		to.number(proto.NodeID(2+n), now.UnixNano())
	}
	if len(from.out.of) != maxPeers || len(to.out.of) != maxPeers || len(to.in) != maxPeers {
		t.Errorf("%d, %d and %d peers have numbers", len(from.out.of), len(to.out.of), len(to.in))
	}
}
