package acl

import (
	"fmt"
	"strings"
	"testing"
)

// megabyte returns a policy of the largest size that is accepted.
func megabyte() []byte {
	var b strings.Builder
	b.WriteString("{\"tagOwners\": {\"tag:web\": [], \"tag:db\": []},\n\"groups\": {\n")
	for i := 0; b.Len() < MaxSize*6/10; i++ {
		fmt.Fprintf(&b, "  \"group:g%d\": [\"ann%d@example.com\", \"bob%d@example.com\", \"cat%d@example.com\"],\n", i, i, i, i)
	}
	b.WriteString("},\n\"grants\": [\n")
	for i := 0; b.Len() < MaxSize-200; i++ {
		fmt.Fprintf(&b, "  {\"src\": [\"group:g%d\"], \"dst\": [\"tag:web\", \"tag:db\"], \"ip\": [\"tcp:%d\"]}, // rule %d\n", i, 1+i, i)
	}
	b.WriteString("]}\n")
	return []byte(b.String())
}

func BenchmarkParse(b *testing.B) {
	src := megabyte()
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if p, diags := Parse("megabyte", src); p == nil {
			b.Fatal(diags[:1].Format("megabyte"))
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	src := megabyte()
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		if p, _ := Check("megabyte", src, fuzzTime); p == nil {
			b.Fatal("errors")
		}
	}
}
