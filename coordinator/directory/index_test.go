package directory

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestAmong(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SliceOfNDistinct(rapid.IntRange(0, 500), 0, 200, rapid.ID)
		x := newIndex[int, string]()
		has := map[int]string{}
		for _, k := range keys.Draw(rt, "there") {
			v := string(rune('a' + k))
			put(&x, k, v)
			has[k] = v
		}
		asked := slices.Sorted(slices.Values(keys.Draw(rt, "asked")))
		var got []int
		for k, v := range x.among(asked) {
			if v != has[k] {
				rt.Fatalf("%d: %q, want %q", k, v, has[k])
			}
			got = append(got, k)
		}
		if !slices.Equal(got, asked) {
			rt.Fatalf("asked for %d, got %d", asked, got)
		}
	})
}
