package cert

import (
	"fmt"
)

// Level is how the machine was attested when its certificate was issued.
type Level uint8

// The levels. The numbers appear in certificates and must not change.
const (
	LevelNone Level = iota
	LevelToken
	LevelX509
	LevelTPMUnverified
	LevelTPM
	LevelMeasured
)

var levels = []struct {
	name string
	rank int
}{
	LevelNone:          {"none", 0},
	LevelToken:         {"token", 1},
	LevelX509:          {"x509", 2},
	LevelTPMUnverified: {"tpm-unverified", 2},
	LevelTPM:           {"tpm", 3},
	LevelMeasured:      {"measured", 4},
}

// ParseLevel parses the output of String.
func ParseLevel(s string) (Level, error) {
	for l, x := range levels {
		if x.name == s {
			return Level(l), nil
		}
	}
	return LevelNone, fmt.Errorf("attestation level %q: want none, token, x509, tpm-unverified, tpm or measured", s[:min(len(s), 32)])
}

// Valid reports whether l is one of the levels above.
func (l Level) Valid() bool { return int(l) < len(levels) }

func (l Level) String() string {
	if !l.Valid() {
		return fmt.Sprintf("level(%d)", uint8(l))
	}
	return levels[l].name
}

// AtLeast reports whether l ranks at least as high as m. A TPM from an untrusted vendor ranks the same as a company certificate.
func (l Level) AtLeast(m Level) bool {
	return l.Valid() && m.Valid() && levels[l].rank >= levels[m].rank
}

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(b []byte) error {
	v, err := ParseLevel(string(b))
	if err == nil {
		*l = v
	}
	return err
}
