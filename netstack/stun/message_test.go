package stun_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/redoubt-mesh/redoubt/netstack/stun"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

type vectors struct {
	RFC5769 []struct {
		RFC5769, Hex string
	}
	Captured []struct {
		Name, Hex, TID, Addr string
		Port                 uint16
	}
}

func load(t testing.TB) (v vectors) {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err != nil || len(v.RFC5769) != 4 || len(v.Captured) != 8 {
		t.Fatalf("%d and %d vectors: %v", len(v.RFC5769), len(v.Captured), err)
	}
	return v
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRFC5769(t *testing.T) {
	short := []byte("VOkJxbRl1RmTxUk/WvJxBt")
	long := md5.Sum([]byte("マトリックス:example.org:TheMatrIX")) //nolint:gosec // RFC 8489 derives long-term keys with it
	for _, v := range load(t).RFC5769 {
		b := unhex(t, v.Hex)
		m, err := stun.Parse(b)
		if err != nil {
			t.Errorf("%s: %v", v.RFC5769, err)
			continue
		}
		want := stun.Message{ID: m.ID}
		key := short
		switch v.RFC5769[:3] {
		case "2.1":
			want.Kind, want.Fingerprint = stun.Request, true
		case "2.2":
			want.Kind, want.Fingerprint, want.Mapped = stun.Response, true, ap("192.0.2.1:32853")
		case "2.3":
			want.Kind, want.Fingerprint, want.Mapped = stun.Response, true, ap("[2001:db8:1234:5678:11:2233:4455:6677]:32853")
		case "2.4":
			want.Kind, key = stun.Request, long[:]
		}
		if m.Kind != want.Kind || m.Mapped != want.Mapped || m.Fingerprint != want.Fingerprint {
			t.Errorf("%s: %+v", v.RFC5769, m)
		}
		if !signed(t, b, key) || signed(t, b, append(key, 'x')) {
			t.Errorf("%s: MESSAGE-INTEGRITY", v.RFC5769)
		}
	}
}

// signed verifies a message's MESSAGE-INTEGRITY. Address requests are never signed, so only the test vectors need it.
func signed(t *testing.T, b, key []byte) bool {
	t.Helper()
	for at := 20; at < len(b); at += 4 + (int(binary.BigEndian.Uint16(b[at+2:]))+3)&^3 {
		if binary.BigEndian.Uint16(b[at:]) != 0x0008 {
			continue
		}
		head := bytes.Clone(b[:at])
		binary.BigEndian.PutUint16(head[2:], uint16(at+24-20))
		mac := hmac.New(sha1.New, key)
		mac.Write(head)
		return hmac.Equal(mac.Sum(nil), b[at+4:at+24])
	}
	t.Fatal("no MESSAGE-INTEGRITY")
	return false
}

func TestCapturedAnswers(t *testing.T) {
	for _, v := range load(t).Captured {
		b := unhex(t, v.Hex)
		if v.Name == "in-process-pion-server" { // the file contains more than the message
			if _, err := stun.Parse(b); !errors.Is(err, stun.ErrFormat) {
				t.Errorf("%s with a tail: %v", v.Name, err)
			}
			b = b[:20+binary.BigEndian.Uint16(b[2:])]
		}
		m, err := stun.Parse(b)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		text := strings.Trim(v.Addr, `"`)
		if strings.HasPrefix(text, "[4]byte{") {
			text = strings.NewReplacer("[4]byte{", "", "}", "", ", ", ".").Replace(text)
		}
		if want := netip.AddrPortFrom(netip.MustParseAddr(text), v.Port); m.Mapped != want || m.Kind != stun.Response {
			t.Errorf("%s: %+v, want %s", v.Name, m, want)
		}
		if hex.EncodeToString(m.ID[:]) != v.TID {
			t.Errorf("%s: id %x", v.Name, m.ID)
		}
		if v.Name == "stuntman-server-ipv6" && m.Origin != ap("[2604:a880:2:d1::c5:7001]:3478") {
			t.Errorf("%s: origin %s", v.Name, m.Origin)
		}
	}
}

func TestAppend(t *testing.T) {
	id := stun.TxID{1, 2, 3, 12}
	for _, want := range []stun.Message{
		{Mapped: ap("192.0.2.1:7")},
		{Mapped: ap("[2001:db8::1]:65535"), Fingerprint: true},
		{Mapped: ap("192.0.2.1:7"), Origin: ap("192.0.2.9:1"), Other: ap("192.0.2.10:2"), Fingerprint: true},
	} {
		want.Kind, want.ID = stun.Response, id
		b := stun.AppendResponse([]byte("before"), want)
		got, err := stun.Parse(b[len("before"):])
		if err != nil || !equal(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	for _, c := range []stun.Change{0, stun.ChangePort, stun.ChangePort | stun.ChangeAddr} {
		got, err := stun.Parse(stun.AppendChangeRequest(nil, id, c))
		if want := (stun.Message{Kind: stun.Request, ID: id, Change: c, Fingerprint: true}); err != nil || !equal(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	if got, err := stun.Parse(stun.AppendResponse(nil, stun.Message{Mapped: ap("[::ffff:192.0.2.1]:7")})); got.Mapped != ap("192.0.2.1:7") {
		t.Errorf("4-in-6: %+v, %v", got, err)
	}
}

func equal(a, b stun.Message) bool {
	return a.Kind == b.Kind && a.ID == b.ID && a.Mapped == b.Mapped && a.Origin == b.Origin && a.Other == b.Other &&
		a.Change == b.Change && a.Code == b.Code && a.Fingerprint == b.Fingerprint
}

func TestAppendPadded(t *testing.T) {
	for _, size := range []int{32, 36, 1252, 1472} {
		b := stun.AppendPadded(nil, stun.TxID{1}, size)
		if m, err := stun.Parse(b); err != nil || m.Kind != stun.Request || len(b) != size {
			t.Errorf("%d bytes for %d: %+v, %v", len(b), size, m, err)
		}
	}
}

// A fingerprint reveals any bit changed in transit.
func TestDamage(t *testing.T) {
	good := stun.AppendResponse(nil, stun.Message{Mapped: ap("192.0.2.1:7"), Fingerprint: true})
	for i := range 8 * len(good) {
		b := bytes.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		if m, err := stun.Parse(b); err == nil && m.Fingerprint {
			t.Errorf("bit %d: %+v", i, m)
		}
	}
	for n := range good {
		if _, err := stun.Parse(good[:n]); !errors.Is(err, stun.ErrFormat) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// WireGuard and path messages are not mistaken for STUN.
func TestIs(t *testing.T) {
	if !stun.Is(stun.AppendRequest(nil, stun.TxID{})) {
		t.Error("a request is not STUN")
	}
	for _, first := range []byte{0x40, 0xC0, 0xD0, 0xE0} {
		b := stun.AppendRequest(nil, stun.TxID{})
		if b[0] = first; stun.Is(b) {
			t.Errorf("%#x: is STUN", first)
		}
	}
	if stun.Is(append([]byte{1, 0, 0, 0}, make([]byte, 144)...)) {
		t.Error("a handshake is STUN")
	}
}

func FuzzParse(f *testing.F) {
	v := load(f)
	for _, x := range v.RFC5769 {
		f.Add(unhex(f, x.Hex))
	}
	for _, x := range v.Captured {
		f.Add(unhex(f, x.Hex))
	}
	f.Add(stun.AppendChangeRequest(nil, stun.TxID{}, stun.ChangeAddr))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := stun.Parse(b)
		if err != nil {
			if !errors.Is(err, stun.ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		if m.Kind == stun.Response && m.Mapped.IsValid() {
			again, err := stun.Parse(stun.AppendResponse(nil, m))
			if err != nil || again.Mapped != m.Mapped || again.Other != m.Other || again.Origin != m.Origin || again.ID != m.ID {
				t.Fatalf("%+v became %+v, %v", m, again, err)
			}
		}
		s := stun.NewServer()
		answer, ok := s.Answer(nil, b, now, ap("192.0.2.1:1"))
		if ok != (m.Kind == stun.Request) {
			t.Fatalf("answer to %+v: %v", m, ok)
		}
		if !ok {
			return
		}
		if a, err := stun.Parse(answer); err != nil || a.ID != m.ID || a.Kind == stun.Request || len(answer) > len(b)+12 {
			t.Fatalf("answer %x of %d bytes to %d: %v", answer, len(answer), len(b), err)
		}
	})
}
