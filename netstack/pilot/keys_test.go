package pilot_test

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/netstack/pilot"
	"github.com/redoubt-mesh/redoubt/netstack/sim"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

func newPathKey(t *testing.T) key.PathPrivate {
	t.Helper()
	k, err := key.NewPath(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A message is accepted once, even if its sender was removed meanwhile, or the Pilot is another one.
func TestOldMessagesOfAPeerThatIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bind.New(bind.Config{Inner: sim.New(1).Host("a", addr("192.0.2.1")).Bind()})
		own, theirs := newPathKey(t), newPathKey(t)
		cfg := pilot.Config{Self: 1, Boxes: pathmsg.NewBoxes(own), Bind: b}
		box, err := pathmsg.NewBox(theirs, own.Public(), pathmsg.Ends{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		from := b.RelayEndpoint(bind.Via{Relay: 200, Peer: 2})
		offer := box.Seal(nil, pathmsg.Offer{Candidates: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.2:7")}})
		p := pilot.New(cfg)
		hears := func(msg []byte, want path.Cause) {
			t.Helper()
			p.SetPeer(2, theirs.Public(), proto.Reach{})
			p.Path(from, msg)
			synctest.Wait()
			if v, _ := p.View(2); v.Cause != want {
				t.Errorf("%+v, want %s", v, want)
			}
		}
		hears(offer, path.Looking)
		p.RemovePeer(2)
		hears(offer, path.Unsent)
		p.Close()
		p = pilot.New(cfg)
		defer p.Close()
		hears(offer, path.Unsent)
		hears(box.Seal(nil, pathmsg.Offer{}), path.NoAddress)
	})
}

// A liar that announces another node's path key as its own, before or after that node does, harms nobody but itself: the others
// find direct paths at once, and none to the liar, wherever it claims to be.
func TestPathKeyOfAnother(t *testing.T) {
	for _, relays := range []int{0, 2} {
		for _, k := range []kind{open, portRestricted} {
			if relays == 0 && k.cfg != nil {
				continue
			}
			for _, last := range []bool{false, true} {
				for _, asked := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %d relays, liar last=%t, victim asked=%t", k.name, relays, last, asked), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { lieAboutKey(t, relays, k, last, asked) })
					})
				}
			}
		}
	}
}

func lieAboutKey(t *testing.T, relays int, k kind, last, asked bool) {
	w := newWorld(t, relays)
	defer w.close()
	numbers := []byte{1, 2, 3} // liar, victim, another
	if last {
		numbers[0] = 4
	}
	nodes := map[byte]*node{}
	for _, n := range slices.Sorted(slices.Values(numbers)) {
		nodes[n] = w.addNode(w.attach(fmt.Sprint("host", n), k, int(n), false), n)
	}
	liar, victim, other := nodes[numbers[0]], nodes[2], nodes[3]
	own := liar.key
	liar.key = victim.key
	liar.claims = victim.Host.Addrs()
	w.meet()
	direct := func(a, b *node) {
		t.Helper()
		w.must(a.Ping(b.Addrs.V4))
		if gap, lost := a.talk(b, 1200*time.Millisecond); lost > 0 || gap > 300*time.Millisecond {
			t.Errorf("from node %d: %d packets lost, %s without one", a.ID, lost, gap)
		}
		for _, n := range [][2]*node{{a, b}, {b, a}} {
			if v := n[0].view(n[1]); !v.Way.Direct() || v.Doubt {
				t.Errorf("from node %d to %d: %+v", n[0].ID, n[1].ID, v)
			}
		}
	}
	if asked {
		direct(other, victim)
	} else {
		direct(victim, other)
	}
	other.pilot.Wanted(liar.ID, other.course(liar))
	victim.pilot.Wanted(liar.ID, victim.course(liar))
	time.Sleep(2 * time.Second)
	for _, n := range []*node{other, victim} {
		if v := n.view(liar); v.Way.Direct() {
			t.Errorf("node %d believes the liar: %+v", n.ID, v)
		}
	}
	liar.key, liar.claims = own, nil // it tells the truth
	w.know()
	time.Sleep(time.Minute)
	direct(victim, other)
	direct(other, liar)
	direct(victim, liar)
}

// course returns the course to another node.
func (n *node) course(o *node) *bind.Course { return n.pilot.SetPeer(o.ID, o.key.Public(), o.reach()) }

// Of a key that two nodes announced, messages count only as those of the node that they are bound to, whoever delivers them.
func TestPathKeyAnnouncedTwice(t *testing.T) {
	const victim, liar = 2, 3
	for name, order := range map[string][]proto.NodeID{"victim first": {victim, liar}, "liar first": {liar, victim}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bind.New(bind.Config{Inner: sim.New(1).Host("a", addr("192.0.2.1")).Bind()})
				own, theirs := newPathKey(t), newPathKey(t)
				p := pilot.New(pilot.Config{Self: 1, Boxes: pathmsg.NewBoxes(own), Bind: b})
				defer p.Close()
				for _, id := range order {
					p.SetPeer(id, theirs.Public(), proto.Reach{})
				}
				count := time.Duration(0)
				seal := func(ends pathmsg.Ends, m pathmsg.Message) []byte {
					count++
					box, err := pathmsg.NewBox(theirs, own.Public(), ends, count)
					if err != nil {
						t.Fatal(err)
					}
					return box.Seal(nil, m)
				}
				says := func(by proto.NodeID, msg []byte, want ...proto.NodeID) {
					t.Helper()
					p.Path(b.RelayEndpoint(bind.Via{Relay: 200, Peer: by}), msg)
					synctest.Wait()
					for _, id := range order {
						if v, _ := p.View(id); (v.Cause != path.Unsent) != slices.Contains(want, id) {
							t.Errorf("node %d: %+v", id, v)
						}
					}
				}
				offer := pathmsg.Offer{Candidates: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.2:7")}}
				says(liar, seal(pathmsg.Ends{}, offer))
				says(victim, seal(pathmsg.Ends{}, offer))
				says(liar, seal(pathmsg.Ends{Own: victim, Peer: 1}, offer))
				says(victim, seal(pathmsg.Ends{Own: victim, Peer: 1}, offer), victim)
			})
		})
	}
}
