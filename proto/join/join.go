// Package join encodes join codes, the text that `redoubt up` takes: everything a machine needs to find its coordinators, to
// authenticate them, and to be admitted.
//
//	redoubt1-BASE64URL      of these fields, without padding:
//
//	1  version: 1
//	2  length of what follows, without the checksum, big endian
//	1  number of URLs, 1 to 8
//	   for each: 1 byte length, URL (https://HOST[:PORT])
//	32 SHA-256 of the public key of the mesh's root
//	32 seed of the token's Ed25519 key; the coordinator keeps only the public key
//	4  checksum: the first bytes of the SHA-256 of everything before it
//
// The checksum catches characters lost while copying; it is no security measure. Errors of Parse never contain any part of the
// text: what was pasted may be a secret even if it is not a valid join code.
package join

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Limits and layout of a join code. Sizes are in bytes unless noted.
const (
	MaxLength = 2048 // characters
	MaxURLs   = 8
	maxURL    = 255

	family   = "redoubt"
	prefix   = family + "1-"
	version  = 1
	fixed    = 3                  // version and length
	tail     = 32 + key.TokenSize // root and secret
	checksum = 4
)

// The reasons why a text is not a valid join code.
var (
	ErrTooLong   = errors.New("join code: too long to be one; paste the code alone")
	ErrTruncated = errors.New("join code: its end is missing; copy the whole code")
	ErrVersion   = errors.New("join code: made by a newer program; update this one")
	ErrGarbage   = errors.New("join code: not one, or damaged; copy it again, it starts with " + prefix)
)

// Code is a join code.
type Code struct {
	// URLs are the coordinators' URLs, in the order in which to try them.
	URLs []string
	// Root is the SHA-256 of the root certificate's SubjectPublicKeyInfo: a coordinator with another root is not of this mesh.
	Root [32]byte
	// Secret proves to the coordinator that the machine was invited.
	Secret key.TokenSecret
}

var encoding = base64.RawURLEncoding.Strict()

// Encode returns the join code as text.
func (c Code) Encode() (string, error) {
	if len(c.URLs) == 0 || len(c.URLs) > MaxURLs {
		return "", fmt.Errorf("join code: %d coordinator URLs, want 1 to %d", len(c.URLs), MaxURLs)
	}
	if c.Secret.IsZero() {
		return "", errors.New("join code: no secret")
	}
	b := []byte{version, 0, 0, byte(len(c.URLs))}
	for _, u := range c.URLs {
		if err := CheckURL(u); err != nil {
			return "", err
		}
		b = append(b, byte(len(u)))
		b = append(b, u...)
	}
	secret := c.Secret.Expose()
	b = append(b, c.Root[:]...)
	b = append(b, secret[:]...)
	binary.BigEndian.PutUint16(b[1:], uint16(len(b)-fixed))
	sum := sha256.Sum256(b)
	s := prefix + encoding.EncodeToString(append(b, sum[:checksum]...))
	if len(s) > MaxLength {
		return "", fmt.Errorf("join code: %d characters, at most %d; use shorter URLs or fewer", len(s), MaxLength)
	}
	return s, nil
}

// Parse parses the output of Encode. It ignores surrounding white space.
func Parse(s string) (Code, error) {
	s = strings.TrimSpace(s)
	if len(s) > MaxLength {
		return Code{}, ErrTooLong
	}
	text, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return Code{}, prefixError(s)
	}
	body, err := unwrap(text)
	if err != nil {
		return Code{}, err
	}
	return parseBody(body)
}

// prefixError distinguishes codes of other versions and truncated codes from other text.
func prefixError(s string) error {
	rest, ok := strings.CutPrefix(s, family)
	if !ok {
		if s != "" && strings.HasPrefix(family, s) {
			return ErrTruncated
		}
		return ErrGarbage
	}
	number, _, dash := strings.Cut(rest, "-")
	if !dash && (number == "" || number == strconv.Itoa(version)) {
		return ErrTruncated
	}
	if n, err := strconv.ParseUint(number, 10, 16); dash && err == nil && n > version && number[0] != '0' {
		return ErrVersion
	}
	return ErrGarbage
}

// unwrap decodes the text and removes length and checksum.
func unwrap(text string) ([]byte, error) {
	if strings.ContainsFunc(text, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	}) {
		return nil, ErrGarbage
	}
	b, err := encoding.DecodeString(text)
	if err != nil {
		// A cut can leave non-zero bits at the end: decode what precedes them, to learn the length.
		b, _ = encoding.DecodeString(text[:len(text)/4*4])
		if short(b) {
			return nil, ErrTruncated
		}
		return nil, ErrGarbage
	}
	if len(b) > 0 && b[0] != version {
		return nil, ErrGarbage
	}
	if short(b) {
		return nil, ErrTruncated
	}
	end := fixed + int(binary.BigEndian.Uint16(b[1:]))
	if len(b) != end+checksum {
		return nil, ErrGarbage
	}
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:checksum], b[end:]) {
		return nil, ErrGarbage
	}
	return b[fixed:end], nil
}

// short reports whether b ends before the length that it states.
func short(b []byte) bool {
	return len(b) < fixed || b[0] == version && len(b) < fixed+int(binary.BigEndian.Uint16(b[1:]))+checksum
}

func parseBody(b []byte) (Code, error) {
	if len(b) < 1+tail || b[0] == 0 || b[0] > MaxURLs {
		return Code{}, ErrGarbage
	}
	n, urls, rest := int(b[0]), b[1:len(b)-tail], b[len(b)-tail:]
	var c Code
	for range n {
		if len(urls) == 0 || len(urls) < 1+int(urls[0]) {
			return Code{}, ErrGarbage
		}
		u := string(urls[1 : 1+int(urls[0])])
		urls = urls[1+len(u):]
		if CheckURL(u) != nil {
			return Code{}, ErrGarbage
		}
		c.URLs = append(c.URLs, u)
	}
	if len(urls) != 0 {
		return Code{}, ErrGarbage
	}
	c.Root = [32]byte(rest)
	secret, err := key.ParseTokenSecret(rest[32:])
	if err != nil {
		return Code{}, ErrGarbage
	}
	c.Secret = secret
	return c, nil
}

// CheckURL returns an error unless s is the URL of a coordinator: https://HOST[:PORT] and nothing else.
func CheckURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxURL || u.Scheme != "https" || u.String() != s || s != "https://"+u.Host ||
		!validHost(u.Hostname()) || !validPort(u) {
		return fmt.Errorf("coordinator URL %q: want https://HOST or https://HOST:PORT", s)
	}
	return nil
}

func validHost(h string) bool {
	if a, err := netip.ParseAddr(h); err == nil {
		return a.Zone() == "" && !a.IsUnspecified()
	}
	for l := range strings.SplitSeq(h, ".") {
		if l == "" || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
			return false
		}
	}
	return true
}

func validPort(u *url.URL) bool {
	p := u.Port()
	if p == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	n, err := strconv.ParseUint(p, 10, 16)
	return err == nil && n != 0 && strconv.FormatUint(n, 10) == p
}
