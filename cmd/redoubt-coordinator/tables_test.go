package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestTablesFit(t *testing.T) {
	for _, columns := range [][]column{nodeColumns, tokenColumns, laggardColumns, candidateColumns} {
		var out bytes.Buffer
		p := &program{out: &out}
		wide := make([]string, len(columns))
		for i := range wide {
			wide[i] = strings.Repeat("ä", 100)
		}
		p.table(columns, [][]string{wide, make([]string, len(columns))})
		narrow(t, out.String())
		if lines := strings.Split(out.String(), "\n"); !strings.HasPrefix(lines[0], columns[0].title) || !strings.Contains(lines[1], "ä~") {
			t.Error(out.String())
		}
	}
}

// TestNothingIsLostBelow checks that tables with columns below the rows show every cell in full.
func TestNothingIsLostBelow(t *testing.T) {
	for _, columns := range [][]column{auditColumns, lockColumns, withheldColumns, unadmittedColumns} {
		var out bytes.Buffer
		p := &program{out: &out}
		row := make([]string, len(columns))
		for i, c := range columns {
			row[i] = strings.Repeat(string(rune('a'+i)), min(c.most+1, 50))
		}
		row[len(row)-1] = strings.Repeat("why not ", 30)
		p.table(columns, [][]string{row, make([]string, len(columns))})
		narrow(t, out.String())
		for _, cell := range row[:len(row)-1] {
			if len(cell) < 50 && !strings.Contains(out.String(), "  "+cell+"\n") {
				t.Errorf("%q is lost:\n%s", cell, out.String())
			}
		}
		if n := strings.Count(out.String(), "not"); n != 30 {
			t.Errorf("%d of 30 words:\n%s", n, out.String())
		}
	}
}

func TestFields(t *testing.T) {
	var out bytes.Buffer
	(&program{out: &out}).fields("name", "db", "user", "", "node key", "k")
	if want := "name      db\nnode key  k\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	(&program{out: &out}).fields("lock", strings.Repeat("why not ", 15), "name", "db")
	narrow(t, out.String())
	if got := out.String(); strings.Count(got, "not") != 15 || !strings.Contains(got, "\n      why") {
		t.Errorf("a long value: %s", got)
	}
}

func TestPresence(t *testing.T) {
	hour := time.Now().Add(-time.Hour).Unix()
	for want, n := range map[string]*redoubtv1.Node{
		"revoked":   {State: "revoked", Connected: true},
		"connected": {State: "active", Connected: true, LastSeen: hour},
		"not seen":  {State: "active"},
		"away 1 h":  {State: "active", LastSeen: hour},
	} {
		if got := presence(n); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0 s": -time.Second, "59 s": 59 * time.Second, "59 min": 59*time.Minute + 59*time.Second, "47 h": 47 * time.Hour, "10 d": 240 * time.Hour,
	} {
		if got := span(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
