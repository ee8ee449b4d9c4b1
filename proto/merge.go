package proto

import (
	"cmp"
	"fmt"
	"slices"
)

func peerKey(p **Peer) NodeID    { return (*p).ID }
func barredKey(b *Barred) NodeID { return b.ID }
func setKey(s *Set) string       { return s.Name }
func ruleKey(r *Rule) string     { return r.Key }
func idKey(id *NodeID) NodeID {
	return *id
}

// walk visits two sorted lists side by side: items with the same key as pairs, and items in one list only with nil for the other.
func walk[T any, K cmp.Ordered](a, b []T, key func(*T) K, visit func(x, y *T)) {
	for len(a) > 0 || len(b) > 0 {
		var order int
		switch {
		case len(a) == 0:
			order = 1
		case len(b) == 0:
			order = -1
		default:
			order = cmp.Compare(key(&a[0]), key(&b[0]))
		}
		switch {
		case order < 0:
			visit(&a[0], nil)
			a = a[1:]
		case order > 0:
			visit(nil, &b[0])
			b = b[1:]
		default:
			visit(&a[0], &b[0])
			a, b = a[1:], b[1:]
		}
	}
}

// edit is a change to the entry of one key in a sorted list.
type edit[T any, K cmp.Ordered] struct {
	key  K
	kind editKind
	put  T                  // of an upsert
	with func(T) (T, error) // of a change
}

type editKind uint8

const (
	editUpsert editKind = iota // the entry may exist or not
	editRemove                 // it must exist
	editChange                 // it must exist
)

func upsert[T any, K cmp.Ordered](key K, v T) edit[T, K] {
	return edit[T, K]{key: key, kind: editUpsert, put: v}
}

func remove[T any, K cmp.Ordered](key K) edit[T, K] {
	return edit[T, K]{key: key, kind: editRemove}
}

func change[T any, K cmp.Ordered](key K, with func(T) (T, error)) edit[T, K] {
	return edit[T, K]{key: key, kind: editChange, with: with}
}

type edits[T any, K cmp.Ordered] []edit[T, K]

// apply returns the edited list, made in one pass; without edits it returns the old one.
func (es edits[T, K]) apply(what string, old []T, key func(*T) K) ([]T, error) {
	if len(es) == 0 {
		return old, nil
	}
	slices.SortStableFunc(es, func(a, b edit[T, K]) int { return cmp.Compare(a.key, b.key) })
	out := make([]T, 0, len(old)+len(es))
	for i, e := range es {
		if i > 0 && es[i-1].key == e.key {
			return nil, invalid("delta names %s %s twice", what, name(e.key))
		}
		at, there := slices.BinarySearchFunc(old, e.key, func(t T, k K) int { return cmp.Compare(key(&t), k) })
		if !there && e.kind != editUpsert {
			return nil, invalid("delta changes or removes %s %s, which is not there", what, name(e.key))
		}
		out = append(out, old[:at]...)
		old = old[at:]
		switch e.kind {
		case editUpsert:
			out = append(out, e.put)
		case editChange:
			v, err := e.with(old[0])
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		if there {
			old = old[1:]
		}
	}
	return append(out, old...), nil
}

// name formats a key for an error message.
func name(key any) string {
	if s, ok := key.(string); ok {
		return fmt.Sprintf("%q", shorten(s))
	}
	return fmt.Sprint(key)
}
