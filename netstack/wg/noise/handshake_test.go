package noise

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tai64n"
)

var (
	start  = time.Unix(1_700_000_000, 123_456_789)
	psk    = [keySize]byte{1, 2, 3}
	random = rand.NewChaCha8([32]byte{7})
)

// exchange does a whole handshake whose messages the caller may corrupt; it stops at the first error.
func exchange(a, b *Pair, pskA, pskB [keySize]byte, spoilFirst, spoilSecond func([]byte)) (ka, kb Keys, err error) {
	var first [InitiationSize]byte
	i, err := a.Initiate(&first, scalar(3), 77, Stamp(start))
	if err != nil {
		return ka, kb, err
	}
	spoilFirst(first[:])
	in, err := b.Local.Open(first[:])
	if err != nil {
		return ka, kb, err
	}
	if in.Remote != a.Local.Public() {
		return ka, kb, errors.New("another sender")
	}
	if _, err = b.Verify(in); err != nil {
		return ka, kb, err
	}
	var second [ResponseSize]byte
	if kb, err = b.Respond(&second, in, scalar(4), 88, &pskB); err != nil {
		return ka, kb, err
	}
	spoilSecond(second[:])
	ka, index, err := i.Consume(second[:], &pskA)
	if err == nil && index != 88 {
		err = errors.New("another index")
	}
	return ka, kb, err
}

func nothing([]byte) {}

func TestHandshake(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	ka, kb, err := exchange(a, b, psk, psk, nothing, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if ka.Send != kb.Receive || ka.Receive != kb.Send || ka.Send == ka.Receive || ka.Send == ([keySize]byte{}) {
		t.Error("the ends have other keys")
	}
	if _, _, err := exchange(a, b, psk, [keySize]byte{}, nothing, nothing); err == nil {
		t.Error("another pre-shared key: no error")
	}
}

func TestStamp(t *testing.T) {
	var first [InitiationSize]byte
	a, b := pairOf(t, scalar(1), scalar(2))
	if _, err := a.Initiate(&first, scalar(3), 77, Stamp(start)); err != nil {
		t.Fatal(err)
	}
	in, err := b.Local.Open(first[:])
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.Verify(in)
	if err != nil || got != Stamp(start) {
		t.Errorf("stamp %s, %v", got, err)
	}
	if later := Stamp(start.Add(20 * time.Millisecond)); !later.After(got) {
		t.Error("a later stamp is not later")
	}
	if d := start.Sub(parse(got)); d < 0 || d > 17*time.Millisecond {
		t.Errorf("the stamp is off by %s", d)
	}
}

func parse(s tai64n.Timestamp) time.Time {
	t, _ := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", s.String())
	return t
}

func TestEveryBitCounts(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	flip := func(bit int) func([]byte) {
		return func(msg []byte) { msg[bit/8] ^= 1 << (bit % 8) }
	}
	// X25519 ignores the highest bit of a key; the hash does not.
	for bit := range (InitiationSize - 2*macSize) * 8 {
		if bit/8 >= atSender && bit/8 < atEphemeral {
			continue // the index of the sender, which only mac1 protects
		}
		if _, _, err := exchange(a, b, psk, psk, flip(bit), nothing); !errors.Is(err, ErrInvalid) {
			t.Errorf("initiation, bit %d: %v", bit, err)
		}
	}
	for bit := range (ResponseSize - 2*macSize) * 8 {
		if bit/8 >= atSender && bit/8 < atReceiver {
			continue
		}
		if _, _, err := exchange(a, b, psk, psk, nothing, flip(bit)); !errors.Is(err, ErrInvalid) {
			t.Errorf("response, bit %d: %v", bit, err)
		}
	}
}

func TestForgedResponseDoesNotEndTheHandshake(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	var first [InitiationSize]byte
	i, err := a.Initiate(&first, scalar(3), 77, Stamp(start))
	if err != nil {
		t.Fatal(err)
	}
	in, err := b.Local.Open(first[:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Verify(in); err != nil {
		t.Fatal(err)
	}
	var second [ResponseSize]byte
	if _, err := b.Respond(&second, in, scalar(4), 88, &psk); err != nil {
		t.Fatal(err)
	}
	forged := second
	forged[50] ^= 1
	if _, _, err := i.Consume(forged[:], &psk); !errors.Is(err, ErrInvalid) {
		t.Errorf("a forged response: %v", err)
	}
	if _, _, err := i.Consume(second[:], &psk); err != nil {
		t.Errorf("the true one after it: %v", err)
	}
	if _, _, err := i.Consume(second[:], &psk); !errors.Is(err, ErrInvalid) {
		t.Errorf("the same once more: %v", err)
	}
}

func TestAnotherSender(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	c, _ := pairOf(t, scalar(5), scalar(2))
	var first [InitiationSize]byte
	// A knows b's public key and claims to be c: it can seal c's key, but not prove that it has the private one.
	liar := &Pair{Local: &Local{private: a.Local.private, labels: c.Local.labels}, Remote: a.Remote, shared: a.shared}
	if _, err := liar.Initiate(&first, scalar(3), 77, Stamp(start)); err != nil {
		t.Fatal(err)
	}
	in, err := b.Local.Open(first[:])
	if err != nil || in.Remote != c.Local.Public() {
		t.Fatal("the claim is not read", err)
	}
	_, atB := pairOf(t, scalar(5), scalar(2))
	if _, err := atB.Verify(in); !errors.Is(err, ErrInvalid) {
		t.Errorf("a claimed key: %v", err)
	}
}

func TestPointsOfLowOrder(t *testing.T) {
	l, err := NewLocal(scalar(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range [][keySize]byte{{}, {1}} {
		r, err := NewRemote(p)
		if err != nil {
			continue
		}
		if _, err := NewPair(l, r); err == nil {
			t.Errorf("a pair with %x: no error", p)
		}
	}
	var first [InitiationSize]byte
	first[0] = TypeInitiation
	if _, err := l.Open(first[:]); !errors.Is(err, ErrInvalid) {
		t.Errorf("an ephemeral key of zero: %v", err)
	}
}

func TestMAC1(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	var jar Jar
	first := initiation(t, a, &jar, start)
	if !b.Local.CheckMAC1(first) {
		t.Error("a good mac1 is refused")
	}
	if a.Local.CheckMAC1(first) {
		t.Error("one for another key is taken")
	}
	first[4] ^= 1
	if b.Local.CheckMAC1(first) {
		t.Error("another index is taken")
	}
	for n := range InitiationSize {
		if b.Local.CheckMAC1(first[:n]) {
			t.Errorf("%d bytes are taken", n)
		}
	}
}

func initiation(t testing.TB, p *Pair, jar *Jar, now time.Time) []byte {
	t.Helper()
	var first [InitiationSize]byte
	if _, err := p.Initiate(&first, scalar(3), 77, Stamp(now)); err != nil {
		t.Fatal(err)
	}
	jar.Sign(now, p.Remote, first[:])
	return first[:]
}

func TestCookie(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	var jar Jar
	var c cookies
	now, src := start, []byte("192.0.2.1:1")
	first := initiation(t, a, &jar, now)
	if c.check(now, first, src) {
		t.Error("a mac2 of zeros is taken")
	}
	var reply [CookieReplySize]byte
	if err := c.reply(now, &reply, b.Local, random, first, src); err != nil {
		t.Fatal(err)
	}
	var other Jar
	if err := other.Take(now, a.Remote, reply[:]); !errors.Is(err, ErrInvalid) {
		t.Errorf("a reply to nothing: %v", err)
	}
	_ = initiation(t, a, &other, now.Add(time.Second))
	if err := other.Take(now, a.Remote, reply[:]); !errors.Is(err, ErrInvalid) {
		t.Errorf("a reply to another message: %v", err)
	}
	for bit := 8 * 8; bit < CookieReplySize*8; bit++ {
		bad := reply
		bad[bit/8] ^= 1 << (bit % 8)
		if err := jar.Take(now, a.Remote, bad[:]); !errors.Is(err, ErrInvalid) {
			t.Errorf("bit %d: %v", bit, err)
		}
	}
	if err := jar.Take(now, a.Remote, reply[:]); err != nil {
		t.Fatal(err)
	}
	first = initiation(t, a, &jar, now)
	if !c.check(now, first, src) {
		t.Error("a good cookie is refused")
	}
	if c.check(now, first, []byte("192.0.2.2:1")) {
		t.Error("it is good for another address")
	}
	if !c.check(now.Add(cookieTime-1), first, src) || c.check(now.Add(cookieTime), first, src) {
		t.Error("its secret does not last 120 s")
	}
	if _, mac2 := macs(initiation(t, a, &jar, now.Add(cookieTime-1))); bytes.Equal(mac2, make([]byte, macSize)) {
		t.Error("no mac2 with a cookie of 119 s")
	}
	if _, mac2 := macs(initiation(t, a, &jar, now.Add(cookieTime))); !bytes.Equal(mac2, make([]byte, macSize)) {
		t.Error("a mac2 with a cookie of 120 s")
	}
}

func TestGate(t *testing.T) {
	a, b := pairOf(t, scalar(1), scalar(2))
	var g Gate
	var jar Jar
	var reply [CookieReplySize]byte
	ip, src := netip.MustParseAddr("192.0.2.1"), []byte("192.0.2.1:1")
	first := initiation(t, a, &jar, start)
	admit := func(now time.Time, msg []byte) Verdict {
		t.Helper()
		v, err := g.Admit(now, random, b.Local, msg, src, ip, &reply)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	bad := bytes.Clone(first)
	bad[10] ^= 1
	for range 10 * loadAt {
		if admit(start, bad) != Drop {
			t.Fatal("a bad mac1 passes")
		}
	}
	for n := range loadAt {
		if v := admit(start, first); v != Pass {
			t.Fatalf("message %d: %d", n, v)
		}
	}
	if v := admit(start, first); v != Challenge {
		t.Fatalf("under load: %d", v)
	}
	if err := jar.Take(start, a.Remote, reply[:]); err != nil {
		t.Fatal(err)
	}
	proven := initiation(t, a, &jar, start)
	for n := range int(burst / perSource) {
		if v := admit(start, proven); v != Pass {
			t.Fatalf("with a cookie, %d: %d", n, v)
		}
	}
	if v := admit(start, proven); v != Refuse {
		t.Errorf("the sixth at once from one address: %d", v)
	}
	if v := admit(start.Add(perSource), proven); v != Pass {
		t.Errorf("50 ms later: %d", v)
	}
	replies := 1
	for range 2 * maxReplies {
		if admit(start.Add(perSource), first) == Challenge {
			replies++
		}
	}
	if want := maxReplies - forKnown; replies != want {
		t.Errorf("%d cookie replies in a second, want %d", replies, want)
	}
	g.Known = func(a netip.Addr) bool { return a == ip }
	for range 2 * maxReplies {
		if admit(start.Add(perSource), first) == Challenge {
			replies++
		}
	}
	if replies != maxReplies {
		t.Errorf("%d cookie replies in a second, want %d, the last ones for a known address", replies, maxReplies)
	}
	quiet := start.Add(perSource + time.Second + loadFor)
	if v := admit(quiet, first); v != Pass {
		t.Errorf("when the load is over: %d", v)
	}
	if len(g.sources) != 0 {
		t.Errorf("%d addresses are remembered", len(g.sources))
	}
}

func TestGateForgetsNobodyForAFlood(t *testing.T) {
	var g Gate
	for n := range 2 * maxSources {
		g.allow(start, netip.AddrFrom16([16]byte{0: 0x20, 5: byte(n >> 16), 6: byte(n >> 8), 7: byte(n)}))
	}
	if len(g.sources) != maxSources {
		t.Errorf("%d addresses are remembered", len(g.sources))
	}
	one, home := netip.MustParseAddr("2001::1"), netip.MustParseAddr("2002::7")
	if g.allow(start, netip.MustParseAddr("2002::1")) {
		t.Error("an unknown address passes a full table")
	}
	g.Known = func(a netip.Addr) bool { return a == home }
	if !g.allow(start, home) || g.allow(start, netip.MustParseAddr("2003::1")) {
		t.Error("a full table keeps out a known address, or lets in an unknown one")
	}
	for range burst / perSource {
		g.allow(start, one)
	}
	if g.allow(start, netip.MustParseAddr("2001::2")) {
		t.Error("a neighbour in the same /64 counts for itself")
	}
}

func FuzzMessages(f *testing.F) {
	a, b := pairOf(f, scalar(1), scalar(2))
	var jar Jar
	first := initiation(f, a, &jar, start)
	f.Add(first)
	in, err := b.Local.Open(first)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := b.Verify(in); err != nil {
		f.Fatal(err)
	}
	var second [ResponseSize]byte
	if _, err := b.Respond(&second, in, scalar(4), 88, &psk); err != nil {
		f.Fatal(err)
	}
	f.Add(second[:])
	var reply [CookieReplySize]byte
	var c cookies
	if err := c.reply(start, &reply, b.Local, random, first, []byte("x")); err != nil {
		f.Fatal(err)
	}
	f.Add(reply[:])
	f.Add([]byte{})
	f.Add([]byte{4, 0, 0, 0})
	f.Fuzz(func(t *testing.T, msg []byte) {
		var g Gate
		var out [CookieReplySize]byte
		if _, err := g.Admit(start, random, b.Local, msg, nil, netip.Addr{}, &out); err != nil {
			t.Fatal(err)
		}
		if in, err := b.Local.Open(msg); err == nil && in.Remote == a.Local.Public() {
			if _, err := b.Verify(in); err == nil && !bytes.Equal(msg[atEphemeral:atStamp], first[atEphemeral:atStamp]) {
				t.Error("a forged initiation is taken")
			}
		}
		var again [InitiationSize]byte
		i, err := a.Initiate(&again, scalar(3), 77, Stamp(start))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := i.Consume(msg, &psk); err == nil && !bytes.Equal(msg[atReply:ResponseSize-2*macSize], second[atReply:ResponseSize-2*macSize]) {
			t.Error("a forged response is taken")
		}
		j := jar
		if err := j.Take(start, a.Remote, msg); err == nil && !bytes.Equal(msg[8:], reply[8:]) {
			t.Error("a forged cookie is taken")
		}
	})
}
