package directory

import (
	"cmp"
	"iter"

	"github.com/tidwall/btree"
)

// index is a sorted map. It is a value: a copy of it is another index, and changing one is never seen in the other. What both
// have in common they share.
//
// The tree is behind an interface for the sake of the compiler alone: each package that sees its type compiles the whole of
// it anew, for each kind of key and value.
type index[K cmp.Ordered, V any] struct{ tree sorted[K, V] }

// sorted is a tree that does not change.
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

// indexDegree keeps the nodes of the trees small, since a change copies those on its way down.
const indexDegree = 16

func newIndex[K cmp.Ordered, V any]() index[K, V] {
	return index[K, V]{tree[K, V]{m: btree.NewMap[K, V](indexDegree)}}
}

// Get answers what is under a key.
func (x index[K, V]) Get(k K) (V, bool) { return x.tree.Get(k) }

// Len is the number of entries.
func (x index[K, V]) Len() int { return x.tree.Len() }

// first answers the entry that sorts first.
func (x index[K, V]) first() (K, V, bool) { return x.tree.Min() }

// all yields all entries, sorted.
func (x index[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { x.tree.Scan(yield) }
}

// from yields the entries from a key on, sorted.
func (x index[K, V]) from(k K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { x.tree.Ascend(k, yield) }
}

// among yields each of some sorted keys with what is under it, or nothing.
func (x index[K, V]) among(keys []K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { x.tree.among(keys, yield) }
}

func put[K cmp.Ordered, V any](x *index[K, V], k K, v V) { x.tree = x.tree.with(k, v) }

func drop[K cmp.Ordered, V any](x *index[K, V], k K) { x.tree = x.tree.without(k) }

// values yields what is in an index, sorted by its keys.
func values[K cmp.Ordered, V any](x index[K, V]) iter.Seq[V] {
	return func(yield func(V) bool) {
		for _, v := range x.all() {
			if !yield(v) {
				return
			}
		}
	}
}

// tree is the one implementation of sorted.
type tree[K cmp.Ordered, V any] struct{ m *btree.Map[K, V] }

func (t tree[K, V]) Get(k K) (V, bool)                    { return t.m.Get(k) }
func (t tree[K, V]) Len() int                             { return t.m.Len() }
func (t tree[K, V]) Min() (K, V, bool)                    { return t.m.Min() }
func (t tree[K, V]) Scan(yield func(K, V) bool)           { t.m.Scan(yield) }
func (t tree[K, V]) Ascend(from K, yield func(K, V) bool) { t.m.Ascend(from, yield) }

// near is how many entries are stepped over before one is searched for.
const near = 8

// among takes a few steps and no search for a key that is near the one before it.
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
