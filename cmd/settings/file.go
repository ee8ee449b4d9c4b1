package settings

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/tailscale/hujson"
)

// maxFile limits the size of a settings file in bytes; real ones have a few hundred.
const maxFile = 1 << 20

// entry is one key of the file.
type entry struct {
	key          string
	values       []string // exactly one, unless list is set
	list         bool
	bare         string // "bool" or "number" if the value is not a string
	line, column int
}

// parse reads one object whose values are strings, numbers, booleans or lists of those.
func parse(path string, r io.Reader) ([]entry, error) {
	src, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if len(src) > maxFile {
		return nil, fmt.Errorf("%s: more than %d bytes: not a file with settings", path, maxFile)
	}
	root, err := hujson.Parse(src)
	if err != nil {
		return nil, syntaxError(path, err)
	}
	at := func(offset int) (int, int) {
		before := src[:offset]
		return bytes.Count(before, []byte("\n")) + 1, offset - bytes.LastIndexByte(before, '\n')
	}
	object, ok := root.Value.(*hujson.Object)
	if !ok {
		line, column := at(root.StartOffset)
		return nil, fmt.Errorf("%s:%d:%d: want an object: {\"name-of-flag\": value, ...}", path, line, column)
	}
	var entries []entry
	seen := make(map[string]bool)
	for i := range object.Members {
		name, value := &object.Members[i].Name, &object.Members[i].Value
		e := entry{}
		e.line, e.column = at(name.StartOffset)
		literal, ok := name.Value.(hujson.Literal)
		if !ok {
			return nil, fmt.Errorf("%s:%d:%d: want a name", path, e.line, e.column)
		}
		e.key = literal.String()
		if seen[e.key] {
			return nil, fmt.Errorf("%s:%d:%d: %q is there twice", path, e.line, e.column, e.key)
		}
		seen[e.key] = true
		if err := e.read(value.Value); err != nil {
			line, column := at(value.StartOffset)
			return nil, fmt.Errorf("%s:%d:%d: %q: %w", path, line, column, e.key, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// syntaxError moves the position that the parser reports to the front, where all other errors have it.
func syntaxError(path string, err error) error {
	var line, column int
	cause := errors.Unwrap(err)
	if n, _ := fmt.Sscanf(err.Error(), "hujson: line %d, column %d:", &line, &column); n < 2 || cause == nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return fmt.Errorf("%s:%d:%d: %w", path, line, column, cause)
}

func (e *entry) read(v hujson.ValueTrimmed) error {
	if array, ok := v.(*hujson.Array); ok {
		e.list = true
		for i := range array.Elements {
			text, _, err := scalar(array.Elements[i].Value)
			if err != nil {
				return err
			}
			e.values = append(e.values, text)
		}
		return nil
	}
	text, bare, err := scalar(v)
	e.values, e.bare = []string{text}, bare
	return err
}

func scalar(v hujson.ValueTrimmed) (text, bare string, err error) {
	literal, ok := v.(hujson.Literal)
	if !ok {
		return "", "", errors.New("want a text, a number, true, false or a list of those")
	}
	switch literal.Kind() {
	case '"':
		err = json.Unmarshal(literal, &text)
		return text, "", err
	case '0':
		return string(literal), "number", nil
	case 't', 'f':
		return string(literal), "bool", nil
	}
	return "", "", errors.New("null is no value: leave the key out")
}
