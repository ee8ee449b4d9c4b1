package eventlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// measure returns an event as firmware creates it.
func measure(pcr, kind uint32, data []byte) Event {
	return Event{PCR: pcr, Type: kind, Digest: sha256.Sum256(data), Data: data}
}

const (
	variableConfig = 0x80000001
	separator      = 4
	action         = 5
	authority      = 0x800000e0
)

// boot returns the events of a booting machine with the given value of the variable SecureBoot.
func boot(secure ...byte) []Event {
	list := []Event{
		measure(0, 8, []byte("firmware")),
		measure(7, variableConfig, variable("SecureBoot", secure)),
		measure(7, variableConfig, variable("PK", []byte("platform key"))),
		measure(7, variableConfig, variable("dbx", bytes.Repeat([]byte{9}, 20_000))),
		measure(1, 1, []byte("configuration")),
	}
	for _, pcr := range []uint32{0, 1, 2, 3, 4, 5, 6, 7} {
		list = append(list, measure(pcr, separator, []byte{0, 0, 0, 0}))
	}
	return append(list, measure(7, authority, []byte("who signed the boot loader")), measure(4, 0x80000003, []byte("boot loader")))
}

// pcr returns the value of a PCR after the events.
func pcr(n uint32, events []Event) (v [32]byte) {
	for _, e := range events {
		if e.PCR == n && e.Type != noAction {
			v = sha256.Sum256(append(v[:], e.Digest[:]...))
		}
	}
	return v
}

func parsed(t testing.TB, raw []byte) *Log {
	t.Helper()
	l, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRealLogs(t *testing.T) {
	for name, want := range map[string]error{"secure-boot-on": nil, "secure-boot-off": ErrSecureBoot} {
		l := parsed(t, read(t, name))
		if err := l.SecureBoot(); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
		short, err := l.Trim([]uint32{0, 2, 4, 7}, 40<<10)
		if err != nil {
			t.Fatal(err)
		}
		again := parsed(t, short)
		if err := again.SecureBoot(); !errors.Is(err, want) {
			t.Errorf("%s, trimmed: %v", name, err)
		}
		for _, n := range []uint32{0, 2, 4, 7} {
			if err := again.Replay(n, pcr(n, l.Events)); err != nil {
				t.Errorf("%s, trimmed: %v", name, err)
			}
		}
	}
	if _, err := Parse(read(t, "sha1-only")); !errors.Is(err, ErrSHA1) {
		t.Errorf("a log for TPM 1.2: %v", err)
	}
	sha1 := Append(nil, nil)
	i := bytes.Index(sha1, []byte(specID)) + len(specID) + 12
	sha1[i], sha1[i+2] = algSHA1, 20
	if _, err := Parse(sha1); !errors.Is(err, ErrSHA1) {
		t.Errorf("a log with SHA-1 digests only: %v", err)
	}
}

func TestMalformed(t *testing.T) {
	good := Append(nil, boot(1))
	parsed(t, good)
	ends := map[int]bool{len(Append(nil, nil)): true}
	for i := range boot(1) {
		ends[len(Append(nil, boot(1)[:i]))] = true
	}
	for n := range good {
		if _, err := Parse(good[:n]); (err == nil) != ends[n] {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	if _, err := Parse(make([]byte, MaxSize+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a long one: %v", err)
	}
}

func TestReplay(t *testing.T) {
	events := boot(1)
	l := parsed(t, Append(nil, events))
	for _, n := range []uint32{0, 2, 4, 7} {
		want := pcr(n, events)
		if err := l.Replay(n, want); err != nil {
			t.Error(err)
		}
		want[31] ^= 1
		if err := l.Replay(n, want); !errors.Is(err, ErrReplay) {
			t.Errorf("another value: %v", err)
		}
	}
	// If a TPM was started from locality 3, PCR 0 starts with that value. No other PCR does, and the event must come first.
	started := Event{PCR: 0, Type: noAction, Data: append([]byte(startup), 3)}
	first := [32]byte{31: 3}
	for _, e := range events {
		if e.PCR == 0 {
			first = sha256.Sum256(append(first[:], e.Digest[:]...))
		}
	}
	if err := (&Log{Events: slices.Insert(slices.Clone(events), 0, started)}).Replay(0, first); err != nil {
		t.Error(err)
	}
	if err := (&Log{Events: append(slices.Clone(events), started)}).Replay(0, pcr(0, events)); err != nil {
		t.Errorf("said too late: %v", err)
	}
}

// TestSecureBoot tries what an attacker who controls a machine can do to make secure boot look on.
func TestSecureBoot(t *testing.T) {
	on := measure(7, variableConfig, variable("SecureBoot", []byte{1}))
	hide := func(e Event) Event { e.Data = nil; e.Type = action; return e }
	off := boot(0)
	for name, events := range map[string][]Event{
		"off":                       off,
		"absent":                    boot(),
		"extended later":            append(slices.Clone(off), on),
		"extended later, hidden":    append([]Event{off[0], hide(off[1])}, append(slices.Clone(off[2:]), on)...),
		"before the true one":       slices.Insert(slices.Clone(off), 1, on),
		"only other data":           {{PCR: 7, Type: variableConfig, Digest: off[1].Digest, Data: on.Data}, measure(7, separator, make([]byte, 4))},
		"nothing separates":         {on},
		"nothing at all":            nil,
		"nothing before the end":    {measure(7, separator, make([]byte, 4)), on},
		"behind what is not known":  {hide(measure(7, action, []byte("what?"))), on, measure(7, separator, make([]byte, 4))},
		"in debug mode":             {on, hide(measure(7, action, []byte("UEFI Debug Mode"))), measure(7, separator, make([]byte, 4))},
		"the firmware failed":       {on, measure(7, separator, []byte{1, 0, 0, 0})},
		"in another PCR":            {measure(6, variableConfig, variable("SecureBoot", []byte{1})), measure(7, separator, make([]byte, 4))},
		"said to be no action":      {{PCR: 7, Type: noAction, Digest: on.Digest, Data: on.Data}, measure(7, separator, make([]byte, 4))},
		"another vendor's variable": {measure(7, variableConfig, append(make([]byte, 16), on.Data[16:]...)), measure(7, separator, make([]byte, 4))},
	} {
		if err := parsed(t, Append(nil, events)).SecureBoot(); !errors.Is(err, ErrSecureBoot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, events := range map[string][]Event{
		"on": boot(1),
		// What follows the separator is not from the firmware, and changes nothing.
		"on, and extended later": append(boot(1), measure(7, variableConfig, variable("SecureBoot", []byte{0}))),
		"behind what is known":   append([]Event{measure(7, action, []byte("DMA Protection Disabled"))}, boot(1)...),
	} {
		if err := parsed(t, Append(nil, events)).SecureBoot(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTrim checks that the longest data are dropped until the rest fits, and that the log still replays to the same values.
func TestTrim(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Event {
			return measure(rapid.Uint32Range(0, 9).Draw(t, "pcr"), rapid.SampledFrom([]uint32{1, noAction, separator}).Draw(t, "type"),
				make([]byte, rapid.IntRange(0, 6000).Draw(t, "size")))
		}), 0, 40).Draw(t, "events")
		size := rapid.IntRange(0, 20_000).Draw(t, "room")
		l := &Log{Events: slices.Clone(events)}
		out, err := l.Trim([]uint32{0, 7}, size)
		if err != nil {
			if !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		again, err := Parse(out)
		if err != nil || len(out) > size {
			t.Fatalf("%d bytes for %d: %v", len(out), size, err)
		}
		for _, n := range []uint32{0, 7} {
			if err := again.Replay(n, pcr(n, events)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(Append(nil, boot(1)[:3]))
	f.Add(Append(nil, boot(0)[8:]))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := Parse(raw)
		if err != nil {
			if l != nil || !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSHA1) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%v, %v", l, err)
			}
			return
		}
		on := l.SecureBoot()
		value := pcr(7, l.Events)
		if err := l.Replay(7, value); err != nil {
			t.Fatal(err)
		}
		again, err := Parse(Append(nil, l.Events))
		if err != nil || len(again.Events) != len(l.Events) || again.Replay(7, value) != nil || (again.SecureBoot() == nil) != (on == nil) {
			t.Fatalf("written and read it is another one: %v", err)
		}
		if _, err := l.Trim([]uint32{0, 2, 4, 7}, 4096); err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	})
}
