package relaymsg_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

func secret(t testing.TB) *relaymsg.Secret {
	t.Helper()
	s, err := relaymsg.NewSecret(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keys returns the two ends' keys of one session.
func keys(t testing.TB) (node, relay *relaymsg.Key) {
	t.Helper()
	a, b := secret(t), secret(t)
	sum := relaymsg.Transcript(1, b.Public(), a.Public(), 7, []byte("certificate"))
	node, err := a.Agree(b.Public(), sum)
	if err != nil {
		t.Fatal(err)
	}
	if relay, err = b.Agree(a.Public(), sum); err != nil {
		t.Fatal(err)
	}
	return node, relay
}

func head(k relaymsg.Kind) relaymsg.Header {
	return relaymsg.Header{Kind: k, Number: 0xabcdef, Session: 0x01020304}
}

func messages() []relaymsg.Message {
	return []relaymsg.Message{
		{Header: head(relaymsg.Learned), Peer: 9},
		{Header: head(relaymsg.Unknown)},
		{Header: head(relaymsg.Unreached), Peer: 9, Reason: relaymsg.ReasonAway},
		{Header: head(relaymsg.Ping), Token: 1 << 60},
		{Header: head(relaymsg.Pong), Token: 2},
		{Header: head(relaymsg.Drain), Seconds: 30},
		{Header: head(relaymsg.Bye)},
		{Header: head(relaymsg.Hello)},
		{Header: head(relaymsg.Challenge), Cookie: [16]byte{1, 2}},
		{Header: head(relaymsg.Bind), Cookie: [16]byte{3}, BindInfo: relaymsg.BindInfo{
			RelayKey: [32]byte{4}, Ephemeral: [32]byte{5}, Certificate: bytes.Repeat([]byte{6}, 900), Signature: []byte{7, 8},
		}},
		{Header: head(relaymsg.Bound), Seconds: 3600, Addr: netip.MustParseAddrPort("192.0.2.1:77")},
		{Header: head(relaymsg.Bound), Addr: netip.MustParseAddrPort("[2001:db8::1]:77")},
		{Header: head(relaymsg.Bound)},
		{Header: head(relaymsg.Rebind), Cookie: [16]byte{9}, Token: 3},
		{Header: head(relaymsg.Refused), Reason: relaymsg.ReasonFull, Seconds: 5},
	}
}

func TestRoundTrip(t *testing.T) {
	node, relay := keys(t)
	for _, m := range messages() {
		b := relaymsg.Append([]byte{1, 2, 3}, &m, node, false)[3:]
		got, err := relaymsg.Parse(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("kind %#x: %+v, %v", m.Kind, got, err)
		}
		for i := range b {
			if _, err := relaymsg.Parse(b[:i]); err == nil && m.Kind != relaymsg.Bind {
				t.Errorf("kind %#x cut to %d bytes is taken", m.Kind, i)
			}
		}
		if !relay.Verify(b, false) {
			continue // has no tag
		}
		if relay.Verify(b, true) {
			t.Errorf("kind %#x: the node's tag is taken for the relay's", m.Kind)
		}
		b[1] ^= 1
		if relay.Verify(b, false) {
			t.Errorf("kind %#x: a changed datagram is taken", m.Kind)
		}
	}
}

// Without a session, no answer is longer than the message it answers.
func TestNoAmplification(t *testing.T) {
	hello := relaymsg.Append(nil, &relaymsg.Message{Header: head(relaymsg.Hello)}, nil, false)
	for _, kind := range []relaymsg.Kind{relaymsg.Challenge, relaymsg.Refused} {
		answer := relaymsg.Append(nil, &relaymsg.Message{Header: head(kind)}, nil, true)
		if len(answer) > len(hello) {
			t.Errorf("a hello of %d bytes is answered by %d", len(hello), len(answer))
		}
	}
}

func TestHeader(t *testing.T) {
	var b [8]byte
	h := relaymsg.Header{Kind: relaymsg.DataFor, Number: relaymsg.MaxNumber, Session: 1<<32 - 1}
	h.Put(b[:])
	if got := relaymsg.ParseHeader(b[:]); got != h {
		t.Errorf("%+v", got)
	}
	for _, b := range [][]byte{nil, {0xE0}, {1, 0, 0, 0, 0, 0, 0, 0}, {0xD0, 0, 0, 0, 0, 0, 0, 0}} {
		if relaymsg.Is(b) {
			t.Errorf("% x is a relay's", b)
		}
	}
}

func TestTranscript(t *testing.T) {
	base := relaymsg.Transcript(1, [32]byte{1}, [32]byte{2}, 3, []byte("c"))
	for i, other := range [][32]byte{
		relaymsg.Transcript(2, [32]byte{1}, [32]byte{2}, 3, []byte("c")),
		relaymsg.Transcript(1, [32]byte{9}, [32]byte{2}, 3, []byte("c")),
		relaymsg.Transcript(1, [32]byte{1}, [32]byte{9}, 3, []byte("c")),
		relaymsg.Transcript(1, [32]byte{1}, [32]byte{2}, 9, []byte("c")),
		relaymsg.Transcript(1, [32]byte{1}, [32]byte{2}, 3, []byte("d")),
	} {
		if other == base {
			t.Errorf("the transcript does not hang on argument %d", i)
		}
	}
	if _, err := secret(t).Agree([32]byte{}, base); err == nil {
		t.Error("a key of low order is agreed with")
	}
}

func TestFrames(t *testing.T) {
	for _, m := range []relaymsg.Message{
		{Header: relaymsg.Header{Kind: relaymsg.Ping}, Token: 5},
		{Header: relaymsg.Header{Kind: relaymsg.Pong}, Token: 5},
		{Header: relaymsg.Header{Kind: relaymsg.Unreached}, Peer: 3, Reason: relaymsg.ReasonNotPermitted},
		{Header: relaymsg.Header{Kind: relaymsg.Drain}, Seconds: 5},
		{Header: relaymsg.Header{Kind: relaymsg.Bound}, Seconds: 5, Addr: netip.MustParseAddrPort("192.0.2.1:77")},
	} {
		b := relaymsg.AppendControl(nil, &m)
		f, body, err := relaymsg.ReadFrame(bytes.NewReader(b), make([]byte, relaymsg.MaxFrame))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := relaymsg.ParseControl(f, body); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for name, f := range map[string]relaymsg.Frame{
		"data to nobody":       {Kind: relaymsg.Data, Size: 1, Length: 1},
		"data without size":    {Kind: relaymsg.Data, Length: 1, Peer: 1},
		"data without bytes":   {Kind: relaymsg.Data, Size: 1, Peer: 1},
		"too much data":        {Kind: relaymsg.Data, Size: 1, Length: relaymsg.MaxFrame + 1, Peer: 1},
		"a long ping":          {Kind: relaymsg.Ping, Length: 65},
		"a ping of 2 GiB":      {Kind: relaymsg.Ping, Length: math.MinInt32}, // becomes 1<<31; no int if that has 32 bits
		"what is no frame":     {Kind: relaymsg.Hello},
		"packets beyond frame": {Kind: relaymsg.Data, Size: 3, Length: 2, Peer: 1},
	} {
		if _, err := relaymsg.ParseFrame(f.Append(nil)); !errors.Is(err, relaymsg.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	s := secret(t)
	node, _ := keys(t)
	if got := fmt.Sprint(s, node); got != "relay secret relay session key" {
		t.Errorf("%s", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range messages() {
		f.Add(relaymsg.Append(nil, &m, &relaymsg.Key{}, false))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := relaymsg.Parse(b)
		if err != nil {
			if !errors.Is(err, relaymsg.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again, err := relaymsg.Parse(relaymsg.Append(nil, &m, &relaymsg.Key{}, true))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(relaymsg.Frame{Kind: relaymsg.Data, Size: 2, Length: 3, Peer: 4}.Append(nil))
	f.Add(relaymsg.AppendControl(nil, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Bound}}))
	f.Add(relaymsg.AppendControl(nil, &relaymsg.Message{Header: relaymsg.Header{Kind: relaymsg.Unreached}, Reason: 3}))
	buf := make([]byte, relaymsg.MaxFrame)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			frame, body, err := relaymsg.ReadFrame(r, buf)
			if err != nil {
				return
			}
			if frame.Kind == relaymsg.Data {
				continue
			}
			m, err := relaymsg.ParseControl(frame, body)
			if err != nil {
				continue
			}
			if got := relaymsg.AppendControl(nil, &m); !bytes.Equal(got[relaymsg.FrameSize:], body) {
				t.Fatalf("% x became % x", body, got)
			}
		}
	})
}
