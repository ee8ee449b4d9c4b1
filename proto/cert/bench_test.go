package cert_test

import (
	"crypto/rand"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

func BenchmarkVerifyNode(b *testing.B) {
	w := newWorld(b)
	v := w.verifier(b)
	chain := w.chain(w.issue(b))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.PeerNode(chain, start); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseNode(b *testing.B) {
	der := newWorld(b).issue(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := cert.ParseNode(der); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIssueNode(b *testing.B) {
	w := newWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := w.intermediate.IssueNode(rand.Reader, w.node); err != nil {
			b.Fatal(err)
		}
	}
}
