// Package explain tells why a policy allows a connection or what is missing for it, and how two policies differ in the
// connections that they allow. It does no I/O.
//
//	Book.Find("ann@example.com") ──► Ends ──► Book.Explain(from, to, tcp, 443) ──► Answers: the rule, or the nearest ones
//	Diff(old, new) ──► Changes: connections gained and lost, by who may open what to whom
//
// The verdicts are those of acl/compile; this package only explains them.
package explain
