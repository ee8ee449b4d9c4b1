package inventory

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// reader reads JSON one token at a time, so that unknown and duplicate keys are detected.
type reader struct {
	dec *json.Decoder
	src []byte
}

func newReader(src []byte) *reader {
	r := &reader{dec: json.NewDecoder(bytes.NewReader(src)), src: src}
	r.dec.UseNumber()
	return r
}

// wrong returns an error that names the current line.
func (r *reader) wrong(path, format string, args ...any) error {
	at := min(int(r.dec.InputOffset()), len(r.src))
	line := 1 + bytes.Count(r.src[:at], []byte("\n"))
	if path != "" {
		path += ": "
	}
	return fmt.Errorf("line %d: %s%s", line, path, fmt.Sprintf(format, args...))
}

func (r *reader) token(path string) (json.Token, error) {
	t, err := r.dec.Token()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, r.wrong(path, "the file ends too early")
	}
	if err != nil {
		return nil, r.wrong(path, "this is not JSON: %v", err)
	}
	return t, nil
}

// open reads the start of an object or a list.
func (r *reader) open(path string, delim json.Delim) error {
	t, err := r.token(path)
	if err != nil {
		return err
	}
	if t != delim {
		what := "an object"
		if delim == '[' {
			what = "a list"
		}
		return r.wrong(path, "want %s, not %s", what, kind(t))
	}
	return nil
}

// fields reads an object with a fixed set of keys.
func (r *reader) fields(path string, known map[string]func(path string) error) error {
	return r.members(path, func(key, path string) error {
		read, ok := known[key]
		if !ok {
			return r.wrong(path, "there is no such key; the keys here are %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		return read(path)
	})
}

// members reads an object with arbitrary keys, each at most once.
func (r *reader) members(path string, read func(key, path string) error) error {
	if err := r.open(path, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for r.dec.More() {
		t, err := r.token(path)
		if err != nil {
			return err
		}
		key, _ := t.(string) // the decoder allows only strings as keys
		at := short(key)
		if path != "" {
			at = path + "." + at
		}
		if seen[key] {
			return r.wrong(at, "the key is there twice")
		}
		seen[key] = true
		if err := read(key, at); err != nil {
			return err
		}
	}
	_, err := r.token(path)
	return err
}

func (r *reader) list(path string, most int, read func(path string) error) error {
	if err := r.open(path, '['); err != nil {
		return err
	}
	for i := 0; r.dec.More(); i++ {
		if i == most {
			return r.wrong(path, "more than %d of them", most)
		}
		if err := read(fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
	_, err := r.token(path)
	return err
}

func (r *reader) text(path string) (string, error) {
	s, err := r.optional(path)
	if err == nil && s == "" {
		err = r.wrong(path, "is empty")
	}
	return s, err
}

// optional reads a string that may be empty, which counts as absent.
func (r *reader) optional(path string) (string, error) {
	t, err := r.token(path)
	if err != nil {
		return "", err
	}
	s, ok := t.(string)
	switch {
	case !ok:
		return "", r.wrong(path, "want a string, not %s", kind(t))
	case len(s) > maxText:
		return "", r.wrong(path, "has %d bytes; at most %d fit", len(s), maxText)
	case strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f || c == utf8.RuneError }):
		return "", r.wrong(path, "%q has characters that no name has", short(s))
	}
	return s, nil
}

// texts reads a list of distinct strings.
func (r *reader) texts(path string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	err := r.list(path, maxList, func(path string) error {
		s, err := r.text(path)
		if err == nil && seen[s] {
			err = r.wrong(path, "%q is there twice", short(s))
		}
		seen[s] = true
		out = append(out, s)
		return err
	})
	return out, err
}

// scalar reads a string, a number or a boolean as the text that policies compare with.
func (r *reader) scalar(path string) (string, error) {
	t, err := r.token(path)
	if err != nil {
		return "", err
	}
	switch v := t.(type) {
	case string, json.Number, bool:
		if s := fmt.Sprint(v); len(s) <= maxText {
			return s, nil
		}
		return "", r.wrong(path, "at most %d bytes fit", maxText)
	}
	return "", r.wrong(path, "want a string, a number, true or false, not %s", kind(t))
}

func (r *reader) boolean(path string) (bool, error) {
	t, err := r.token(path)
	if err != nil {
		return false, err
	}
	is, ok := t.(bool)
	if !ok {
		return false, r.wrong(path, "want true or false, not %s", kind(t))
	}
	return is, nil
}

func kind(t json.Token) string {
	switch v := t.(type) {
	case json.Delim:
		if v == '[' {
			return "a list"
		}
		return "an object"
	case string:
		return fmt.Sprintf("%q", short(v))
	case nil:
		return "null"
	}
	return fmt.Sprint(t)
}

// short truncates text from the file for error messages.
func short(s string) string {
	const most = 64
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}
