package stun_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

var now = time.Unix(1_000_000, 0)

func TestServer(t *testing.T) {
	s := stun.NewServer()
	for _, from := range []netip.AddrPort{ap("192.0.2.1:1"), ap("[2001:db8::1]:2")} {
		b, ok := s.Answer(nil, stun.AppendRequest(nil, stun.TxID{7}), now, from)
		m, err := stun.Parse(b)
		if !ok || err != nil || m.Mapped != from || m.ID != (stun.TxID{7}) || !m.Fingerprint {
			t.Errorf("%+v, %v", m, err)
		}
		if _, ok := s.Answer(nil, b, now, from); ok {
			t.Error("an answer is answered")
		}
	}
	bare := stun.AppendRequest(nil, stun.TxID{7})[:20]
	bare[3] = 0
	if b, ok := s.Answer(nil, bare, now, ap("192.0.2.1:1")); !ok || len(b) != 32 {
		t.Errorf("the shortest request: %x", b)
	}
}

func TestServerSaysWhatItCannot(t *testing.T) {
	s := stun.NewServer()
	for _, attrs := range []string{
		"00030004" + "00000006", // answer from elsewhere
		"00010000",              // an address without a family
		"7fff0000", "7ffe000401020304" + "7ffd0000",
	} {
		b := stun.AppendRequest(nil, stun.TxID{7})[:20]
		b = append(b, unhex(t, attrs)...)
		b[3] = byte(len(b) - 20)
		answer, ok := s.Answer(nil, b, now, ap("192.0.2.1:1"))
		if attrs == "00010000" {
			if ok {
				t.Errorf("answered nonsense: %x", answer)
			}
			continue
		}
		if m, err := stun.Parse(answer); err != nil || m.Kind != stun.Failure || m.Code != 420 {
			t.Errorf("%s: %+v, %v", attrs, m, err)
		}
	}
}

// A flood is answered only in part, whether from one source or from many.
func TestServerIsBounded(t *testing.T) {
	s := stun.NewServer()
	req := stun.AppendRequest(nil, stun.TxID{7})
	answered := func(n int, after time.Duration, from func(i int) netip.AddrPort) (count int) {
		for i := range n {
			if _, ok := s.Answer(nil, req, now.Add(after), from(i)); ok {
				count++
			}
		}
		return count
	}
	one := func(int) netip.AddrPort { return ap("192.0.2.1:1") }
	if n := answered(1000, 0, one); n != 40 {
		t.Errorf("%d answers to one source at once", n)
	}
	if n := answered(1000, time.Second, one); n != 10 {
		t.Errorf("%d answers to it a second later", n)
	}
	subnet := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 14: byte(i >> 8), 15: byte(i)}), 1)
	}
	if n := answered(1000, time.Second, subnet); n > 40 {
		t.Errorf("%d answers to one /64", n)
	}
	all := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{9, byte(i >> 16), byte(i >> 8), byte(i)}), 1)
	}
	if n := answered(100_000, time.Minute, all); n > 20_000 || n < 10_000 {
		t.Errorf("%d answers to all at once", n)
	}
}

func BenchmarkAnswer(b *testing.B) {
	s := stun.NewServer()
	req := stun.AppendRequest(nil, stun.TxID{7})
	var buf [256]byte
	at := now
	for b.Loop() {
		at = at.Add(time.Second)
		if _, ok := s.Answer(buf[:0], req, at, ap("192.0.2.1:1")); !ok {
			b.Fatal("no answer")
		}
	}
}
