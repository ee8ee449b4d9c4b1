package join_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto/join"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

const prefix = "redoubt1-"

var seed = []byte("\x50ANDNOBODYSHALLEVERREADTHESEBYT\x45")

func code(t testing.TB, urls ...string) join.Code {
	t.Helper()
	s, err := key.ParseTokenSecret(seed)
	if err != nil {
		t.Fatal(err)
	}
	return join.Code{URLs: urls, Root: [32]byte{1, 2, 3}, Secret: s}
}

func encode(t testing.TB, c join.Code) string {
	t.Helper()
	s, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRoundTrip(t *testing.T) {
	for _, urls := range [][]string{
		{"https://mesh.example.com"},
		{"https://192.0.2.1:8443", "https://[2001:db8::1]:443", "https://a", "https://a-b.example.com:1"},
		{"https://h1", "https://h2", "https://h3", "https://h4", "https://h5", "https://h6", "https://h7", "https://h8"},
	} {
		c := code(t, urls...)
		s := encode(t, c)
		for _, text := range []string{s, "  " + s + "\r\n"} {
			got, err := join.Parse(text)
			if err != nil {
				t.Fatalf("%v: %v", urls, err)
			}
			if fmt.Sprint(got.URLs) != fmt.Sprint(urls) || got.Root != c.Root || got.Secret.Expose() != c.Secret.Expose() {
				t.Errorf("%v: got %v", urls, got)
			}
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	bad := []string{
		"", "mesh.example.com", "http://mesh.example.com", "https://", "https://a/", "https://a/x", "https://a?x", "https://a#x",
		"https://u:p@a", "https://a:", "https://a:0", "https://a:65536", "https://a:01", "https://a b", "https://a..b",
		"https://[fe80::1%25eth0]", "https://0.0.0.0", "HTTPS://a", "https://" + strings.Repeat("a.", 130) + "a", "https://\xff",
		"https://a\n", "https://%61",
	}
	for _, u := range bad {
		if s, err := code(t, u).Encode(); err == nil {
			t.Errorf("%q: %s", u, s)
		}
	}
	long := "https://" + strings.Repeat("a.", 120) + "a"
	for name, c := range map[string]join.Code{
		"no URL":      code(t),
		"nine URLs":   code(t, strings.Split(strings.Repeat("https://a ", 9), " ")[:9]...),
		"no secret":   {URLs: []string{"https://a"}},
		"over length": code(t, long, long, long, long, long, long, long),
	} {
		if s, err := c.Encode(); err == nil {
			t.Errorf("%s: %s", name, s)
		}
	}
}

// TestTruncated cuts a code at every position.
func TestTruncated(t *testing.T) {
	s := encode(t, code(t, "https://mesh.example.com", "https://192.0.2.1:8443"))
	for n := 1; n < len(s); n++ {
		if _, err := join.Parse(s[:n]); !errors.Is(err, join.ErrTruncated) {
			t.Errorf("%d of %d characters: got %v", n, len(s), err)
		}
	}
}

// TestDamaged replaces each character by another one.
func TestDamaged(t *testing.T) {
	s := encode(t, code(t, "https://mesh.example.com"))
	for i := range s {
		b := []byte(s)
		if b[i]++; b[i] == '[' || b[i] == '{' || b[i] == ':' || b[i] == '`' {
			b[i] = 'A'
		}
		if c, err := join.Parse(string(b)); err == nil {
			t.Errorf("character %d: got %v", i, c)
		} else {
			checkSilent(t, err)
		}
	}
}

func TestKinds(t *testing.T) {
	s := encode(t, code(t, "https://mesh.example.com"))
	body := strings.TrimPrefix(s, prefix)
	for name, test := range map[string]struct {
		text string
		want error
	}{
		"nothing":             {"", join.ErrGarbage},
		"another word":        {"hello", join.ErrGarbage},
		"a newer version":     {"redoubt2-" + body, join.ErrVersion},
		"a much newer one":    {"redoubt300-", join.ErrVersion},
		"no version":          {"redoubt-" + body, join.ErrGarbage},
		"version zero":        {"redoubt0-" + body, join.ErrGarbage},
		"another spelling":    {"redoubt01-" + body, join.ErrGarbage},
		"upper case":          {strings.ToUpper(s), join.ErrGarbage},
		"broken over lines":   {s[:40] + "\n" + s[40:], join.ErrGarbage},
		"padding":             {s + "=", join.ErrGarbage},
		"standard base64":     {prefix + strings.ReplaceAll(base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 99)), "=", ""), join.ErrGarbage},
		"twice":               {s + s, join.ErrGarbage},
		"another inner one":   {prefix + "AgAA" + body[4:], join.ErrGarbage},
		"ten megabytes":       {prefix + strings.Repeat("A", 10<<20), join.ErrTooLong},
		"more than it states": {s + "AAAA", join.ErrGarbage},
	} {
		_, err := join.Parse(test.text)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v", name, err)
		}
		checkSilent(t, err)
	}
}

// checkSilent checks that an error contains no part of the secret.
func checkSilent(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for i := 0; i+4 <= len(seed); i++ {
		p := seed[i : i+4]
		if strings.Contains(err.Error(), string(p)) || strings.Contains(err.Error(), hex.EncodeToString(p)) {
			t.Fatalf("the error holds part of the secret: %v", err)
		}
	}
	for shift := range 3 {
		if strings.Contains(err.Error(), base64.RawURLEncoding.EncodeToString(seed[shift:])[:6]) {
			t.Fatalf("the error holds part of the secret: %v", err)
		}
	}
}

func TestPrintsNoSecret(t *testing.T) {
	if s := fmt.Sprintf("%v %+v %#v", code(t, "https://a"), code(t, "https://a"), code(t, "https://a")); strings.Contains(s, "NOBODY") || strings.Count(s, "[secret]") != 3 {
		t.Error(s)
	}
}

func TestRandom(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "secret")
		secret, err := key.ParseTokenSecret(raw)
		if err != nil {
			t.Fatal(err)
		}
		c := join.Code{
			URLs:   rapid.SliceOfN(rapid.StringMatching(`https://[a-z0-9]{1,20}(\.[a-z]{1,10}){0,2}(:[1-9][0-9]{0,3})?`), 1, join.MaxURLs).Draw(t, "urls"),
			Root:   [32]byte(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "root")),
			Secret: secret,
		}
		s, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := join.Parse(s)
		if err != nil || fmt.Sprint(got.URLs) != fmt.Sprint(c.URLs) || got.Root != c.Root || got.Secret.Expose() != [32]byte(raw) {
			t.Fatalf("got %v, %v", got, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(encode(f, code(f, "https://mesh.example.com", "https://192.0.2.1:8443")))
	f.Fuzz(func(t *testing.T, s string) {
		c, err := join.Parse(s)
		if err != nil {
			for _, kind := range []error{join.ErrTooLong, join.ErrTruncated, join.ErrVersion, join.ErrGarbage} {
				if errors.Is(err, kind) {
					return
				}
			}
			t.Fatalf("an error of no kind: %v", err)
		}
		again, err := c.Encode()
		if err != nil || again != strings.TrimSpace(s) {
			t.Fatalf("%q is read, and written as %q, %v", s, again, err)
		}
	})
}
