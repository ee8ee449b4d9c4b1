// Package posture finds out what the coordinator's policy may ask of this machine.
package posture

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxText is how long a fact's value may be.
const maxText = 256

// OSVersion is the release of the operating system's kernel, such as 6.12.9-amd64; empty where it cannot be found out, which
// the policy sees as not set.
func OSVersion() string { return clean(osVersion()) }

// clean leaves of a text what may be a fact, or nothing.
func clean(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}
