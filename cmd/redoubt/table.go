package main

import (
	"fmt"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
)

// width is the number of columns that every output fits into.
const width = 80

// palette colours text if it is true.
type palette bool

func (p palette) paint(colour, s string) string {
	if !p || s == "" {
		return s
	}
	return lipgloss.NewStyle().Foreground(lipgloss.Color(colour)).Render(s)
}

func (p palette) good(s string) string { return p.paint("2", s) }
func (p palette) bad(s string) string  { return p.paint("1", s) }
func (p palette) warn(s string) string { return p.paint("3", s) }
func (p palette) dim(s string) string  { return p.paint("8", s) }

// least is the minimum width of a column that is narrowed.
const least = 8

// table lays out rows in columns; the first row is the header. If they are too wide, the widest of the columns in shrink are
// narrowed.
func table(rows [][]string, shrink ...int) string {
	if len(rows) == 0 {
		return ""
	}
	var b strings.Builder
	widths := columns(rows, shrink)
	for _, r := range rows {
		line := ""
		for i, cell := range r {
			cell = fit(cell, widths[i])
			line += cell
			if i < len(r)-1 {
				line += strings.Repeat(" ", widths[i]-lipgloss.Width(cell)+gap)
			}
		}
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// folded is like table, but wraps long cells onto further lines instead of cutting them.
func folded(rows [][]string, shrink ...int) string {
	if len(rows) == 0 {
		return ""
	}
	widths := columns(rows, shrink)
	var lines [][]string
	for _, r := range rows {
		parts := make([][]string, len(r))
		most := 1
		for i, cell := range r {
			parts[i] = fold(cell, widths[i])
			most = max(most, len(parts[i]))
		}
		for l := range most {
			line := make([]string, len(r))
			for i := range r {
				if l < len(parts[i]) {
					line[i] = parts[i][l]
				}
			}
			lines = append(lines, line)
		}
	}
	return table(lines)
}

// fold wraps plain text at width w: between words, and within words that are longer than a line.
func fold(s string, w int) (lines []string) {
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && lipgloss.Width(line)+1+lipgloss.Width(word) <= w {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		r := []rune(word)
		for ; len(r) > w; r = r[w:] {
			lines = append(lines, string(r[:w]))
		}
		line = string(r)
	}
	return append(lines, line)
}

// gap is the space between two columns of a table.
const gap = 2

// columns returns the widths of the columns of a table.
func columns(rows [][]string, shrink []int) []int {
	widths := make([]int, len(rows[0]))
	total := gap * (len(widths) - 1)
	for i := range widths {
		for _, r := range rows {
			widths[i] = max(widths[i], lipgloss.Width(r[i]))
		}
		total += widths[i]
	}
	for ; total > width; total-- {
		widest := -1
		for _, i := range shrink {
			if widths[i] > least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
	}
	return widths
}

// fit shortens plain text to width w.
func fit(s string, w int) string {
	if lipgloss.Width(s) <= w {
		return s
	}
	r := []rune(s)
	return string(r[:max(w-1, 0)]) + "…"
}

// wrap wraps a text at width; the first line begins with first, the others with indent.
func wrap(s, first, indent string) string {
	var b strings.Builder
	line := first
	empty := true
	for word := range strings.FieldsSeq(s) {
		if !empty && lipgloss.Width(line)+1+lipgloss.Width(word) > width {
			b.WriteString(line + "\n")
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line += word
		empty = false
	}
	b.WriteString(line + "\n")
	return b.String()
}

// age formats how long ago t was.
func age(now, t time.Time) string {
	if t.IsZero() || t.Unix() == 0 {
		return "never"
	}
	return span(now.Sub(t)) + " ago"
}

// span formats a duration in its largest unit, or in hours and minutes.
func span(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// size formats a number of bytes with one decimal of a binary unit.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n), -1
	for ; f >= unit && i < 4; i++ {
		f /= unit
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}
