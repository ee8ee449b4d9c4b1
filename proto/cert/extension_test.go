package cert

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

func publicKey(t rapid.TB, seed byte) key.NodePublic {
	k, err := key.ParseNodePrivate(bytes.Repeat([]byte{seed}, key.NodeSize))
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func sample(t rapid.TB) extension {
	at := time.Unix(1_800_000_000, 0).UTC()
	return extension{
		Sequence: 300, Level: LevelTPM,
		Keys: []NodeKey{
			{Public: publicKey(t, 1), NotBefore: at, NotAfter: at.Add(time.Hour)},
			{Public: publicKey(t, 2), NotBefore: at, NotAfter: at.Add(2 * time.Hour)},
		},
		User: proto.User{Issuer: "https://a.example", Subject: "1", Name: "ann@example.com", AuthTime: at},
	}
}

// TestFrozen checks that the encoding of version 1 does not change.
func TestFrozen(t *testing.T) {
	want := "30819d020101" + "0202012c" + "0a0104" +
		"3060" +
		"302e0420" + "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209" + "02046b49d200" + "02046b49e010" +
		"302e0420" + "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59" + "02046b49d200" + "02046b49ee20" +
		"3000" +
		"a02d" + "0c1168747470733a2f2f612e6578616d706c65" + "0c0131" + "0c0f616e6e406578616d706c652e636f6d" + "02046b49d200"
	got, err := sample(t).marshal()
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
}

func TestExtensionRandom(t *testing.T) {
	moment := func(from int64) *rapid.Generator[time.Time] {
		return rapid.Custom(func(t *rapid.T) time.Time {
			return time.Unix(rapid.Int64Range(from, maxTime).Draw(t, "seconds"), 0).UTC()
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		e := extension{
			Sequence: rapid.Uint64().Draw(t, "sequence"),
			Level:    Level(rapid.IntRange(0, len(levels)-1).Draw(t, "level")),
		}
		for i := range rapid.IntRange(1, maxKeys).Draw(t, "keys") {
			k := NodeKey{Public: publicKey(t, byte(i+1)), NotBefore: time.Unix(rapid.Int64Range(0, maxTime-1).Draw(t, "from"), 0).UTC()}
			k.NotAfter = moment(k.NotBefore.Unix()+1).Draw(t, "to")
			e.Keys = append(e.Keys, k)
		}
		e.Tags = rapid.SliceOfN(rapid.StringN(0, 20, -1), 0, 5).Draw(t, "tags")
		if rapid.Bool().Draw(t, "user") {
			e.User = proto.User{Issuer: rapid.StringN(1, 20, -1).Draw(t, "issuer"), Subject: "s", Name: rapid.String().Draw(t, "name")}
			if rapid.Bool().Draw(t, "proved") {
				e.User.AuthTime = moment(1).Draw(t, "at")
			}
		}
		b, err := e.marshal()
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseExtension(b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(e, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(key.NodePublic{})); d != "" {
			t.Fatal(d)
		}
		for n := range b {
			if _, err := parseExtension(b[:n]); !errors.Is(err, ErrExtension) {
				t.Fatalf("cut at %d: %v", n, err)
			}
		}
	})
}

// TestExtensionRefused builds extensions that version 1 does not allow.
func TestExtensionRefused(t *testing.T) {
	keys := func(n int, public []byte, from, to int64) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) {
			b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
				for range n {
					b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString(public)
						b.AddASN1Int64(from)
						b.AddASN1Int64(to)
					})
				}
			})
		}
	}
	public := publicKey(t, 1).Bytes()
	good := keys(1, public, 1, 2)
	none := func(*cryptobyte.Builder) {}
	texts := func(s ...string) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) {
			for _, s := range s {
				addText(b, s)
			}
		}
	}
	build := func(version uint64, level int64, keys, tags, rest func(*cryptobyte.Builder)) []byte {
		var b cryptobyte.Builder
		b.AddASN1(der.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1Uint64(version)
			b.AddASN1Uint64(1)
			b.AddASN1Enum(level)
			keys(b)
			b.AddASN1(der.SEQUENCE, tags)
			rest(b)
		})
		return b.BytesOrPanic()
	}
	user := func(f func(*cryptobyte.Builder)) func(*cryptobyte.Builder) {
		return func(b *cryptobyte.Builder) { b.AddASN1(userTag, f) }
	}
	many := make([]string, proto.MaxTags+1)
	if _, err := parseExtension(build(1, 1, good, texts("tag:a"), none)); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing":                  nil,
		"version 0":                build(0, 1, good, none, none),
		"version 2":                build(2, 1, good, none, none),
		"unknown level":            build(1, 6, good, none, none),
		"negative level":           build(1, -1, good, none, none),
		"great level":              build(1, 257, good, none, none),
		"no key":                   build(1, 1, keys(0, nil, 0, 0), none, none),
		"the same key twice":       build(1, 1, keys(2, public, 1, 2), none, none),
		"a thousand keys":          build(1, 1, keys(1000, public, 1, 2), none, none),
		"a short key":              build(1, 1, keys(1, public[:31], 1, 2), none, none),
		"a key of low order":       build(1, 1, keys(1, make([]byte, 32), 1, 2), none, none),
		"a key that ends first":    build(1, 1, keys(1, public, 2, 1), none, none),
		"a key from before 1970":   build(1, 1, keys(1, public, -1, 1), none, none),
		"a key that never ends":    build(1, 1, keys(1, public, 1, maxTime+1), none, none),
		"too many tags":            build(1, 1, good, texts(many...), none),
		"a tag of another type":    build(1, 1, good, func(b *cryptobyte.Builder) { b.AddASN1Int64(1) }, none),
		"an empty user":            build(1, 1, good, none, user(none)),
		"a user of nobody":         build(1, 1, good, none, user(func(b *cryptobyte.Builder) { texts("", "", "n")(b); b.AddASN1Int64(0) })),
		"a user with more":         build(1, 1, good, none, user(func(b *cryptobyte.Builder) { texts("i", "s", "n")(b); b.AddASN1Int64(0); b.AddASN1Int64(0) })),
		"a user of before 1970":    build(1, 1, good, none, user(func(b *cryptobyte.Builder) { texts("i", "s", "n")(b); b.AddASN1Int64(-1) })),
		"a second user":            build(1, 1, good, none, func(b *cryptobyte.Builder) { user(texts("i"))(b); user(texts("i"))(b) }),
		"an unknown field":         build(1, 1, good, none, func(b *cryptobyte.Builder) { b.AddASN1Int64(1) }),
		"an unknown tagged field":  build(1, 1, good, none, func(b *cryptobyte.Builder) { b.AddASN1(der.Tag(1).ContextSpecific(), none) }),
		"a length in another form": {0x30, 0x81, 0x03, 0x02, 0x01, 0x01},
	} {
		if e, err := parseExtension(b); !errors.Is(err, ErrExtension) {
			t.Errorf("%s: got %+v, %v", name, e, err)
		}
	}
}

func FuzzExtension(f *testing.F) {
	b, err := sample(f).marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseExtension(b)
		if err != nil {
			if !errors.Is(err, ErrExtension) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		again, err := e.marshal()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is read, and written as %x, %v", b, again, err)
		}
	})
}
