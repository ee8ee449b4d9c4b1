package pathmsg_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

var compare = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}

func newKey(t testing.TB) key.PathPrivate {
	t.Helper()
	k, err := key.NewPath(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newBox(t testing.TB, own, peer key.PathPrivate) *pathmsg.Box {
	t.Helper()
	b, err := pathmsg.NewBox(own, peer.Public(), pathmsg.Ends{}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func boxes(t testing.TB) (a, b *pathmsg.Box) {
	t.Helper()
	x, y := newKey(t), newKey(t)
	return newBox(t, x, y), newBox(t, y, x)
}

func messages() []pathmsg.Message {
	many := pathmsg.Offer{NAT: pathmsg.NATHard}
	for i := range byte(pathmsg.MaxCandidates) {
		many.Candidates = append(many.Candidates, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 1))
	}
	for i := range pathmsg.MaxRelays {
		many.Relays = append(many.Relays, pathmsg.RelayRTT{Relay: proto.NodeID(i), RTT: time.Duration(i) * time.Millisecond})
	}
	return []pathmsg.Message{
		pathmsg.Ping{TxID: pathmsg.TxID{1, 2}, Node: 7, Size: 70},
		pathmsg.Ping{TxID: pathmsg.TxID{1, 2}, Node: 7, Size: 1420},
		pathmsg.Pong{TxID: pathmsg.TxID{3}, Observed: netip.MustParseAddrPort("192.0.2.1:41641")},
		pathmsg.Pong{TxID: pathmsg.TxID{3}, Observed: netip.MustParseAddrPort("[2001:db8::1]:1")},
		pathmsg.Pong{TxID: pathmsg.TxID{3}},
		pathmsg.Offer{},
		many,
		pathmsg.Punch{Toward: netip.MustParseAddrPort("198.51.100.1:41641")},
	}
}

func TestSealAndOpen(t *testing.T) {
	a, b := boxes(t)
	for _, want := range messages() {
		msg := a.Seal([]byte("before"), want)[len("before"):]
		if msg[0] != pathmsg.FirstByte {
			t.Errorf("%+v begins with %x", want, msg[0])
		}
		got, err := b.Open(msg)
		if err != nil || cmp.Diff(want, got, compare) != "" {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
		if p, ok := want.(pathmsg.Ping); ok && len(msg) != p.Size {
			t.Errorf("a Ping of %d bytes, want %d", len(msg), p.Size)
		}
		if _, err := b.Open(msg); !errors.Is(err, pathmsg.ErrReplay) {
			t.Errorf("the second time: %v", err)
		}
		if _, err := a.Open(msg); !errors.Is(err, pathmsg.ErrForged) {
			t.Errorf("sent back: %v", err)
		}
	}
}

// A bound box opens only what its peer sealed for its own node, although others may have announced the same keys.
func TestBoundBox(t *testing.T) {
	const one, two, liar = 1, 2, 3
	x, y := newKey(t), newKey(t)
	box := func(own, peer key.PathPrivate, ends pathmsg.Ends) *pathmsg.Box {
		b, err := pathmsg.NewBox(own, peer.Public(), ends, 0)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a := box(x, y, pathmsg.Ends{Own: one, Peer: two})
	for name, b := range map[string]*pathmsg.Box{
		"from the liar":      box(y, x, pathmsg.Ends{Own: two, Peer: liar}),
		"for the liar":       box(y, x, pathmsg.Ends{Own: liar, Peer: one}),
		"the wrong way":      box(y, x, pathmsg.Ends{Own: one, Peer: two}),
		"not bound":          box(y, x, pathmsg.Ends{}),
		"between equal keys": box(x, x, pathmsg.Ends{Own: two, Peer: one}),
	} {
		if _, err := b.Open(a.Seal(nil, pathmsg.Offer{})); !errors.Is(err, pathmsg.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := box(y, x, pathmsg.Ends{Own: two, Peer: one})
	for _, want := range messages() {
		msg := a.Seal(nil, want)
		if got, err := b.Open(msg); err != nil || cmp.Diff(want, got, compare) != "" || !pathmsg.Bound(msg) {
			t.Errorf("%+v became %+v, %v", want, got, err)
		}
	}
	same := box(x, x, pathmsg.Ends{Own: one, Peer: liar})
	if _, err := same.Open(same.Seal(nil, pathmsg.Offer{})); !errors.Is(err, pathmsg.ErrForged) {
		t.Errorf("its own message, sent back by a liar that announced its key: %v", err)
	}
}

func TestPongIsNotLongerThanPing(t *testing.T) {
	a, _ := boxes(t)
	ping, pong := a.Seal(nil, pathmsg.Ping{}), a.Seal(nil, pathmsg.Pong{})
	if len(pong) > len(ping) {
		t.Errorf("a Pong of %d bytes for a Ping of %d", len(pong), len(ping))
	}
	if huge := a.Seal(nil, pathmsg.Ping{Size: 1 << 20}); len(huge) != pathmsg.MaxPing {
		t.Errorf("a Ping of %d bytes", len(huge))
	}
}

// A message with any single bit changed is refused, and does not make the original count as a replay.
func TestForged(t *testing.T) {
	a, b := boxes(t)
	msg := a.Seal(nil, pathmsg.Ping{Node: 1})
	for i := range len(msg) * 8 {
		bad := bytes.Clone(msg)
		bad[i/8] ^= 1 << (i % 8)
		if m, err := b.Open(bad); err == nil {
			t.Fatalf("bit %d: %+v", i, m)
		}
	}
	for n := range msg {
		if m, err := b.Open(msg[:n]); err == nil {
			t.Fatalf("%d bytes: %+v", n, m)
		}
	}
	if _, err := b.Open(msg); err != nil {
		t.Error(err)
	}
}

func TestSender(t *testing.T) {
	k := newKey(t)
	msg := newBox(t, k, newKey(t)).Seal(nil, pathmsg.Pong{})
	if id, err := pathmsg.Sender(msg); err != nil || id != pathmsg.IDOf(k.Public()) {
		t.Errorf("sender %x, %v", id, err)
	}
	if _, err := pathmsg.Sender([]byte("\xd0rp1")); !errors.Is(err, pathmsg.ErrForeign) {
		t.Errorf("too short: %v", err)
	}
}

// Counters of a later box of the same pair are greater than those of the earlier one.
func TestBoxIsForgotten(t *testing.T) {
	x, y := newKey(t), newKey(t)
	b := newBox(t, y, x)
	for i := range 3 {
		a, err := pathmsg.NewBox(x, y.Public(), pathmsg.Ends{}, time.Duration(i)*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Open(a.Seal(nil, pathmsg.Pong{})); err != nil {
			t.Errorf("box %d: %v", i, err)
		}
	}
}

// In whatever order messages arrive, each is accepted at most once, and those that are new, or were overtaken by fewer than the
// window has room for, are accepted.
func TestEachMessageOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, _ := key.NewPath(rand.Reader)
		y, _ := key.NewPath(rand.Reader)
		a, _ := pathmsg.NewBox(x, y.Public(), pathmsg.Ends{}, 0)
		b, _ := pathmsg.NewBox(y, x.Public(), pathmsg.Ends{}, 0)
		msgs := make([][]byte, 600)
		for i := range msgs {
			msgs[i] = a.Seal(nil, pathmsg.Pong{})
		}
		taken, top := map[int]bool{}, -1
		for range rapid.IntRange(1, 60).Draw(t, "messages") {
			i := rapid.IntRange(0, len(msgs)-1).Draw(t, "message")
			_, err := b.Open(msgs[i])
			want := !taken[i] && top-i < 256
			if (err == nil) != want {
				t.Fatalf("message %d after %d: %v, want taken: %t", i, top, err, want)
			}
			taken[i] = taken[i] || err == nil
			top = max(top, i)
		}
	})
}

func TestKeySignature(t *testing.T) {
	device, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := key.NewDevice(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := newKey(t).Public()
	k, err := pathmsg.SignKey(device, 7, 3, public)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pathmsg.VerifyKey(device.Device(), 7, k); err != nil || got != public {
		t.Errorf("got %v, %v", got, err)
	}
	again := *k
	again.Boot++
	foreign := *k
	foreign.Public = newKey(t).Public().Array()
	for name, err := range map[string]error{
		"another device":   second(pathmsg.VerifyKey(other.Device(), 7, k)),
		"another node":     second(pathmsg.VerifyKey(device.Device(), 8, k)),
		"another boot":     second(pathmsg.VerifyKey(device.Device(), 7, &again)),
		"another key":      second(pathmsg.VerifyKey(device.Device(), 7, &foreign)),
		"no key":           second(pathmsg.VerifyKey(device.Device(), 7, nil)),
		"no certificate's": second(pathmsg.VerifyKey(key.DevicePublic{}, 7, k)),
	} {
		if !errors.Is(err, pathmsg.ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// A peer that holds the keys may write anything: what can be parsed can be written again, and is bounded.
func FuzzOpen(f *testing.F) {
	a, b := boxes(f)
	stranger, _ := boxes(f)
	f.Add([]byte("\xd0rp1"), false)
	for _, m := range messages() {
		f.Add(stranger.Seal(nil, m), false)
	}
	for kind, body := range map[byte][]byte{1: make([]byte, 30), 2: make([]byte, 30), 3: {4, 1, 0}, 4: make([]byte, 18), 9: nil} {
		f.Add(append([]byte{kind}, body...), true)
	}
	f.Fuzz(func(t *testing.T, msg []byte, sealed bool) {
		if !sealed {
			if _, err := pathmsg.Sender(msg); err != nil && !errors.Is(err, pathmsg.ErrForeign) {
				t.Fatal(err)
			}
			if m, err := b.Open(msg); err == nil {
				t.Fatalf("forged %+v", m)
			}
			return
		}
		if len(msg) == 0 {
			return
		}
		m, err := pathmsg.Parse(msg[0], msg[1:])
		if err != nil {
			if !errors.Is(err, pathmsg.ErrMalformed) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		again, err := b.Open(a.Seal(nil, m))
		if err != nil || cmp.Diff(m, again, compare) != "" {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
		if len(fmt.Sprint(m)) > 4096 {
			t.Fatalf("%+v is too much", m)
		}
	})
}
