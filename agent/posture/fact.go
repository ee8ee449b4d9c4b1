package posture

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxFacts limits how many facts a machine has.
const MaxFacts = 64

// maxText is the maximum length of a fact's value or note.
const maxText = 256

// Reading is what a collector found out.
type Reading struct {
	Name string
	// Value is empty if it could not be found out, or if there is nothing that it could be about.
	Value string
	// Note tells the user of this machine what the value is about, or why there is none. It is not sent anywhere.
	Note string
}

// Fact is a fact known about this machine.
type Fact struct {
	Reading
	// Since is when the value last changed, Checked when it was last read; both count from when the machine was switched on.
	Since, Checked time.Duration
	// TTL is how long the value holds after it was read, or after the coordinator last heard from this machine.
	TTL time.Duration
}

// clean returns a text trimmed; empty if it cannot be a fact.
func clean(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}

// brief turns a text into a note.
func brief(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(strings.TrimSpace(s), ""))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText-3], "") + "..."
	}
	return s
}

func known(name, value, note string) Reading {
	r := Reading{name, clean(value), brief(note)}
	if r.Value == "" && r.Note == "" {
		r.Note = "the system does not say"
	}
	return r
}

func unknown(name, why string) Reading { return Reading{Name: name, Note: brief(why)} }

func yesNo(name string, yes bool, note string) Reading {
	if yes {
		return known(name, "true", note)
	}
	return known(name, "false", note)
}
