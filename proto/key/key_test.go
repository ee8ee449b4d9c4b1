package key_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"

	"golang.org/x/crypto/curve25519"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestNodeKey(t *testing.T) {
	a := must(key.NewNode(rand.Reader))(t)
	b := must(key.NewNode(rand.Reader))(t)
	ab, ba := must(a.Shared(b.Public()))(t), must(b.Shared(a.Public()))(t)
	if ab != ba || ab == [32]byte{} {
		t.Error("the two sides do not share a secret")
	}
	x := a.Expose()
	again := must(key.ParseNodePrivate(x[:]))(t)
	if again.Public() != a.Public() || again.Expose() != x {
		t.Error("what Expose gave is another key")
	}
	if got := must(key.ParseNodePublic(a.Public().Bytes()))(t); got != a.Public() {
		t.Error("public bytes")
	}
	if got := must(key.ParseNodePublicText(a.Public().String()))(t); got != a.Public() {
		t.Error("public text")
	}
	var text key.NodePublic
	if err := text.UnmarshalText(must(a.Public().MarshalText())(t)); err != nil || text != a.Public() {
		t.Errorf("marshalled text: %v, %v", text, err)
	}
	if a.Public().Array() != [32]byte(a.Public().Bytes()) || a.Public().IsZero() {
		t.Error("array")
	}
}

// TestClamping checks that Expose returns what WireGuard stores, whatever bytes the key was made from.
func TestClamping(t *testing.T) {
	raw := bytes.Repeat([]byte{0xff}, key.NodeSize)
	k := must(key.ParseNodePrivate(raw))(t)
	x := k.Expose()
	if x[0]&7 != 0 || x[31]&0x80 != 0 || x[31]&0x40 == 0 {
		t.Errorf("not clamped: %x", x)
	}
	want := must(curve25519.X25519(raw, curve25519.Basepoint))(t)
	if !bytes.Equal(k.Public().Bytes(), want) {
		t.Errorf("public: got %x, want %x", k.Public().Bytes(), want)
	}
}

func TestNodeKeyRefused(t *testing.T) {
	prime := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	eight := []*big.Int{
		must(parseInt("325606250916557431795983626356110631294008115727848805560023387167927233504"))(t),
		must(parseInt("39382357235489614581723060781553021112529911719440698176882885853963445705823"))(t),
	}
	low := append(eight, big.NewInt(0), big.NewInt(1), new(big.Int).Sub(prime, big.NewInt(1)))
	node := must(key.NewNode(rand.Reader))(t)
	exposed := node.Expose()
	std := must(ecdh.X25519().NewPrivateKey(exposed[:]))(t)
	for _, u := range low {
		for _, plusPrime := range []bool{false, true} {
			for _, high := range []byte{0, 0x80} {
				v := new(big.Int).Set(u)
				if plusPrime {
					v.Add(v, prime)
				}
				if v.BitLen() > 255 {
					continue
				}
				b := littleEndian(v)
				b[31] |= high
				// The list is indeed of low order: the standard library returns no secret.
				if _, err := std.ECDH(must(ecdh.X25519().NewPublicKey(b))(t)); err == nil {
					t.Fatalf("%x is not of low order", b)
				}
				if _, err := key.ParseNodePublic(b); !errors.Is(err, key.ErrLowOrder) {
					t.Errorf("%x: got %v", b, err)
				}
			}
		}
	}
	if _, err := node.Shared(key.NodePublic{}); !errors.Is(err, key.ErrLowOrder) {
		t.Errorf("the zero key: got %v", err)
	}

	// Another encoding of a valid key is refused.
	b := node.Public().Bytes()
	b[31] |= 0x80
	if _, err := key.ParseNodePublic(b); !errors.Is(err, key.ErrNotCanonical) {
		t.Errorf("high bit: got %v", err)
	}
	nine := littleEndian(new(big.Int).Add(prime, big.NewInt(9)))
	if _, err := key.ParseNodePublic(nine); !errors.Is(err, key.ErrNotCanonical) {
		t.Errorf("nine plus the prime: got %v", err)
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := key.ParseNodePublic(make([]byte, n)); err == nil {
			t.Errorf("public of %d bytes", n)
		}
		if _, err := key.ParseNodePrivate(make([]byte, n)); err == nil {
			t.Errorf("private of %d bytes", n)
		}
	}
	good := node.Public().String()
	for _, s := range []string{"", good[:43], good + "=", good[:43] + "A", "\n" + good[1:], good[:42] + "_="} {
		if _, err := key.ParseNodePublicText(s); err == nil {
			t.Errorf("text %q taken", s)
		}
	}
}

func parseInt(s string) (*big.Int, error) {
	v, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return nil, errors.New("not a number")
	}
	return v, nil
}

func littleEndian(v *big.Int) []byte {
	b := v.FillBytes(make([]byte, 32))
	for i := range 16 {
		b[i], b[31-i] = b[31-i], b[i]
	}
	return b
}

func TestDeviceKey(t *testing.T) {
	k := must(key.NewDevice(rand.Reader))(t)
	pub := must(key.ParseDevicePublic(k.Device().Bytes()))(t)
	if pub != k.Device() || !pub.ECDSA().Equal(k.Public()) || must(key.DeviceFromPublic(k.Public()))(t) != pub {
		t.Error("public halves differ")
	}
	again := must(key.ParseDevicePEM(must(k.MarshalPEM())(t)))(t)
	if again.Device() != pub {
		t.Error("PEM")
	}
	if len(pub.String()) != 32 {
		t.Errorf("fingerprint %s", pub)
	}
	// RFC 6979: about half of all signatures would have a high s.
	for i := range 64 {
		digest := sha256.Sum256([]byte{byte(i)})
		sig := must(k.Sign(rand.Reader, digest[:], crypto.SHA256))(t)
		if !pub.Verify(digest[:], sig) || !ecdsa.VerifyASN1(pub.ECDSA(), digest[:], sig) {
			t.Fatalf("signature %d does not verify", i)
		}
		high := highS(t, sig)
		if !ecdsa.VerifyASN1(pub.ECDSA(), digest[:], high) {
			t.Fatal("the test's other signature is none")
		}
		if pub.Verify(digest[:], high) {
			t.Fatal("high s taken")
		}
		if pub.Verify(digest[:], append(sig, 0)) || pub.Verify(digest[:31], sig) || pub.Verify(digest[:], nil) {
			t.Fatal("malformed signature taken")
		}
		digest[0] ^= 1
		if pub.Verify(digest[:], sig) {
			t.Fatal("signature of another digest taken")
		}
	}
}

func highS(t *testing.T, sig []byte) []byte {
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(sig, &v); err != nil {
		t.Fatal(err)
	}
	v.S.Sub(elliptic.P256().Params().N, v.S)
	return must(asn1.Marshal(v))(t)
}

func TestDeviceKeyRefused(t *testing.T) {
	k := must(key.NewDevice(rand.Reader))(t)
	b := k.Device().Bytes()
	b[64] ^= 1
	for _, bad := range [][]byte{nil, b, b[:64], make([]byte, key.DeviceSize), append([]byte{2}, b[1:33]...)} {
		if _, err := key.ParseDevicePublic(bad); err == nil {
			t.Errorf("%x taken", bad)
		}
	}
	other := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)
	if _, err := key.DeviceFromPublic(&other.PublicKey); err == nil {
		t.Error("P-384 taken")
	}
	pem := must(k.MarshalPEM())(t)
	for _, bad := range [][]byte{nil, pem[:len(pem)/2], append(bytes.Clone(pem), pem...), bytes.ReplaceAll(pem, []byte("PRIVATE"), []byte("PUBLIC"))} {
		if _, err := key.ParseDevicePEM(bad); err == nil {
			t.Errorf("%q taken", bad)
		}
	}
	if _, err := k.Sign(nil, make([]byte, 48), crypto.SHA384); err == nil {
		t.Error("signed a SHA-384 digest")
	}
	if _, err := k.Sign(nil, make([]byte, 20), crypto.SHA256); err == nil {
		t.Error("signed 20 bytes")
	}
}

func TestToken(t *testing.T) {
	s := must(key.NewToken(rand.Reader))(t)
	pub := must(key.ParseTokenPublic(s.Public().Bytes()))(t)
	msg := []byte("binding")
	if pub != s.Public() || !pub.Verify(msg, s.Sign(msg)) || pub.Verify([]byte("other"), s.Sign(msg)) {
		t.Error("signature")
	}
	x := s.Expose()
	if must(key.ParseTokenSecret(x[:]))(t).Public() != pub {
		t.Error("what Expose gave is another secret")
	}
	if _, err := key.ParseTokenPublic(make([]byte, key.TokenSize)); err == nil {
		t.Error("the zero token taken")
	}
	if _, err := key.ParseTokenPublic(x[:31]); err == nil {
		t.Error("31 bytes taken")
	}
	if _, err := key.ParseTokenSecret(x[:31]); err == nil {
		t.Error("31 bytes taken")
	}
}

// TestZeroKeys checks that the zero values do nothing, and do not panic.
func TestZeroKeys(t *testing.T) {
	var n key.NodePrivate
	var d key.DevicePrivate
	var s key.TokenSecret
	if !n.IsZero() || !d.IsZero() || !s.IsZero() || !n.Public().IsZero() || !d.Device().IsZero() || !s.Public().IsZero() {
		t.Error("zero keys are not zero")
	}
	if n.Expose() != [32]byte{} || s.Expose() != [32]byte{} || s.Sign(nil) != nil {
		t.Error("zero keys hold something")
	}
	if _, err := n.Shared(key.NodePublic{}); err == nil {
		t.Error("shared a secret without a key")
	}
	if _, err := d.Sign(nil, make([]byte, 32), crypto.SHA256); err == nil {
		t.Error("signed without a key")
	}
	if _, err := d.MarshalPEM(); err == nil {
		t.Error("marshalled no key")
	}
	if d.Device().ECDSA() != nil || d.Device().Verify(make([]byte, 32), []byte{1}) || s.Public().Verify(nil, nil) {
		t.Error("the zero key verifies")
	}
	if b := must(n.Public().MarshalText())(t); len(b) != 0 {
		t.Errorf("zero key reads %q", b)
	}
}

func TestShortRandomness(t *testing.T) {
	short := func() *bytes.Reader { return bytes.NewReader(make([]byte, 31)) }
	if _, err := key.NewNode(short()); err == nil {
		t.Error("node key of 31 bytes")
	}
	if _, err := key.NewDevice(short()); err == nil {
		t.Error("device key of 31 bytes")
	}
	if _, err := key.NewToken(short()); err == nil {
		t.Error("token of 31 bytes")
	}
	// Zero is not a scalar: the next draw is used.
	r := bytes.NewReader(append(make([]byte, 32), bytes.Repeat([]byte{1}, 32)...))
	if must(key.NewDevice(r))(t).IsZero() {
		t.Error("no key")
	}
}
