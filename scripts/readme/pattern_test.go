package readme

import (
	"fmt"
	"regexp"
	"strings"
)

// kind is a kind of text that varies between runs.
type kind struct {
	shown  *regexp.Regexp // how README.md shows it
	real   string         // how a program prints it
	strict bool           // one in README.md stands for a particular real one
}

// kinds are tried in this order at each position of a line.
var kinds = []kind{
	{regexp.MustCompile(`^redoubt1-[\w-]+…[\w-]*`), `redoubt1-[\w-]+`, true},
	{regexp.MustCompile(`^m[0-9a-v]{26}\b`), `m[0-9a-v]{26}`, true},       // a mesh
	{regexp.MustCompile(`^[nt][0-9a-v]{13}\b`), `[nt][0-9a-v]{13}`, true}, // a node, a token
	{regexp.MustCompile(`^\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?Z?`), `\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?`, false},
	{regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+:\d+`), `(?:\d+\.\d+\.\d+\.\d+|\[[0-9a-f:]+\]):\d+`, false}, // an endpoint, any family
	{regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+(/\d+)?`), `\d+\.\d+\.\d+\.\d+(?:/\d+)?`, true},
	{regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f:]+(/\d+)?`), `[0-9a-f]{4}:[0-9a-f:]+(?:/\d+)?`, true},
	{regexp.MustCompile(`^[0-9a-f]{8,}\b`), `[0-9a-f]{8,}`, true},
	{regexp.MustCompile(`^\d+(\.\d+)? ([KMGT]i)?B\b`), `\d+(?:\.\d+)? (?:[KMGT]i)?B`, false},
	{regexp.MustCompile(`^\d+[smhd]\d*m?\b( ago)?`), `\d+[smhd]\d*m?(?: ago)?`, false},
	{regexp.MustCompile(`^\d+(\.\d+)?`), `\d+(?:\.\d+)?`, false},
	{regexp.MustCompile(`^…`), `.*`, false},
	{regexp.MustCompile(`^\s+`), `\s+`, false},
}

// world maps what README.md shows to its real counterpart.
type world map[string]string

// real substitutes the real texts in a command.
func (w world) real(command string) string {
	for shown, is := range w {
		command = strings.ReplaceAll(command, shown, is)
	}
	return command
}

// compare looks for each shown line in the output, in order, and learns what stands for what.
func (w world) compare(want, got string) error {
	learned := world{}
	lines := strings.Split(strings.TrimRight(got, "\n"), "\n")
	next := 0
	for l := range strings.Lines(strings.TrimRight(want, "\n")) {
		l = strings.TrimSpace(l)
		if l == "" || l == "…" {
			continue
		}
		at := next
		for ; at < len(lines); at++ {
			if w.line(l, lines[at], learned) {
				break
			}
		}
		if at == len(lines) {
			return fmt.Errorf("README.md shows\n\t%s\nbut this was printed:\n%s", l, got)
		}
		next = at + 1
	}
	for shown, is := range learned {
		w[shown] = is
	}
	return nil
}

// line compares one line, using w and learned; on a match it extends learned.
func (w world) line(want, got string, learned world) bool {
	re, names := w.pattern(want, learned)
	m := re.FindStringSubmatch(strings.TrimSpace(got))
	if m == nil {
		return false
	}
	for i, shown := range names {
		if before, ok := learned[shown]; ok && before != m[i+1] {
			return false
		}
		learned[shown] = m[i+1]
	}
	return true
}

// pattern returns the regular expression for a shown line, and what its groups stand for.
func (w world) pattern(want string, learned world) (re *regexp.Regexp, names []string) {
	var b strings.Builder
	for rest := want; rest != ""; {
		shown, is, strict := first(rest, b.Len() > 0 && inWord(want[:len(want)-len(rest)]))
		rest = rest[len(shown):]
		known, ok := w[shown]
		if !ok {
			known, ok = learned[shown]
		}
		switch {
		case strict && ok:
			b.WriteString(regexp.QuoteMeta(known))
		case strict:
			b.WriteString("(" + is + ")")
			names = append(names, shown)
		default:
			b.WriteString(is)
		}
	}
	return regexp.MustCompile(`^` + b.String() + `$`), names
}

// first returns what a text begins with, and what may really be there. Within a word only numbers differ.
func first(text string, inWord bool) (shown, is string, strict bool) {
	for _, k := range kinds {
		if m := k.shown.FindString(text); m != "" && !(inWord && k.strict) {
			return m, k.real, k.strict
		}
	}
	r := []rune(text)[0]
	return string(r), regexp.QuoteMeta(string(r)), false
}

func inWord(before string) bool {
	c := before[len(before)-1]
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
