package posture

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxFacts bounds how many facts a machine has.
const MaxFacts = 64

// maxText is how long a fact's value, or a note, may be.
const maxText = 256

// Reading is what a collector found out.
type Reading struct {
	Name string
	// Value is empty where it could not be found out, or where there is nothing that it could be about.
	Value string
	// Note says to the person at this machine what the value is about, or why there is none. It goes nowhere else.
	Note string
}

// Fact is what is known of this machine.
type Fact struct {
	Reading
	// Since is when the value became what it is, Checked when it was read last, both since the machine was switched on.
	Since, Checked time.Duration
	// TTL is how long the value holds after it was read, or after the coordinator heard of this machine last.
	TTL time.Duration
}

// clean leaves of a text what may be a fact, or nothing.
func clean(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}

// brief makes a note of a text.
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
