package main

import (
	"fmt"
	"strings"
)

// width is the maximum length of a line.
const width = 80

// printer prints the story for a person.
type printer struct{ colour bool }

const (
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (p printer) paint(code, s string) string {
	if !p.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p printer) title(s string) {
	fmt.Println(p.paint(bold, s))
}

func (p printer) note(s string) {
	for _, l := range wrap(s, width-2) {
		fmt.Println("  " + p.paint(dim, l))
	}
}

// step prints the heading of a step.
func (p printer) step(n int, s string) {
	fmt.Printf("\n%s %s\n", p.paint(bold+";"+cyan, fmt.Sprintf("%d.", n)), p.paint(bold, s))
}

// typed prints a command as a person would type it.
func (p printer) typed(host, line string) {
	prompt := fmt.Sprintf("  %-8s $ ", host)
	fmt.Println(p.paint(dim, prompt) + fit(line, width-len(prompt)))
}

// said prints the output of a command.
func (p printer) said(s string) {
	for line := range strings.Lines(strings.TrimRight(s, "\n")) {
		fmt.Println("             " + fit(strings.TrimRight(line, "\n"), width-13))
	}
}

// good prints something that was required and happened.
func (p printer) good(format string, args ...any) {
	for i, l := range wrap(fmt.Sprintf(format, args...), width-4) {
		mark := "  "
		if i == 0 {
			mark = p.paint(green, "✓ ")
		}
		fmt.Println("  " + mark + l)
	}
}

// refused prints something that had to be refused and was.
func (p printer) refused(format string, args ...any) {
	for i, l := range wrap(fmt.Sprintf(format, args...), width-4) {
		mark := "  "
		if i == 0 {
			mark = p.paint(yellow, "✗ ")
		}
		fmt.Println("  " + mark + l)
	}
}

func (p printer) fail(err error) {
	fmt.Printf("\n%s %v\n", p.paint(bold+";"+red, "The demo failed:"), err)
}

func (p printer) done(s string) { fmt.Printf("\n%s\n", p.paint(bold+";"+green, s)) }

func fit(s string, n int) string {
	r := []rune(s)
	if len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func wrap(s string, n int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > n {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
