package key_test

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// seed must not appear in anything printed.
var seed = []byte("\x50ANDNOBODYSHALLEVERREADTHESEBYT\x45")

// leaks reports whether a text contains the seed or a large part of it, in any form in which formatting writes bytes.
func leaks(s string) bool {
	const part = 6
	for i := 0; i+part <= len(seed); i++ {
		p := seed[i : i+part]
		for _, form := range []string{
			string(p), hex.EncodeToString(p), strings.ToUpper(hex.EncodeToString(p)),
			strings.Trim(fmt.Sprintf("%d", p), "[]"), fmt.Sprintf("% x", p), strings.Trim(fmt.Sprintf("%o", p), "[]"),
			strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", p), "[]byte{"), "}"),
		} {
			if strings.Contains(s, form) {
				return true
			}
		}
	}
	if strings.Contains(s, new(big.Int).SetBytes(seed).String()) {
		return true
	}
	for shift := range 3 {
		if e := base64.RawStdEncoding.EncodeToString(seed[shift:]); strings.Contains(s, e[:12]) {
			return true
		}
	}
	return false
}

func TestLeaksFindsLeaks(t *testing.T) {
	for _, verb := range []string{"%v", "%d", "%s", "%x", "%X", "%#v", "%q", "% x", "%o"} {
		if s := fmt.Sprintf(verb, seed); !leaks(s) {
			t.Errorf("%s: %s is not seen as a leak", verb, s)
		}
	}
	if b, _ := json.Marshal(seed); !leaks(string(b)) {
		t.Error("JSON is not seen as a leak")
	}
}

// outer holds private keys in every way that a struct can.
type outer[T any] struct {
	Exported   T
	unexported T
	Pointer    *T
	hidden     *T
	Any        any
	Slice      []T
	Map        map[string]T
	inner      struct{ deep T }
}

func nest[T any](k T) outer[T] {
	o := outer[T]{
		Exported: k, unexported: k, Pointer: &k, hidden: &k, Any: k, Slice: []T{k}, Map: map[string]T{"k": k},
	}
	o.inner.deep = k
	return o
}

func TestPrivateKeysDoNotPrint(t *testing.T) {
	node := must(key.ParseNodePrivate(seed))(t)
	device := must(key.NewDevice(bytes.NewReader(seed)))(t)
	token := must(key.ParseTokenSecret(seed))(t)
	t.Run("node", func(t *testing.T) { checkSealed(t, node) })
	t.Run("device", func(t *testing.T) { checkSealed(t, device) })
	t.Run("token", func(t *testing.T) { checkSealed(t, token) })
}

func checkSealed[T any](t *testing.T, k T) {
	o := nest(k)
	for _, v := range []any{k, &k, []T{k}, o, &o, o.inner, fmt.Errorf("failed with %v: %w", k, fmt.Errorf("%+v", o))} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%U", "%p", "%T", "%w", "%!"} {
			if s := fmt.Sprintf(verb, v); leaks(s) {
				t.Errorf("%s of a %T: %s", verb, v, s)
			}
		}
		if s := fmt.Sprint(v) + fmt.Sprintln(v); leaks(s) {
			t.Errorf("Sprint of a %T: %s", v, s)
		}
		if s := logged(v); leaks(s) {
			t.Errorf("slog of a %T: %s", v, s)
		}
	}
	if s := fmt.Sprintf("%v %x %#v", any(k), any(k), any(k)); s != "[secret] [secret] [secret]" {
		t.Errorf("prints as %s", s)
	}
	if !strings.Contains(logged(k), "[secret]") {
		t.Errorf("logs as %s", logged(k))
	}
	checkMarshal(t, k, o)
}

func logged(v any) string {
	var b bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		slog.New(h).With("first", v).Info("event", "key", v, slog.Group("group", "key", v))
	}
	return b.String()
}

func checkMarshal[T any](t *testing.T, k T, o outer[T]) {
	for _, v := range []any{k, &k, o, &o, map[string]any{"k": k}} {
		b, err := json.Marshal(v)
		if !errors.Is(err, key.ErrSealed) || leaks(string(b)) {
			t.Errorf("JSON of a %T: %s, %v", v, b, err)
		}
		if b, err := xml.Marshal(v); err == nil || leaks(string(b)) {
			t.Errorf("XML of a %T: %s, %v", v, b, err)
		}
		var buf bytes.Buffer
		if err := gob.NewEncoder(&buf).Encode(v); err == nil || leaks(buf.String()) {
			t.Errorf("gob of a %T: %q, %v", v, buf.String(), err)
		}
	}
	type marshaler interface {
		MarshalText() ([]byte, error)
		MarshalBinary() ([]byte, error)
	}
	m := any(k).(marshaler)
	if _, err := m.MarshalText(); !errors.Is(err, key.ErrSealed) {
		t.Errorf("text: %v", err)
	}
	if _, err := m.MarshalBinary(); !errors.Is(err, key.ErrSealed) {
		t.Errorf("binary: %v", err)
	}
}
