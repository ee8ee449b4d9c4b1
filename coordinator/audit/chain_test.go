package audit

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

func testSigner() *Signer {
	return NewSigner("mesh", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
}

// book is what a verifier is given: lines, the checkpoint of the last one, and a checkpoint kept elsewhere.
type book struct {
	lines [][]byte
	seal  []byte
	kept  []byte // of the record in the middle
}

func newBook(t testing.TB, n uint64) book {
	t.Helper()
	var b book
	var prev string
	for i := uint64(1); i <= n; i++ {
		op, hash, err := Append(prev, Record{
			Number: i, At: at, By: "uid 0", From: "admin socket", Action: NodeRevoke, Subject: fmt.Sprint("n", i), Name: "host",
			User: "ann@example.com", Reason: "stolen", Version: fmt.Sprint("1.", i), Policy: i / 3,
		})
		if err != nil {
			t.Fatal(err)
		}
		b.lines, prev = append(b.lines, op.Value), hash
		if i == n || i == n/2 {
			c, err := testSigner().Seal(i, hash, at)
			if err != nil {
				t.Fatal(err)
			}
			line, err := c.Line()
			if err != nil {
				t.Fatal(err)
			}
			if b.seal = line; i == n/2 {
				b.kept = line
			}
		}
	}
	return b
}

// verify verifies the log as an outsider would.
func (b book) verify(last uint64) error {
	var c Chain
	var seals []Checkpoint
	for _, line := range [][]byte{b.seal, b.kept} {
		p, err := ParseCheckpoint(line)
		if err != nil {
			return err
		}
		if !bytes.Equal(p.Key, testSigner().Public()) {
			return errors.New("another key")
		}
		c.Watch(p.Number)
		seals = append(seals, p)
	}
	for _, line := range b.lines {
		if _, err := c.Add(line); err != nil {
			return err
		}
	}
	if err := c.Ends(last); err != nil {
		return err
	}
	for _, p := range seals {
		if err := c.Holds(p); err != nil {
			return err
		}
	}
	return nil
}

func (b book) clone() book {
	c := book{seal: slices.Clone(b.seal), kept: slices.Clone(b.kept)}
	for _, l := range b.lines {
		c.lines = append(c.lines, slices.Clone(l))
	}
	return c
}

// TestEveryChangeIsFound changes bytes in a thousand ways, and lines in a hundred.
func TestEveryChangeIsFound(t *testing.T) {
	const n = 8
	whole := newBook(t, n)
	if err := whole.verify(n); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	other := func(b byte) byte { return b ^ byte(1+random.IntN(255)) }
	for name, change := range map[string]func(*book) bool{
		"a byte of a record": func(b *book) bool {
			line := b.lines[random.IntN(n)]
			i := random.IntN(len(line))
			line[i] = other(line[i])
			return true
		},
		"a byte of a hash": func(b *book) bool {
			line := b.lines[random.IntN(n)]
			i := len(line) - 66 + random.IntN(64)
			line[i] = other(line[i])
			return true
		},
		"a byte of the hash before": func(b *book) bool {
			line := b.lines[1+random.IntN(n-1)]
			i := bytes.Index(line, []byte(`"prev":"`)) + 8 + random.IntN(64)
			line[i] = other(line[i])
			return true
		},
		"a byte of a checkpoint": func(b *book) bool {
			line := [][]byte{b.seal, b.kept}[random.IntN(2)]
			i := random.IntN(len(line))
			line[i] = other(line[i])
			return true
		},
		"a byte put in": func(b *book) bool {
			k := random.IntN(n)
			b.lines[k] = slices.Insert(b.lines[k], random.IntN(len(b.lines[k])+1), byte(random.IntN(256)))
			return true
		},
		"a byte taken out": func(b *book) bool {
			k := random.IntN(n)
			i := random.IntN(len(b.lines[k]))
			b.lines[k] = slices.Delete(b.lines[k], i, i+1)
			return true
		},
		"a line taken out": func(b *book) bool {
			k := random.IntN(n)
			b.lines = slices.Delete(b.lines, k, k+1)
			return true
		},
		"a line twice": func(b *book) bool {
			b.lines = slices.Insert(b.lines, random.IntN(n+1), b.lines[random.IntN(n)])
			return true
		},
		"two lines changed over": func(b *book) bool {
			i, j := random.IntN(n), random.IntN(n)
			b.lines[i], b.lines[j] = b.lines[j], b.lines[i]
			return i != j
		},
		"the end taken away": func(b *book) bool {
			b.lines = b.lines[:random.IntN(n)]
			return true
		},
		"all from some record on written anew": func(b *book) bool {
			from := random.IntN(n)
			prev := ""
			for i := range b.lines {
				r, err := ParseLine(b.lines[i])
				if err != nil {
					t.Fatal(err)
				}
				if i == from {
					r.Reason += " again"
				}
				op, hash, err := Append(prev, r)
				if err != nil {
					t.Fatal(err)
				}
				b.lines[i], prev = op.Value, hash
			}
			return true
		},
	} {
		rounds := 100
		if strings.HasPrefix(name, "a byte") {
			rounds = 1000
		}
		for range rounds {
			b := whole.clone()
			if !change(&b) {
				continue
			}
			if err := b.verify(n); err == nil {
				t.Fatalf("%s: not found", name)
			} else if !errors.Is(err, ErrBroken) && !strings.Contains(err.Error(), "another key") {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

// TestChangesAreNamed checks that errors name the affected record.
func TestChangesAreNamed(t *testing.T) {
	const n = 9
	for _, c := range []struct {
		change func(*book)
		want   string
	}{
		{func(b *book) { b.lines[4][30] ^= 1 }, "record 5 was changed"},
		{func(b *book) { b.lines = slices.Delete(b.lines, 4, 5) }, "record 5 is missing: record 6 follows record 4"},
		{func(b *book) { b.lines = slices.Delete(b.lines, 4, 7) }, "records 5 to 7 are missing"},
		{func(b *book) { b.lines[4], b.lines[5] = b.lines[5], b.lines[4] }, "record 5 is missing: record 6 follows record 4"},
		{func(b *book) { b.lines = slices.Insert(b.lines, 6, b.lines[2]) }, "record 3 is where record 7 should be"},
		{func(b *book) { b.lines = b.lines[:7] }, "records 8 to 9 are missing: the log ends with record 7"},
		{func(b *book) { b.lines = nil }, "records 1 to 9 are missing"},
		{func(b *book) {
			r, _ := ParseLine(b.lines[4])
			r.By = "uid 1"
			op, _, _ := Append(r.Prev, r)
			b.lines[4] = op.Value
		}, "record 6 does not follow this record 5"},
		{func(b *book) { b.seal[40] ^= 1 }, "checkpoint"},
	} {
		b := newBook(t, n).clone()
		c.change(&b)
		if err := b.verify(n); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// TestACheckpointElsewhereTellsOfABookWrittenAnew checks that a checkpoint kept elsewhere detects a log that was rolled back,
// even if the signing key is at hand.
func TestACheckpointElsewhereTellsOfABookWrittenAnew(t *testing.T) {
	older, newer := newBook(t, 8), newBook(t, 20)
	kept, err := ParseCheckpoint(newer.kept)
	if err != nil {
		t.Fatal(err)
	}
	var c Chain
	c.Watch(kept.Number)
	for _, line := range older.lines {
		if _, err := c.Add(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Holds(kept); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "records 9 to 10 are missing") {
		t.Errorf("a book that was rolled back: %v", err)
	}
	if text := testSigner().String(); strings.Contains(text, "7,") || !strings.Contains(text, Fingerprint(testSigner().Public())) {
		t.Errorf("a signer prints as %s", text)
	}
}

func TestForwardFollows(t *testing.T) {
	s := store.NewMemory()
	prev := write(t, s, 1, 600, "")
	c := From(0, "")
	for line, err := range Forward(t.Context(), s, 0, 600, true) {
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Add(line)
		if err != nil {
			t.Fatal(err)
		}
		switch r.Number {
		case 600, 601:
			prev = write(t, s, r.Number+1, r.Number+1, prev)
			continue
		case 602:
		default:
			continue
		}
		break
	}
	if c.Number() != 602 || c.Hash() != prev {
		t.Errorf("followed up to record %d", c.Number())
	}
	var got []uint64
	for line, err := range Forward(t.Context(), s, 510, 602, false) {
		r, perr := ParseLine(line)
		if err != nil || perr != nil {
			t.Fatal(err, perr)
		}
		got = append(got, r.Number)
	}
	if len(got) != 92 || got[0] != 511 || got[91] != 602 {
		t.Errorf("records behind 510: %v", got)
	}
}
