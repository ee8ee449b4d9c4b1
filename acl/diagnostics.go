package acl

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity distinguishes what makes a policy unusable from what merely deserves a look.
type Severity uint8

// Errors make a policy unusable; warnings do not.
const (
	Error Severity = iota + 1
	Warning
)

func (s Severity) String() string {
	switch s {
	case Error:
		return "error"
	case Warning:
		return "warning"
	}
	return "?"
}

// Diagnostic is one message about a place in a policy file.
type Diagnostic struct {
	Severity Severity
	Line     int    // from 1
	Column   int    // from 1, in characters
	Path     string // such as acls[2].dst[0]; empty for the file as a whole
	Message  string // what is wrong and what to do
}

// String returns a text such as "12:5: error: acls[0].src[1]: message".
func (d Diagnostic) String() string {
	where := ""
	if d.Path != "" {
		where = d.Path + ": "
	}
	return fmt.Sprintf("%d:%d: %s: %s%s", d.Line, d.Column, d.Severity, where, d.Message)
}

// Diagnostics are sorted by place.
type Diagnostics []Diagnostic

// HasErrors reports whether the policy cannot be used.
func (ds Diagnostics) HasErrors() bool {
	return slices.ContainsFunc(ds, func(d Diagnostic) bool { return d.Severity == Error })
}

// Format formats the diagnostics for people, one per line, each prefixed with the name of the file as compilers do:
//
//	policy.hujson:12:5: error: acls[0].src[1]: group "group:eng" is not defined; ...
func (ds Diagnostics) Format(name string) string {
	var b strings.Builder
	for _, d := range ds {
		fmt.Fprintf(&b, "%s:%s\n", name, d)
	}
	return b.String()
}

// Sort sorts diagnostics in the order of the file.
func (ds Diagnostics) Sort() {
	slices.SortStableFunc(ds, func(a, b Diagnostic) int {
		return cmp.Or(
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Severity, b.Severity), cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message),
		)
	})
}

// maxDiagnostics limits the output for a hopeless file.
const maxDiagnostics = 1000

// finish sorts the diagnostics and truncates them, with a note if any are left out.
func (ds Diagnostics) finish() Diagnostics {
	ds.Sort()
	if len(ds) <= maxDiagnostics {
		return ds
	}
	cut := len(ds) - maxDiagnostics
	worst := Warning
	if ds[maxDiagnostics:].HasErrors() {
		worst = Error
	}
	at := ds[maxDiagnostics]
	return append(ds[:maxDiagnostics:maxDiagnostics], Diagnostic{
		Severity: worst, Line: at.Line, Column: at.Column,
		Message: fmt.Sprintf("%d more; correct the ones above and check again", cut),
	})
}

// quote quotes a text of the file and truncates it for messages.
func quote(s string) string {
	const limit = 64
	if r := []rune(s); len(r) > limit {
		s = string(r[:limit]) + "..."
	}
	return fmt.Sprintf("%q", s)
}
