package directory

import (
	"cmp"
	"iter"

	"github.com/tidwall/btree"
)

// index is a sorted map. It is a value: a copy is independent, and changes to one are never visible in the other. Copies share
// what they have in common.
//
// The tree is behind an interface only for the compiler's sake: otherwise every package that sees its type would recompile all
// of it for each pair of key and value types.
type index[K cmp.Ordered, V any] struct{ tree sorted[K, V] }

// sorted is an immutable tree.
type sorted[K cmp.Ordered, V any] interface {
	Get(k K) (V, bool)
	Len() int
	Min() (K, V, bool)
	Scan(yield func(K, V) bool)
	Ascend(from K, yield func(K, V) bool)
	among(keys []K, yield func(K, V) bool)
	with(k K, v V) sorted[K, V]
	without(k K) sorted[K, V]
}

// indexDegree keeps tree nodes small, since a change copies all nodes on its path.
const indexDegree = 16

func newIndex[K cmp.Ordered, V any]() index[K, V] {
	return index[K, V]{tree[K, V]{m: btree.NewMap[K, V](indexDegree)}}
}

// Get returns the value of a key.
func (x index[K, V]) Get(k K) (V, bool) { return x.tree.Get(k) }

// Len returns the number of entries.
func (x index[K, V]) Len() int { return x.tree.Len() }

// first returns the entry that sorts first.
func (x index[K, V]) first() (K, V, bool) { return x.tree.Min() }

// all yields all entries, sorted.
func (x index[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { x.tree.Scan(yield) }
}

// from yields the entries starting at k, sorted.
func (x index[K, V]) from(k K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { x.tree.Ascend(k, yield) }
}

// among yields each of the sorted keys with its value, or with the zero value if there is none.
func (x index[K, V]) among(keys []K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { x.tree.among(keys, yield) }
}

func put[K cmp.Ordered, V any](x *index[K, V], k K, v V) { x.tree = x.tree.with(k, v) }

func drop[K cmp.Ordered, V any](x *index[K, V], k K) { x.tree = x.tree.without(k) }

// values yields the values of an index, sorted by key.
func values[K cmp.Ordered, V any](x index[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range x.all() {
			if !yield(v) {
				return
			}
		}
	}
}

// tree is the only implementation of sorted.
type tree[K cmp.Ordered, V any] struct{ m *btree.Map[K, V] }

func (t tree[K, V]) Get(k K) (V, bool)                    { return t.m.Get(k) }
func (t tree[K, V]) Len() int                             { return t.m.Len() }
func (t tree[K, V]) Min() (K, V, bool)                    { return t.m.Min() }
func (t tree[K, V]) Scan(yield func(K, V) bool)           { t.m.Scan(yield) }
func (t tree[K, V]) Ascend(from K, yield func(K, V) bool) { t.m.Ascend(from, yield) }

// near is how many entries are stepped over before resorting to a search.
const near = 8

// among steps to a key that is close to the previous one instead of searching.
func (t tree[K, V]) among(keys []K, yield func(K, V) bool) {
	at := t.m.Iter()
	more := len(keys) > 0 && at.Seek(keys[0])
	for _, k := range keys {
		for range near {
			if !more || at.Key() >= k {
				break
			}
			more = at.Next()
		}
		if more && at.Key() < k {
			more = at.Seek(k)
		}
		var v V
		if more && at.Key() == k {
			v = at.Value()
		}
		if !yield(k, v) {
			return
		}
	}
}

func (t tree[K, V]) with(k K, v V) sorted[K, V] {
	changed := t.m.Copy()
	changed.Set(k, v)
	return tree[K, V]{m: changed}
}

func (t tree[K, V]) without(k K) sorted[K, V] {
	if _, there := t.m.Get(k); !there {
		return t
	}
	changed := t.m.Copy()
	changed.Delete(k)
	return tree[K, V]{m: changed}
}
