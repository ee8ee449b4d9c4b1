package path_test

import (
	"crypto/rand"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// road is a path that silently drops packets that are too long.
type road struct {
	finder *path.Finder
	now    time.Time
	way    path.Way
	rtt    time.Duration
	mtu    int // the largest IP packet
	lost   float64
	cut    bool // nothing gets through
	deaf   bool // packets are not answered, though pings are
	quiet  bool // there are no packets
	chance *mathrand.Rand

	flying []flight
	limits []int // in the order in which they were set
	fit    path.Fit
	sized  int // pings with padding
	route  path.Route
}

type flight struct {
	id   pathmsg.TxID
	from path.Way
	at   time.Time
}

func newRoad(device, mtu int, peerAt string) *road {
	r := &road{
		finder: path.NewFinder(bounds, local, rand.Reader), now: time.Unix(1_000_000, 0), rtt: 20 * time.Millisecond, mtu: mtu,
		chance: mathrand.New(mathrand.NewPCG(1, 2)),
	}
	r.step(path.Sized{MTU: device})
	if peerAt == "" {
		r.way = path.Way{Relay: home}
		r.step(path.Known{ID: peer, Relay: home})
	} else {
		r.way = path.Way{Addr: at(peerAt)}
		r.step(path.Known{ID: peer, Endpoints: endpoints(proto.EndpointInterface, peerAt)})
	}
	return r
}

// headers returns the length of the headers before a ping on this road.
func (r *road) headers() int {
	switch {
	case !r.way.Direct():
		return 20 + 8 + 8
	case r.way.Addr.Addr().Is4():
		return 20 + 8
	}
	return 40 + 8
}

func (r *road) step(e path.Event) {
	for _, f := range r.finder.Step(r.now, e) {
		switch f := f.(type) {
		case path.Fit:
			r.fit = f
			r.limits = append(r.limits, f.MTU)
		case path.Use:
			r.route = f.Route
		case path.Send:
			r.send(f)
		}
	}
}

func (r *road) send(f path.Send) {
	p, ok := f.Message.(pathmsg.Ping)
	if !ok {
		return
	}
	if p.Size > 0 {
		r.sized++
	}
	if f.To == r.way && !r.cut && max(p.Size, 70)+r.headers() <= r.mtu && r.chance.Float64() >= r.lost {
		r.flying = append(r.flying, flight{p.TxID, f.To, r.now.Add(r.rtt)})
	}
}

// live lets time pass in which packets go out, unless it is quiet.
func (r *road) live(d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		r.now = r.now.Add(5 * time.Millisecond)
		for len(r.flying) > 0 && !r.flying[0].at.After(r.now) {
			x := r.flying[0]
			r.flying = r.flying[1:]
			r.step(path.Got{ID: peer, From: x.from, Message: pathmsg.Pong{TxID: x.id}})
		}
		if next := r.finder.Next(); !next.IsZero() && !next.After(r.now) {
			r.step(path.Tick{})
		}
		if r.now.UnixNano()%int64(path.UsedEvery) == 0 {
			r.step(path.Used{ID: peer, Sent: !r.quiet, Heard: !r.quiet && !r.cut && !r.deaf})
		}
	}
}

func (r *road) view(t interface {
	Helper()
	Fatal(...any)
},
) path.View {
	t.Helper()
	v, ok := r.finder.View(peer)
	if !ok {
		t.Fatal("the peer is not known")
	}
	return v
}

const (
	at4 = "192.0.2.1:1"
	at6 = "[2001:db8::1]:1"
)

// The size found fits to the byte: WireGuard takes 32 bytes, UDP 8, IP 20 or 40, and a relay 8.
func TestLargestPacketIsFound(t *testing.T) {
	for name, c := range map[string]struct {
		device, mtu int
		at          string
		want        int
		split       bool
	}{
		"Ethernet":                        {1420, 1500, at4, 1420, false},
		"Ethernet, IPv6":                  {1420, 1500, at6, 1420, false},
		"Ethernet, relay":                 {1420, 1500, "", 1420, false},
		"PPPoE":                           {1420, 1492, at4, 1420, false},
		"PPPoE, IPv6":                     {1420, 1492, at6, 1412, false},
		"DS-Lite":                         {1420, 1460, at4, 1400, false},
		"a tunnel":                        {1420, 1400, at4, 1340, false},
		"a tunnel, IPv6":                  {1420, 1400, at6, 1320, false},
		"a tunnel, relay":                 {1420, 1400, "", 1332, false},
		"just enough":                     {1420, 1340, at4, 1280, false},
		"a byte too few":                  {1420, 1339, at4, 1280, true},
		"the least of IPv6":               {1420, 1280, at6, 1280, true},
		"jumbo, and a device that is not": {1420, 9000, at4, 1420, false},
		"jumbo":                           {8920, 9000, at6, 8920, false},
		"a jumbo device":                  {8920, 1500, at6, 1420, false},
		"jumbo of a cloud":                {8920, 8500, at4, 8440, false},
		"a device beyond all":             {65535, 65535, at4, pathmsg.MaxPing - 32, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoad(c.device, c.mtu, c.at)
			r.step(path.Wanted{ID: peer})
			r.live(2 * time.Second)
			if v := r.view(t); v.MTU != c.want || v.Fragments != c.split {
				t.Errorf("%d, in fragments: %t, after pings of %d sizes; want %d, %t", v.MTU, v.Fragments, r.sized, c.want, c.split)
			}
			if r.fit.MTU != c.want || r.fit.Fragments != c.split {
				t.Errorf("packets get %+v", r.fit)
			}
		})
	}
}

// If everything that the device can send gets through, finding that out takes one ping, and packets never get a lower limit.
func TestUsualWayCostsOnePing(t *testing.T) {
	r := newRoad(1420, 1500, at4)
	r.step(path.Wanted{ID: peer})
	r.live(60 * time.Millisecond)
	if r.sized != 1 || !slices.Equal(r.limits, []int{1420}) {
		t.Errorf("%d pings of sizes, limits %d", r.sized, r.limits)
	}
	r.live(time.Hour)
	if want := 3600 / 10; r.sized > want || !slices.Equal(r.limits, []int{1420}) {
		t.Errorf("%d pings of sizes in an hour, want %d at most; limits %d", r.sized, want, r.limits)
	}
}

// A black hole is found in less than a second if packets are missed, and in seconds if none seem to be. Through a relay it
// takes no longer. Its end is noticed within ten minutes.
func TestHoleAppears(t *testing.T) {
	for name, c := range map[string]struct {
		at     string
		deaf   bool
		within time.Duration
		want   int
	}{
		"missed":            {at4, true, time.Second, 1340},
		"not missed":        {at4, false, 11 * time.Second, 1340},
		"missed, IPv6":      {at6, true, time.Second, 1320},
		"missed by a relay": {"", true, 2 * time.Second, 1332},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoad(1420, 1500, c.at)
			r.step(path.Wanted{ID: peer})
			r.live(5 * time.Second)
			r.mtu, r.deaf = 1400, c.deaf
			r.live(c.within)
			if v := r.view(t); v.MTU > c.want || v.MTU < c.want-24 {
				t.Errorf("%d after %s, want about %d", v.MTU, c.within, c.want)
			}
			r.deaf = false
			r.live(time.Second)
			if v := r.view(t); v.MTU != c.want || r.fit.MTU != c.want || v.Way != r.way || v.Doubt {
				t.Errorf("in the end %+v, packets get %+v; want %d", v, r.fit, c.want)
			}
			r.mtu = 1480
			r.live(10*time.Minute + 2*time.Second)
			if want := min(1420, c.want+80); r.view(t).MTU != want || r.fit.MTU != want {
				t.Errorf("%d, packets get %+v, ten minutes after it has gone; want %d", r.view(t).MTU, r.fit, want)
			}
		})
	}
}

// A path that loses everything, or one packet in ten, has no black hole.
func TestLossIsNoHole(t *testing.T) {
	for _, to := range []string{at4, ""} {
		r := newRoad(1420, 1500, to)
		r.step(path.Wanted{ID: peer})
		r.live(5 * time.Second)
		r.cut = true
		r.live(20 * time.Second)
		r.cut = false
		r.live(10 * time.Second)
		if len(slices.DeleteFunc(r.limits, func(n int) bool { return n == 0 || n == 1420 })) > 0 || r.view(t).MTU != 1420 {
			t.Errorf("%q: limits %d, in the end %d", to, r.limits, r.view(t).MTU)
		}
	}
}

// Whatever a path carries and loses: the size found always gets through, and once the loss ends it is exact.
func TestSearchIsRight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		device := rapid.IntRange(1280, 9000).Draw(t, "device")
		mtu := rapid.IntRange(1200, 9100).Draw(t, "mtu")
		to := rapid.SampledFrom([]string{at4, at6, ""}).Draw(t, "to")
		r := newRoad(device, mtu, to)
		r.lost = rapid.Float64Range(0, 0.4).Draw(t, "lost")
		r.rtt = time.Duration(rapid.IntRange(1, 300).Draw(t, "rtt")) * time.Millisecond
		fits := max(1280, min(device, pathmsg.MaxPing-32, mtu-r.headers()-32))
		r.step(path.Wanted{ID: peer})
		for range 20 {
			r.live(500 * time.Millisecond)
			if v := r.view(t); v.MTU > fits {
				t.Fatalf("%d, but %d fits", v.MTU, fits)
			}
		}
		r.lost = 0
		r.live(21 * time.Minute)
		v := r.view(t)
		if v.MTU != fits || v.Fragments != (mtu-r.headers()-32 < 1280) || r.fit.MTU != fits {
			t.Fatalf("%d, in fragments: %t, packets get %+v; want %d", v.MTU, v.Fragments, r.fit, fits)
		}
	})
}

// After a move sizes are found again, and until then packets keep their limit.
func TestSizesElsewhere(t *testing.T) {
	r := newRoad(1420, 1400, at4)
	r.step(path.Wanted{ID: peer})
	r.live(2 * time.Second)
	r.mtu = 1500
	r.step(path.Moved{Local: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}})
	r.live(time.Second)
	if r.view(t).MTU != 1420 || !slices.Equal(r.limits[len(r.limits)-2:], []int{1340, 1420}) {
		t.Errorf("%d, limits %d", r.view(t).MTU, r.limits)
	}
	r.step(path.Sized{MTU: 1300})
	r.live(time.Second)
	if r.view(t).MTU != 1300 {
		t.Errorf("%d with a device of 1300", r.view(t).MTU)
	}
}

// Sizes are not probed for a peer that nothing is sent to.
func TestSizesOfIdlePeers(t *testing.T) {
	r := newRoad(1420, 1400, at4)
	r.step(path.Wanted{ID: peer})
	r.live(2 * time.Second)
	r.quiet = true
	r.live(10 * time.Second)
	before := r.sized
	if next := r.finder.Next(); !next.IsZero() {
		t.Errorf("at rest, and something is due at %s", next)
	}
	r.live(time.Hour)
	if r.sized != before || r.view(t).MTU != 1340 {
		t.Errorf("%d pings, then %d; MTU %d", before, r.sized, r.view(t).MTU)
	}
}

// The same for a path from a dedicated socket.
func TestSizesElsewhereByAPunch(t *testing.T) {
	p := newPuncher(pathmsg.NATHard, pathmsg.NATEasy)
	p.step(path.Sized{MTU: 1420})
	p.live(time.Second, 1)
	p.answers(1)
	p.live(100*time.Millisecond, 1)
	p.hit(1)
	carries := func(mtu int) {
		for range 100 {
			asked := p.sent
			p.sent = nil
			for _, s := range asked {
				if m, ok := s.Message.(pathmsg.Ping); ok && s.To.Socket == 1 && m.Size <= mtu {
					p.got(1, pathmsg.Pong{TxID: m.TxID})
				}
			}
			p.live(10*time.Millisecond, 1)
		}
	}
	carries(1400)
	if v, _ := p.finder.View(1); v.Way.Socket != 1 || v.MTU != 1400-32 {
		t.Fatalf("%+v", v)
	}
	p.step(path.Moved{Local: local})
	carries(1500)
	if v, _ := p.finder.View(1); v.Way.Socket != 1 || v.MTU != 1420 {
		t.Errorf("%+v, want an MTU of 1420", v)
	}
}
