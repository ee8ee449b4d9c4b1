package wg_test

import (
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// rotate gives nodes new keys at the same moment. Each key is known to the other node beforehand, as the coordinator ensures.
func rotate(t *testing.T, nodes [][2]*counted, keys map[*counted][]key.NodePublic) {
	t.Helper()
	next := make([]key.NodePrivate, len(nodes))
	for i, x := range nodes {
		k, err := key.NewNode(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		next[i] = k
		me, other := x[0], x[1]
		if len(keys[me]) == 3 { // the oldest has long been unused
			if err := other.Engine.RemoveRemoteKey(me.ID, keys[me][0]); err != nil {
				t.Fatal(err)
			}
			keys[me] = keys[me][1:]
		}
		keys[me] = append(keys[me], k.Public())
		if err := other.Engine.AddRemoteKey(me.ID, k.Public()); err != nil {
			t.Fatal(err)
		}
	}
	for i, x := range nodes {
		if err := x[0].Engine.RotateLocalKey(next[i]); err != nil {
			t.Fatal(err)
		}
	}
}

// newest checks that the first node uses the newest key of the second.
func newest(t *testing.T, x [2]*counted, keys map[*counted][]key.NodePublic) {
	t.Helper()
	stats, err := x[0].Engine.Peers()
	if err != nil {
		t.Fatal(err)
	}
	if list := keys[x[1]]; stats[0].Key != list[len(list)-1] {
		t.Errorf("node %d uses key %d of its peer, of %d", x[0].ID, slices.Index(list, stats[0].Key)+1, len(list))
	}
}

func TestRotationLosesNothing(t *testing.T) {
	type row struct {
		name  string
		nodes func(a, b *counted) [][2]*counted
	}
	one := func(a, b *counted) [][2]*counted { return [][2]*counted{{a, b}} }
	other := func(a, b *counted) [][2]*counted { return [][2]*counted{{b, a}} }
	both := func(a, b *counted) [][2]*counted { return [][2]*counted{{a, b}, {b, a}} }
	for _, rtt := range []time.Duration{100 * time.Microsecond, 10 * time.Millisecond, 100 * time.Millisecond} {
		for _, jitter := range []time.Duration{0, 5 * time.Millisecond} {
			for _, r := range []row{{"the lower node", one}, {"the higher node", other}, {"both", both}} {
				t.Run(fmt.Sprintf("%s, RTT %s, jitter %s", r.name, rtt, jitter), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						fate := prompt
						if jitter > 0 {
							fate = jittery(jitter)
						}
						a, b, end := pairOf(t, inline, super, rtt/2, fate)
						defer end()
						keys := map[*counted][]key.NodePublic{a: {a.Key.Public()}, b: {b.Key.Public()}}
						for n := range 6 {
							if n > 0 {
								rotate(t, r.nodes(a, b), keys)
							}
							// Ten seconds, with the most packets around the key change.
							for i := range 200 + 160 {
								a.send(t, b, 600)
								b.send(t, a, 600)
								if i < 200 {
									time.Sleep(10 * time.Millisecond)
								} else {
									time.Sleep(50 * time.Millisecond)
								}
							}
							newest(t, [2]*counted{a, b}, keys)
							newest(t, [2]*counted{b, a}, keys)
						}
						time.Sleep(time.Second)
						for _, x := range [][2]*counted{{a, b}, {b, a}} {
							if missing, doubled := x[1].lost(x[0]); missing+doubled > 0 {
								t.Errorf("of %d packets %d were lost and %d doubled", x[0].sent, missing, doubled)
							}
						}
					})
				})
			}
		}
	}
}

func TestThousandRotations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b, end := pairOf(t, super, super, 20*time.Millisecond, jittery(5*time.Millisecond))
		defer end()
		keys := map[*counted][]key.NodePublic{a: {a.Key.Public()}, b: {b.Key.Public()}}
		for n := range 1000 {
			who := [][2]*counted{{a, b}, {b, a}}
			if n%3 < 2 {
				who = who[n%3 : n%3+1]
			}
			rotate(t, who, keys)
			for range 10 + n%7 {
				a.send(t, b, 600)
				b.send(t, a, 600)
				time.Sleep(time.Second)
			}
		}
		newest(t, [2]*counted{a, b}, keys)
		newest(t, [2]*counted{b, a}, keys)
		for _, x := range [][2]*counted{{a, b}, {b, a}} {
			if missing, doubled := x[1].lost(x[0]); missing+doubled > 0 {
				t.Errorf("of %d packets %d were lost and %d doubled", x[0].sent, missing, doubled)
			}
		}
	})
}

// TestPeerThatIsLate changes the key of a node whose peer keeps initiating to the old one: it knows the new one, but has not
// learned that it is in use. Nothing is lost while the old key expires, whatever the age of the session then.
func TestPeerThatIsLate(t *testing.T) {
	for _, higher := range []bool{false, true} {
		for age := 0; age < 130; age += 13 {
			t.Run(fmt.Sprintf("after %d s, the higher node changes: %t", age, higher), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) { changeUnheard(t, age, higher) })
			})
		}
	}
}

// changeUnheard changes the key of one node after age seconds of traffic, without telling the other.
func changeUnheard(t *testing.T, age int, higher bool) {
	a, b, end := pairOf(t, inline, inline, 20*time.Millisecond, jittery(5*time.Millisecond))
	defer end()
	if higher {
		a, b = b, a
	}
	talk := func(seconds int) {
		for range 5 * seconds {
			a.send(t, b, 100)
			b.send(t, a, 100)
			time.Sleep(200 * time.Millisecond)
		}
	}
	talk(age)
	next, err := key.NewNode(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []key.NodePublic{next.Public(), a.Key.Public()} {
		if err := b.Engine.AddRemoteKey(a.ID, k); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Engine.RotateLocalKey(next); err != nil {
		t.Fatal(err)
	}
	talk(400)
	time.Sleep(time.Second)
	for _, x := range [][2]*counted{{a, b}, {b, a}} {
		if missing, doubled := x[1].lost(x[0]); missing+doubled > 0 {
			t.Errorf("of %d packets of node %d %d were lost and %d doubled", x[0].sent, x[0].ID, missing, doubled)
		}
	}
}

// TestOldKeyEnds checks that a replaced key stays valid for 180 s and no longer.
func TestOldKeyEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, end := pairOf(t, inline, inline, time.Millisecond, prompt)
		defer end()
		next, err := key.NewNode(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		// The peer is not told: it knows only the old key.
		if err := a.Engine.RotateLocalKey(next); err != nil {
			t.Fatal(err)
		}
		for range 179 {
			a.send(t, b, 100)
			b.send(t, a, 100)
			time.Sleep(time.Second)
		}
		if missing, _ := b.lost(a); missing > 0 {
			t.Errorf("%d packets were lost while the old key was good", missing)
		}
		time.Sleep(2 * time.Second)
		sent, before := b.sent, a.count()
		for range 60 {
			b.send(t, a, 100)
			time.Sleep(time.Second)
		}
		if n := a.count() - before; n > 0 {
			t.Errorf("%d of %d packets came by a key that is gone", n, b.sent-sent)
		}
		if err := b.Engine.AddRemoteKey(a.ID, next.Public()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		before = a.count()
		b.send(t, a, 100)
		time.Sleep(10 * time.Second)
		if a.count() == before {
			t.Error("with the new key nothing comes")
		}
	})
}
