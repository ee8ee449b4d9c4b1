package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// column is a column of a table. Cells wider than most are cut. Columns with most = 0 must come last; their cells are printed in
// full below the row, and in tables with such columns so are the cells that were cut.
type column struct {
	title string
	most  int
}

// The tables fit into 80 columns whatever they contain.
var (
	nodeColumns       = []column{{"NAME", 15}, {"WHO", 15}, {"ADDRESS", 15}, {"STATE", 11}, {"CERTIFIED", 16}}
	tokenColumns      = []column{{"ID", 14}, {"WHO", 21}, {"KIND", 8}, {"USES", 4}, {"STATE", 7}, {"UNTIL", 16}}
	factColumns       = []column{{"FACT", 23}, {"VALUE", 16}, {"FROM", 11}, {"AGE", 6}, {"UNTIL", 16}}
	routeColumns      = []column{{"ROUTE", 43}, {"OFFERED", 7}, {"APPROVED", 20}}
	roleColumns       = []column{{"USER", 40}, {"ROLES", 38}}
	historyColumns    = []column{{"VERSION", 7}, {"APPLIED", 16}, {"BY", 14}, {"STATE", 12}, {"COMMENT", 23}}
	unableColumns     = []column{{"NODE", 24}, {"PROGRAM", 16}, {"LACKS", 34}}
	auditColumns      = []column{{"RECORD", 6}, {"WHEN", 19}, {"WHO", 15}, {"WHAT", 17}, {"ABOUT", 15}, {"FROM", 0}, {"WHY", 0}}
	lockColumns       = []column{{"ID", 14}, {"ABOUT", 24}, {"NODES", 5}, {"UNTIL", 16}, {"BY", 13}, {"WHY", 0}}
	rootColumns       = []column{{"ROOT", 16}, {"STATE", 7}, {"KEY", 10}, {"SINCE", 16}, {"EXPIRES", 16}}
	candidateColumns  = []column{{"CODE", 9}, {"NAME", 12}, {"WHO", 12}, {"ATTESTED", 14}, {"FROM", 15}, {"WAITS", 8}}
	withheldColumns   = []column{{"NODE", 14}, {"WHO", 14}, {"CERTIFIED", 16}, {"LACKS", 0}}
	unadmittedColumns = []column{{"NODE", 14}, {"CERTIFIED", 16}, {"SINCE", 9}, {"LACKS", 0}}

	laggardColumns = []column{{"NODE", 20}, {"STATE", 9}, {"ENFORCES", 15}, {"SHOULD", 15}, {"SINCE", 8}}
)

// table prints rows in columns.
func (p *program) table(columns []column, rows [][]string) {
	var below []column
	if i := slices.IndexFunc(columns, func(c column) bool { return c.most == 0 }); i >= 0 {
		columns, below = columns[:i], columns[i:]
	}
	sizes := make([]int, len(columns))
	for i, c := range columns {
		sizes[i] = utf8.RuneCountInString(c.title)
		for _, row := range rows {
			sizes[i] = max(sizes[i], min(utf8.RuneCountInString(row[i]), c.most))
		}
	}
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	paint := p.paint()
	p.row(sizes, titles, paint.dim)
	for _, row := range rows {
		p.row(sizes, row[:len(columns)], paint.state)
		if len(below) > 0 {
			p.below(columns, row, below)
		}
	}
}

// below prints the cells that do not fit into their column, and the columns that have no width.
func (p *program) below(columns []column, row []string, more []column) {
	for i, c := range columns {
		if utf8.RuneCountInString(row[i]) > c.most {
			p.wrapped("    "+strings.ToLower(c.title)+"  ", []string{row[i]}, "")
		}
	}
	for i, c := range more {
		if text := row[len(columns)+i]; text != "" {
			p.wrapped("    "+strings.ToLower(c.title)+"  ", strings.Fields(text), "")
		}
	}
}

func (p *program) row(sizes []int, cells []string, paint func(string) string) {
	var b strings.Builder
	for i, cell := range cells {
		if n := utf8.RuneCountInString(cell); n > sizes[i] {
			cell = string([]rune(cell)[:sizes[i]-1]) + "~"
		}
		gap := strings.Repeat(" ", sizes[i]-utf8.RuneCountInString(cell)+2)
		b.WriteString(paint(cell) + gap)
	}
	fmt.Fprintln(p.out, strings.TrimRight(b.String(), " "))
}

// painter colours text if the output is a terminal.
type painter bool

func (p *program) paint() painter {
	f, ok := p.out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false
	}
	_, off := p.lookup("NO_COLOR")
	return painter(!off)
}

func (on painter) wrap(code, s string) string {
	if !on || s == "" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (on painter) dim(s string) string { return on.wrap("2", s) }

// state colours words that describe a state.
func (on painter) state(s string) string {
	switch s {
	case "connected", "valid", "current":
		return on.wrap("32", s)
	case "revoked", "expired", "locked", "quarantined":
		return on.wrap("31", s)
	}
	return s
}

// fields prints name-value pairs, omitting empty values. Values too long for the line are wrapped.
func (p *program) fields(pairs ...string) {
	longest := 0
	for i := 0; i < len(pairs); i += 2 {
		longest = max(longest, len(pairs[i]))
	}
	paint := p.paint()
	for i := 0; i < len(pairs); i += 2 {
		name, value, gap := pairs[i], pairs[i+1], strings.Repeat(" ", longest-len(pairs[i])+2)
		switch {
		case value == "":
		case len(name)+len(gap)+utf8.RuneCountInString(value) > 80:
			p.wrapped(name+gap, strings.Fields(value), "")
		default:
			fmt.Fprintln(p.out, paint.dim(name)+gap+paint.state(value))
		}
	}
}

// stamp formats a time for JSON; it is empty for 0.
func stamp(seconds int64) string {
	if seconds == 0 {
		return ""
	}
	return time.Unix(seconds, 0).UTC().Format(time.RFC3339)
}

// clock formats a time for people; it is empty for 0.
func clock(seconds int64) string {
	if seconds == 0 {
		return ""
	}
	return time.Unix(seconds, 0).Local().Format("2006-01-02 15:04")
}

// span formats a duration in its largest unit.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d d", int(d.Hours()/24))
}

// ago formats the time since a moment; it is empty for 0.
func ago(seconds int64) string {
	if seconds == 0 {
		return ""
	}
	return span(time.Since(time.Unix(seconds, 0)))
}
