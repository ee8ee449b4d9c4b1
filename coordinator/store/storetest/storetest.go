// Package storetest is the contract of store.Store as tests that every engine must pass.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

// Engine is the implementation under test.
type Engine struct {
	// Open returns an empty store that is closed when the test ends.
	Open func(t testing.TB) store.Store
	// Restore returns a store with what Backup wrote.
	Restore func(t testing.TB, r io.Reader) store.Store
}

// Run tests the whole contract.
func Run(t *testing.T, e Engine) {
	for name, test := range map[string]func(*testing.T, Engine){
		"GetPutDelete":         testGetPutDelete,
		"Conflict":             testConflict,
		"List":                 testList,
		"Limits":               testLimits,
		"ValuesAreCopies":      testCopies,
		"Watch":                testWatch,
		"WatchIsCompacted":     testCompacted,
		"WatchEnds":            testWatchEnds,
		"Backup":               testBackup,
		"Close":                testClose,
		"CloseWhileWriting":    testCloseWhileWriting,
		"Context":              testContext,
		"OneOfManyWins":        testRace,
		"AgainstASimpleModel":  testModel,
		"EmptyTransactionAsks": testEmpty,
	} {
		t.Run(name, func(t *testing.T) { test(t, e) })
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func testGetPutDelete(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	if _, err := s.Get(ctx, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Get of nothing: %v, want ErrNotFound", err)
	}
	r1 := must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a", []byte("1")), store.Put("b", []byte("2"))}))
	r2 := must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a", []byte("3")), store.Delete("b"), store.Delete("c")}))
	if r1 != 1 || r2 != 2 {
		t.Errorf("revisions %d and %d, want 1 and 2", r1, r2)
	}
	want := store.Entry{Key: "a", Value: []byte("3"), Created: r1, Modified: r2}
	if diff := cmp.Diff(want, must[store.Entry](t)(s.Get(ctx, "a"))); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Get(ctx, "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of what was deleted: %v, want ErrNotFound", err)
	}
	r3 := must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("b", nil)}))
	got := must[store.Entry](t)(s.Get(ctx, "b"))
	if got.Created != r3 || got.Modified != r3 || len(got.Value) != 0 {
		t.Errorf("an empty value put after a delete: %+v", got)
	}
}

func testConflict(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	r := must[uint64](t)(s.Txn(ctx, []store.Cmp{{Key: "a"}}, []store.Op{store.Put("a", []byte("1"))}))
	for _, c := range []store.Cmp{{Key: "a"}, {Key: "a", Modified: r + 1}, {Key: "b", Modified: r}} {
		_, err := s.Txn(ctx, []store.Cmp{{Key: "a", Modified: r}, c}, []store.Op{store.Put("x", nil)})
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("%+v: %v, want ErrConflict", c, err)
		}
	}
	if _, err := s.Get(ctx, "x"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a transaction in conflict wrote something: %v", err)
	}
	if _, rev, err := s.List(ctx, ""); err != nil || rev != r {
		t.Errorf("revision %d after conflicts (%v), want %d", rev, err, r)
	}
	must[uint64](t)(s.Txn(ctx, []store.Cmp{{Key: "a", Modified: r}, {Key: "b"}}, []store.Op{store.Put("a", []byte("2"))}))
}

func testList(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	var ops []store.Op
	for _, k := range []string{"node/b", "node/a", "nodes", "node/a/1", "m", "node"} {
		ops = append(ops, store.Put(k, []byte(k)))
	}
	must[uint64](t)(s.Txn(ctx, nil, ops))
	for prefix, want := range map[string][]string{
		"":      {"m", "node", "node/a", "node/a/1", "node/b", "nodes"},
		"node/": {"node/a", "node/a/1", "node/b"},
		"z":     nil,
		"a":     nil,
		"\xff":  nil,
	} {
		list, rev, err := s.List(ctx, prefix)
		if err != nil || rev != 1 {
			t.Fatalf("List: revision %d, %v", rev, err)
		}
		var got []string
		for _, e := range list {
			got = append(got, e.Key)
			if string(e.Value) != e.Key {
				t.Errorf("value of %s is %q", e.Key, e.Value)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", prefix, diff)
		}
		last, err := s.Last(ctx, prefix)
		if len(want) == 0 {
			if !errors.Is(err, store.ErrNotFound) {
				t.Errorf("the last of %q: %+v, %v", prefix, last, err)
			}
		} else if diff := cmp.Diff(list[len(list)-1], last); diff != "" || err != nil {
			t.Errorf("the last of %q: %v %s", prefix, err, diff)
		}
	}
}

func testLimits(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	for name, ops := range map[string][]store.Op{
		"no key":       {store.Put("", nil)},
		"long key":     {store.Put(strings.Repeat("k", store.MaxKey+1), nil)},
		"NUL in key":   {store.Put("a\x00b", nil)},
		"long value":   {store.Put("a", make([]byte, store.MaxValue+1))},
		"twice":        {store.Put("a", nil), store.Delete("a")},
		"too many":     make([]store.Op, store.MaxOps+1),
		"good and bad": {store.Put("good", nil), store.Put("", nil)},
	} {
		if _, err := s.Txn(ctx, nil, ops); err == nil {
			t.Errorf("%s: was taken", name)
		}
	}
	if list, rev, err := s.List(ctx, ""); err != nil || rev != 0 || len(list) != 0 {
		t.Errorf("refused transactions left %d entries at revision %d, %v", len(list), rev, err)
	}
	must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put(strings.Repeat("k", store.MaxKey), make([]byte, store.MaxValue))}))
}

func testCopies(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	in := []byte("in")
	must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a", in)}))
	in[0] = 'X'
	out := must[store.Entry](t)(s.Get(ctx, "a"))
	must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a", []byte("other"))}))
	if string(out.Value) != "in" {
		t.Errorf("an entry changed after it was read, or what was put after it was written: %q", out.Value)
	}
}

func testWatch(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a/1", []byte("1")), store.Put("b", nil)}))
	must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("b", nil)}))
	go func() {
		must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Delete("a/1"), store.Put("a/2", []byte("2"))}))
	}()
	var got []store.Batch
	for b, err := range s.Watch(ctx, "a/", 1) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, b); len(got) == 2 {
			break
		}
	}
	want := []store.Batch{
		{Revision: 1, Events: []store.Event{{Entry: store.Entry{Key: "a/1", Value: []byte("1"), Created: 1, Modified: 1}}}},
		{Revision: 3, Events: []store.Event{
			{Entry: store.Entry{Key: "a/1", Created: 1, Modified: 3}, Deleted: true},
			{Entry: store.Entry{Key: "a/2", Value: []byte("2"), Created: 3, Modified: 3}},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func testCompacted(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	for range 5 {
		must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a", make([]byte, store.MaxValue))}))
	}
	for _, err := range s.Watch(ctx, "", 1) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("watch from a revision that is gone: %v, want ErrCompacted", err)
		}
	}
	for b, err := range s.Watch(ctx, "", 5) {
		if err != nil || b.Revision != 5 {
			t.Fatalf("watch from the last revision: %d, %v", b.Revision, err)
		}
		break
	}
}

func testWatchEnds(t *testing.T, e Engine) {
	s := e.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	watch := func(ctx context.Context) {
		var last error
		for _, err := range s.Watch(ctx, "", 1) {
			last = err
		}
		ended <- last
	}
	go watch(ctx)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v, want the context's error", err)
	}
	go watch(t.Context())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, store.ErrClosed) {
		t.Errorf("watch ended with %v, want ErrClosed", err)
	}
}

func testBackup(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	for i := range 100 {
		must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put(fmt.Sprint("k", i%7), fmt.Append(nil, i))}))
	}
	want, rev, err := s.List(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if err := s.Backup(ctx, &file); err != nil {
		t.Fatal(err)
	}
	must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("later", nil)}))
	got, gotRev, err := e.Restore(t, &file).List(ctx, "")
	if err != nil || gotRev < rev {
		t.Errorf("restored revision %d (%v), want at least %d", gotRev, err, rev)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func testClose(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err1 := s.Get(ctx, "a")
	_, _, err2 := s.List(ctx, "")
	_, err3 := s.Txn(ctx, nil, []store.Op{store.Put("a", nil)})
	for _, err := range []error{err1, err2, err3, s.Backup(ctx, io.Discard)} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("after Close: %v, want ErrClosed", err)
		}
	}
}

// testCloseWhileWriting checks that transactions in flight finish and later ones are refused.
func testCloseWhileWriting(t *testing.T, e Engine) {
	s := e.Open(t)
	var writers sync.WaitGroup
	started := make(chan struct{}, 4)
	for w := range cap(started) {
		writers.Go(func() {
			for i := 0; ; i++ {
				_, err := s.Txn(context.Background(), nil, []store.Op{store.Put(fmt.Sprint(w, "/", i), nil)})
				if err != nil {
					if !errors.Is(err, store.ErrClosed) {
						t.Errorf("a write beside Close: %v", err)
					}
					return
				}
				if i == 0 {
					started <- struct{}{}
				}
			}
		})
	}
	for range cap(started) {
		<-started
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	writers.Wait()
}

func testContext(t *testing.T, e Engine) {
	s := e.Open(t)
	must[uint64](t)(s.Txn(t.Context(), nil, []store.Op{store.Put("a", nil)}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err1 := s.Get(ctx, "a")
	_, _, err2 := s.List(ctx, "")
	_, err3 := s.Txn(ctx, nil, []store.Op{store.Put("a", nil)})
	_, err4 := s.Last(ctx, "")
	for _, err := range []error{err1, err2, err3, err4, s.Backup(ctx, io.Discard)} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
	}
}

func testRace(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	const many = 16
	errs := make([]error, many)
	var wait sync.WaitGroup
	for i := range many {
		wait.Go(func() {
			_, errs[i] = s.Txn(ctx, []store.Cmp{{Key: "one"}}, []store.Op{store.Put("one", fmt.Append(nil, i)), store.Put(fmt.Sprint("by", i), nil)})
		})
	}
	wait.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, store.ErrConflict) {
			t.Error(err)
		}
	}
	if list, _, _ := s.List(ctx, "by"); won != 1 || len(list) != 1 {
		t.Errorf("%d transactions won and %d wrote, want one", won, len(list))
	}
}

func testEmpty(t *testing.T, e Engine) {
	s, ctx := e.Open(t), t.Context()
	r := must[uint64](t)(s.Txn(ctx, nil, []store.Op{store.Put("a", nil)}))
	if got, err := s.Txn(ctx, []store.Cmp{{Key: "a", Modified: r}}, nil); err != nil || got != r {
		t.Errorf("a transaction without writes: %d, %v; want revision %d", got, err, r)
	}
	if _, err := s.Txn(ctx, []store.Cmp{{Key: "a"}}, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a comparison that does not hold: %v, want ErrConflict", err)
	}
}

// testModel runs random transactions on the engine and on a map, and then watches them all from the beginning.
func testModel(t *testing.T, e Engine) {
	rapid.Check(t, func(rt *rapid.T) {
		s, ctx := e.Open(t), t.Context()
		defer func() {
			if err := s.Close(); err != nil {
				rt.Error(err)
			}
		}()
		model, revision := map[string]store.Entry{}, uint64(0)
		key := rapid.SampledFrom([]string{"a", "a/b", "b", "c"})
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			var compare []store.Cmp
			for range rapid.IntRange(0, 1).Draw(rt, "comparisons") {
				compare = append(compare, store.Cmp{Key: key.Draw(rt, "key"), Modified: rapid.Uint64Range(0, revision).Draw(rt, "modified")})
			}
			var ops []store.Op
			for _, k := range rapid.SliceOfNDistinct(key, 1, 3, rapid.ID).Draw(rt, "keys") {
				ops = append(ops, store.Op{Key: k, Value: rapid.SliceOf(rapid.Byte()).Draw(rt, "value"), Delete: rapid.Bool().Draw(rt, "delete")})
			}
			holds := !slices.ContainsFunc(compare, func(c store.Cmp) bool { return model[c.Key].Modified != c.Modified })
			got, err := s.Txn(ctx, compare, ops)
			if holds != (err == nil) {
				rt.Fatalf("comparisons hold: %v, transaction: %v", holds, err)
			}
			if !holds {
				continue
			}
			if revision++; got != revision {
				rt.Fatalf("revision %d, want %d", got, revision)
			}
			for _, op := range ops {
				modelOp(model, op, revision)
			}
		}
		list, _, err := s.List(ctx, "")
		if err != nil {
			rt.Fatal(err)
		}
		compareModel(rt, "listed", model, list)
		compareModel(rt, "watched", model, replay(rt, ctx, s, revision))
	})
}

func modelOp(model map[string]store.Entry, op store.Op, revision uint64) {
	old, exists := model[op.Key]
	if op.Delete {
		delete(model, op.Key)
		return
	}
	e := store.Entry{Key: op.Key, Value: op.Value, Created: revision, Modified: revision}
	if exists {
		e.Created = old.Created
	}
	model[op.Key] = e
}

func compareModel(t *rapid.T, what string, model map[string]store.Entry, list []store.Entry) {
	if len(list) != len(model) {
		t.Fatalf("%s %d entries, want %d", what, len(list), len(model))
	}
	for _, e := range list {
		if w := model[e.Key]; w.Created != e.Created || w.Modified != e.Modified || !bytes.Equal(w.Value, e.Value) {
			t.Fatalf("%s %+v, want %+v", what, e, w)
		}
	}
}

// replay watches everything from the first revision on and returns the resulting entries.
func replay(t *rapid.T, ctx context.Context, s store.Store, revision uint64) (list []store.Entry) {
	if revision == 0 {
		return nil
	}
	// This write makes sure that there is a last event to see.
	if _, err := s.Txn(ctx, nil, []store.Op{store.Put("end", nil)}); err != nil {
		t.Fatal(err)
	}
	state := map[string]store.Entry{}
	for b, err := range s.Watch(ctx, "", 1) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			if state[e.Key] = e.Entry; e.Deleted {
				delete(state, e.Key)
			}
		}
		if _, ok := state["end"]; ok {
			break
		}
	}
	delete(state, "end")
	for _, e := range state {
		list = append(list, e)
	}
	return list
}
