package acl

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tailscale/hujson"
)

// Bounds of a policy file.
const (
	MaxSize  = 1 << 20 // bytes
	maxDepth = 32      // of nested objects and arrays
	maxList  = 1 << 16 // entries of one list or object
	maxRules = 10_000  // acls, grants, deny and enforcement together
	maxTests = 1_000

	// maxWeight is a fraction of what a netmap may hold, since a node may be on both sides of all rules.
	maxWeight      = 16 << 20 // bytes
	partWeight     = 256
	selectorWeight = 32
	serviceWeight  = 16
)

// parser holds the state of reading a file.
type parser struct {
	src    []byte
	lines  []int // offset of the first byte of each line
	chars  []int // characters before each block of charBlock bytes
	policy *Policy
	diags  Diagnostics
	failed bool // there is an error among diags
	parts  int  // rules that the policy's rules become in netmaps
	weight int  // approximate size in bytes of these in a netmap
	full   bool // they are more than a netmap can carry, which has been reported
	// standing are the postures of rules that name none.
	standing []string
	// now is when the policy is to take effect; zero if it is in force already.
	now  time.Time
	sets map[string]struct{}
}

// value is a value in the file and its path.
type value struct {
	hujson.Value
	path string
}

// member is a key of an object and its value.
type member struct {
	key string
	at  int // offset of the key
	value
}

func newParser(name string, src []byte, now time.Time) *parser {
	p := &parser{src: src, now: now, lines: []int{0}, sets: map[string]struct{}{}, policy: &Policy{
		Name: name, Groups: map[string]Group{}, Hosts: map[string]Host{}, TagOwners: map[string]TagOwner{},
		IPSets: map[string]IPSet{}, Postures: map[string]Posture{},
	}}
	chars := 0
	for i, c := range src {
		if i%charBlock == 0 {
			p.chars = append(p.chars, chars)
		}
		if utf8.RuneStart(c) {
			chars++
		}
		if c == '\n' {
			p.lines = append(p.lines, i+1)
		}
	}
	return p
}

// pos converts an offset to a line and a column.
func (p *parser) pos(offset int) Pos {
	offset = min(offset, len(p.src))
	line := sort.SearchInts(p.lines, offset+1)
	return Pos{Line: line, Column: 1 + p.charsBefore(offset) - p.charsBefore(p.lines[line-1])}
}

// charBlock is the maximum number of bytes scanned to find a column, even in a file that is one long line.
const charBlock = 64

// charsBefore returns the number of characters before an offset.
func (p *parser) charsBefore(offset int) int {
	if len(p.chars) == 0 {
		return 0
	}
	block := min(offset/charBlock, len(p.chars)-1)
	n := p.chars[block]
	for _, c := range p.src[block*charBlock : offset] {
		if utf8.RuneStart(c) {
			n++
		}
	}
	return n
}

func (p *parser) place(v value) Place { return Place{Pos: p.pos(v.StartOffset), Path: v.path} }

// errorf reports an error at a value.
func (p *parser) errorf(v value, format string, args ...any) {
	p.report(Error, p.place(v), format, args...)
}

// keyPlace returns the place of the key of a member.
func (p *parser) keyPlace(m member) Place { return Place{Pos: p.pos(m.at), Path: m.path} }

// keyErrorf reports an error at the key of a member.
func (p *parser) keyErrorf(m member, format string, args ...any) {
	p.report(Error, p.keyPlace(m), format, args...)
}

func (p *parser) report(s Severity, at Place, format string, args ...any) {
	if len(p.diags) >= 10*maxDiagnostics && (s != Error || p.failed) {
		return // nobody reads that many, and the file may be hostile
	}
	p.failed = p.failed || s == Error
	p.diags = append(p.diags, Diagnostic{
		Severity: s, Line: at.Line, Column: at.Column, Path: at.Path, Message: fmt.Sprintf(format, args...),
	})
}

// root parses the syntax of the whole file. A syntax error is the only one reported, since what follows it cannot be trusted.
func (p *parser) root() (value, bool) {
	fail := func(offset int, format string, args ...any) (value, bool) {
		p.report(Error, Place{Pos: p.pos(offset)}, format, args...)
		return value{}, false
	}
	if at := invalidUTF8(p.src); at >= 0 {
		return fail(at, "the file is not UTF-8 here; save it as UTF-8")
	}
	if at := tooDeep(p.src); at >= 0 {
		return fail(at, "more than %d objects and lists in one another; no policy is that deep", maxDepth)
	}
	v, err := hujson.Parse(p.src)
	if err != nil {
		at, message := syntaxError(err, p.lines)
		return fail(at, "%s; correct the JSON here and check again", message)
	}
	return value{Value: v}, true
}

// syntaxError splits an error of hujson, which counts columns in bytes, into offset and message.
func syntaxError(err error, lines []int) (offset int, message string) {
	message = strings.TrimPrefix(err.Error(), "hujson: ")
	line, rest, ok1 := strings.Cut(strings.TrimPrefix(message, "line "), ", column ")
	column, rest, ok2 := strings.Cut(rest, ": ")
	l, err1 := strconv.Atoi(line)
	c, err2 := strconv.Atoi(column)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || l < 1 || l > len(lines) {
		return 0, plain(message, 160)
	}
	return lines[l-1] + c - 1, plain(rest, 160)
}

// plain truncates a text that may contain parts of the file, and makes it safe to print on a terminal.
func plain(s string, limit int) string {
	r := []rune(s)
	if len(r) > limit {
		r = append(r[:limit:limit], []rune("...")...)
	}
	for i := range r {
		if !unicode.IsPrint(r[i]) {
			r[i] = '?'
		}
	}
	return string(r)
}

func invalidUTF8(src []byte) int {
	if utf8.Valid(src) {
		return -1
	}
	for i := 0; i < len(src); {
		r, n := utf8.DecodeRune(src[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// tooDeep returns the offset of the first bracket nested deeper than maxDepth, or -1. It runs before the recursive parser.
func tooDeep(src []byte) int {
	depth := 0
	for i := 0; i < len(src); i++ {
		switch src[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return i
			}
		case '}', ']':
			depth--
		case '"':
			i = skipString(src, i)
		case '/':
			i = skipComment(src, i)
		}
	}
	return -1
}

// skipString returns the offset of the closing quote of the string that starts at i.
func skipString(src []byte, i int) int {
	for i++; i < len(src) && src[i] != '"'; i++ {
		if src[i] == '\\' {
			i++
		}
	}
	return i
}

// skipComment returns the offset of the last byte of the comment that starts at i, or i if there is none.
func skipComment(src []byte, i int) int {
	rest := src[i:]
	var end string
	switch {
	case bytes.HasPrefix(rest, []byte("//")):
		end = "\n"
	case bytes.HasPrefix(rest, []byte("/*")):
		end = "*/"
	default:
		return i
	}
	n := bytes.Index(rest[2:], []byte(end))
	if n < 0 {
		return len(src)
	}
	return i + 2 + n + len(end) - 1
}

// kindName returns the type of a value, for messages.
func kindName(v hujson.Value) string {
	switch v.Value.Kind() {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case 't', 'f':
		return "a boolean"
	}
	return "null"
}

// str reads a string.
func (p *parser) str(v value, want string) (string, bool) {
	lit, ok := v.Value.Value.(hujson.Literal)
	if !ok || lit.Kind() != '"' {
		p.errorf(v, "is %s; want %s", kindName(v.Value), want)
		return "", false
	}
	return lit.String(), true
}

// list reads an array.
func (p *parser) list(v value, want string) ([]value, bool) {
	arr, ok := v.Value.Value.(*hujson.Array)
	if !ok {
		p.errorf(v, "is %s; want %s", kindName(v.Value), want)
		return nil, false
	}
	if len(arr.Elements) > maxList {
		p.errorf(v, "has %d entries; at most %d are read", len(arr.Elements), maxList)
		return nil, false
	}
	out := make([]value, len(arr.Elements))
	for i, e := range arr.Elements {
		out[i] = value{Value: e, path: v.path + "[" + strconv.Itoa(i) + "]"}
	}
	return out, true
}

// object reads the members of an object. Duplicate keys are reported and left out.
func (p *parser) object(v value, want string) ([]member, bool) {
	obj, ok := v.Value.Value.(*hujson.Object)
	if !ok {
		p.errorf(v, "is %s; want %s", kindName(v.Value), want)
		return nil, false
	}
	if len(obj.Members) > maxList {
		p.errorf(v, "has %d keys; at most %d are read", len(obj.Members), maxList)
		return nil, false
	}
	seen := make(map[string]int, len(obj.Members))
	out := make([]member, 0, len(obj.Members))
	for _, om := range obj.Members {
		key := om.Name.Value.(hujson.Literal).String()
		m := member{key: key, at: om.Name.StartOffset, value: value{Value: om.Value, path: joinPath(v.path, key)}}
		if first, dup := seen[key]; dup {
			p.keyErrorf(m, "the key %s was given before, on line %d; keep one of the two", quote(key), p.pos(first).Line)
			continue
		}
		seen[key] = m.at
		out = append(out, m)
	}
	return out, true
}

// joinPath appends a key to a path: plainly if it is a word, else in brackets as in groups["group:eng"].
func joinPath(path, key string) string {
	plain := key != ""
	for _, c := range key {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_') {
			plain = false
		}
	}
	switch {
	case !plain || len(key) > 64:
		return path + "[" + quote(key) + "]"
	case path == "":
		return key
	}
	return path + "." + key
}
