package directory

import (
	"cmp"
	"iter"

	"github.com/tidwall/btree"
)

// index is a sorted map. It is a value: a copy of it is another index, and changing one is never seen in the other. What both
// have in common they share.
type index[K cmp.Ordered, V any] struct{ tree *btree.Map[K, V] }

// indexDegree keeps the nodes of the trees small, since a change copies those on its way down.
const indexDegree = 16

func newIndex[K cmp.Ordered, V any]() index[K, V] {
	return index[K, V]{btree.NewMap[K, V](indexDegree)}
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

// near is how many entries are stepped over before one is searched for.
const near = 8

// among yields each of some sorted keys with what is under it, or nothing. A key that is near the one before it costs a few
// steps and no search.
func (x index[K, V]) among(keys []K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		at := x.tree.Iter()
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
}

func put[K cmp.Ordered, V any](x *index[K, V], k K, v V) {
	x.tree = x.tree.Copy()
	x.tree.Set(k, v)
}

func drop[K cmp.Ordered, V any](x *index[K, V], k K) {
	if _, there := x.tree.Get(k); there {
		x.tree = x.tree.Copy()
		x.tree.Delete(k)
	}
}

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
