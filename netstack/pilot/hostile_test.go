package pilot_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

// liar records what is sent on the Internet, and replays it.
type liar struct {
	w     *world
	rnd   *rand.Rand // chooses what is replayed
	mu    sync.Mutex
	seen  []sim.Seen
	turn  int
	count int
	// between holds two addresses; datagrams from one to the other are counted.
	between []netip.Addr
}

// maxSeen is how many datagrams a liar keeps: the most recent ones.
const maxSeen = 1024

func (l *liar) sees(s sim.Seen) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.Public() {
		return
	}
	if slices.Contains(l.between, s.From.Addr()) && slices.Contains(l.between, s.To.Addr()) {
		l.count++
	}
	if relayed(s.Data) || s.Data[0] == pathmsg.FirstByte {
		if len(l.seen) < maxSeen {
			l.seen = append(l.seen, s)
		} else {
			l.seen[l.turn%maxSeen] = s
			l.turn++
		}
	}
}

// counted returns how many datagrams there were since its last call.
func (l *liar) counted() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, l.count = l.count, 0
	return n
}

// relayed reports whether a datagram carries a packet to or from a relay.
func relayed(b []byte) bool {
	if len(b) < relaymsg.HeaderSize || !relaymsg.Is(b) {
		return false
	}
	k := relaymsg.ParseHeader(b).Kind
	return k == relaymsg.Data || k == relaymsg.DataFor
}

// again replays thirty recorded datagrams: unchanged; with one bit flipped; with another peer's number, if they go through a
// relay; and with other addresses, which also evades the cut link.
func (l *liar) again() {
	l.mu.Lock()
	seen := slices.Clone(l.seen)
	l.mu.Unlock()
	for range min(30, len(seen)) {
		s := seen[l.rnd.IntN(len(seen))]
		s.Data = slices.Clone(s.Data)
		switch by := seen[l.rnd.IntN(len(seen))]; l.rnd.IntN(4) {
		case 0:
			if relayed(s.Data) {
				h := relaymsg.ParseHeader(s.Data)
				h.Number = uint32(l.rnd.IntN(4))
				h.Put(s.Data)
			}
		case 1:
			s.Data[l.rnd.IntN(len(s.Data))] ^= 1 << l.rnd.IntN(8)
		case 2:
			by.From, by.To, by.Data = s.From, s.To, s.Data
			s = by
		}
		l.w.net.Inject(s)
	}
}

// A node behind a hard NAT and one behind an easy one try to reach each other in vain: no datagram gets from one to the other.
// Replaying their messages, changed or not and from any address, must not make them send more to each other, open more sockets,
// or send anything once they are idle.
func TestWhatIsSaidAgain(t *testing.T) {
	quiet, rest := punching(t, false)
	loud, restless := punching(t, true)
	// What was cut off may get through late, and is answered once.
	if late := 100; quiet < path.MaxSockets || loud > quiet+quiet/4+late || restless > rest+late {
		t.Errorf("sent in vain: %d datagrams, %d while somebody lies; at rest: %d, %d", quiet, loud, rest, restless)
	}
}

// punching returns how many datagrams the two send each other, while they talk and afterwards.
func punching(t *testing.T, lies bool) (talking, resting int) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2)
		defer w.close()
		hard, easy := w.addNode(w.attach("hard", symmetric, 1, false), 1), w.addNode(w.attach("easy", portRestricted, 2, false), 2)
		third := w.addNode(w.attach("third", open, 3, false), 3)
		w.meet()
		w.net.Cut(hard.Host, easy.Host)
		outside := []netip.Addr{addr("198.51.100.1"), addr("198.51.100.2")}
		l := &liar{w: w, rnd: rand.New(rand.NewPCG(1, 2)), between: outside}
		w.net.Tap(l.sees)
		live := func(during time.Duration, talk bool) int {
			for begun := time.Now(); time.Since(begun) < during; time.Sleep(200 * time.Millisecond) {
				if talk {
					for _, n := range []*node{hard, third} {
						if err := n.Ping(easy.Addrs.V4); err != nil {
							t.Errorf("lies: %t, node %d after %s: %v, %+v", lies, n.ID, time.Since(begun), err, n.view(easy))
						}
					}
				}
				if lies {
					l.again()
				}
				if n := hard.Bind.Extras() + easy.Bind.Extras(); n > path.MaxSockets {
					t.Errorf("%d sockets", n)
				}
			}
			return l.counted()
		}
		talking = live(time.Minute, true)
		talking += live(30*time.Second, false)
		resting = live(time.Minute, false)
		if n := hard.Bind.Extras() + easy.Bind.Extras(); n > 0 {
			t.Errorf("%d sockets are left", n)
		}
		w.net.Tap(nil)
	})
	return talking, resting
}
