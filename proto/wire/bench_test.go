package wire_test

import (
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/wire"
)

func BenchmarkNetmap(b *testing.B) {
	nm := large()
	b.ReportAllocs()
	for b.Loop() {
		var a wire.NetmapAssembler
		for _, p := range wire.FromNetmap(nm) {
			if _, _, err := a.Add(p); err != nil {
				b.Fatal(err)
			}
		}
	}
}
