package attest

import (
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

type other struct{ Token }

func (other) Kind() string { return "other" }

func TestRegistry(t *testing.T) {
	r, err := NewRegistry(other{}, Token{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		offered []string
		want    string
	}{
		{[]string{"token", "other"}, "other"},
		{[]string{"token"}, "token"},
		{[]string{"tpm", "token"}, "token"},
	} {
		if a, err := r.Choose(c.offered); err != nil || a.Kind() != c.want {
			t.Errorf("%v: %v, %v", c.offered, a, err)
		}
	}
	if _, err := r.Choose([]string{"tpm"}); !errors.Is(err, ErrNone) {
		t.Errorf("nothing in common: %v", err)
	}
	if _, err := NewRegistry(Token{}, Token{}); err == nil {
		t.Error("two attestors of one kind")
	}
}

func claim(t testing.TB) Claim {
	t.Helper()
	device, err1 := key.NewDevice(rand.Reader)
	node, err2 := key.NewNode(rand.Reader)
	token, err3 := key.NewToken(rand.Reader)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	return Claim{Device: device.Device(), Node: node.Public(), Token: token.Public()}
}

func TestToken(t *testing.T) {
	c := claim(t)
	parameters, state, err := Token{}.Begin(time.Now(), rand.Reader, c, nil)
	if err != nil || len(parameters) != 0 {
		t.Fatalf("%x, %v", parameters, err)
	}
	a, err := Token{}.Finish(time.Now(), state, nil, [32]byte{})
	if err != nil || a.Level != cert.LevelToken || a.DeviceID != "device:"+c.Device.String() || a.CanReattest {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := (Token{}).Finish(time.Now(), nil, nil, [32]byte{}); err == nil {
		t.Error("finished what was not begun")
	}
	c.Token = key.TokenPublic{}
	if _, _, err := (Token{}).Begin(time.Now(), rand.Reader, c, nil); err == nil {
		t.Error("begun without a token")
	}
}

func FuzzTokenEvidence(f *testing.F) {
	c := claim(f)
	_, state, err := Token{}.Begin(time.Now(), rand.Reader, c, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, evidence []byte) {
		a, err := Token{}.Finish(time.Now(), state, evidence, [32]byte{})
		if (err == nil) != (len(evidence) == 0) || err != nil && a.Level != cert.LevelNone {
			t.Errorf("%d bytes: %+v, %v", len(evidence), a, err)
		}
	})
}
