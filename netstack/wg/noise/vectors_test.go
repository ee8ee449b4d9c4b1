package noise

import (
	"bytes"
	"crypto/ecdh"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

type vector struct {
	Handshake     string
	InitStatic    hexBytes `json:"init_static"`
	RespStatic    hexBytes `json:"resp_static"`
	InitEphemeral hexBytes `json:"gen_init_ephemeral"`
	RespEphemeral hexBytes `json:"gen_resp_ephemeral"`
	Prologue      hexBytes
	PSK           hexBytes `json:"preshared_key"`
	Payload0      hexBytes `json:"msg_0_payload"`
	Payload1      hexBytes `json:"msg_1_payload"`
	Payload2      hexBytes `json:"msg_2_payload"`
	Payload3      hexBytes `json:"msg_3_payload"`
	Message0      hexBytes `json:"msg_0_ciphertext"`
	Message1      hexBytes `json:"msg_1_ciphertext"`
	Message2      hexBytes `json:"msg_2_ciphertext"`
	Message3      hexBytes `json:"msg_3_ciphertext"`
}

func TestVectors(t *testing.T) {
	data, err := os.ReadFile("testdata/noise_ikpsk2_blake2s.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 4 {
		t.Fatalf("%d vectors, want 4", len(all))
	}
	for _, v := range all {
		if v.Handshake != construction {
			t.Fatalf("a vector of %s", v.Handshake)
		}
		v.try(t)
	}
}

func (v *vector) try(t *testing.T) {
	t.Helper()
	check := func(what string, got []byte, err error, want hexBytes) {
		t.Helper()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, %v; want %x", what, got, err, want)
		}
	}
	initiator, responder := pairOf(t, [keySize]byte(v.InitStatic), [keySize]byte(v.RespStatic))
	private := func(b hexBytes) *ecdh.PrivateKey {
		k, err := ecdh.X25519().NewPrivateKey(b)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	e, re, psk := private(v.InitEphemeral), private(v.RespEphemeral), [keySize]byte(v.PSK)

	s := begin(v.Prologue, &initiator.Remote.public)
	msg, err := initiator.writeFirst(&s, nil, e, v.Payload0)
	check("first message", msg, err, v.Message0)
	in := &Initiation{state: begin(v.Prologue, &responder.Local.public)}
	if err := responder.Local.readFirst(in, msg[:keySize], msg[keySize:keySize+keySize+tagSize]); err != nil {
		t.Fatal(err)
	}
	if in.Remote != initiator.Local.public {
		t.Error("another sender")
	}
	payload, err := in.state.open(nil, in.state.mixCipher(responder.shared[:]), msg[keySize+keySize+tagSize:])
	check("first payload", payload, err, v.Payload0)

	msg, err = writeSecond(&in.state, nil, re, e.PublicKey(), responder.Remote.key, &psk, v.Payload1)
	check("second message", msg, err, v.Message1)
	payload, err = readSecond(&s, nil, msg, e, initiator.Local.private, &psk)
	check("second payload", payload, err, v.Payload1)
	if s != in.state {
		t.Error("the two ends differ")
	}

	send, receive := s.split()
	check("third message", aead(&send).Seal(nil, zeroNonce[:], v.Payload2, nil), nil, v.Message2)
	check("fourth message", aead(&receive).Seal(nil, zeroNonce[:], v.Payload3, nil), nil, v.Message3)
}

// pairOf returns the pairs of both ends of two private keys.
func pairOf(t testing.TB, a, b [keySize]byte) (atA, atB *Pair) {
	t.Helper()
	end := func(mine, other [keySize]byte) *Pair {
		l, err := NewLocal(mine)
		if err != nil {
			t.Fatal(err)
		}
		o, err := NewLocal(other)
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewRemote(o.Public())
		if err != nil {
			t.Fatal(err)
		}
		p, err := NewPair(l, r)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	return end(a, b), end(b, a)
}

// scalar returns a private key made from a number.
func scalar(n uint64) (k [keySize]byte) {
	binary.LittleEndian.PutUint64(k[8:], n)
	return k
}
