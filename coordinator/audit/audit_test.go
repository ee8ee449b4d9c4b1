package audit

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/redoubt-mesh/redoubt/coordinator/store"
)

var at = time.Date(2026, 8, 1, 12, 0, 0, 5, time.UTC)

// write appends records with numbers from to to, and returns the hash of the last.
func write(t testing.TB, s store.Store, from, to uint64, prev string) string {
	t.Helper()
	var ops []store.Op
	for n := from; n <= to; n++ {
		op, hash, err := Append(prev, Record{Number: n, At: at, By: "uid 0", Action: NodeRevoke, Subject: "n1", Reason: "stolen"})
		if err != nil {
			t.Fatal(err)
		}
		ops, prev = append(ops, op), hash
	}
	if _, err := s.Txn(t.Context(), nil, ops); err != nil {
		t.Fatal(err)
	}
	return prev
}

func numbers(list []Record) (ns []uint64) {
	for _, r := range list {
		ns = append(ns, r.Number)
	}
	return ns
}

func TestReadGoesBackwardsInPages(t *testing.T) {
	s := store.NewMemory()
	write(t, s, 1, 1000, "")
	for _, c := range []struct {
		before uint64
		limit  int
		first  uint64
		count  int
	}{
		{1001, 10, 1000, 10},
		{5000, 3, 1000, 3},
		{1000, 2, 999, 2},
		{513, 600, 512, 512},
		{257, 1, 256, 1},
		{1001, MaxPage, 1000, 1000},
		{2, 5, 1, 1},
		{1, 5, 0, 0},
		{0, 5, 0, 0},
	} {
		list, err := Read(t.Context(), s, c.before, 1000, c.limit, nil)
		if err != nil {
			t.Fatal(err)
		}
		var want []uint64
		for i := range c.count {
			want = append(want, c.first-uint64(i))
		}
		if diff := cmp.Diff(want, numbers(list)); diff != "" {
			t.Errorf("%d before %d: %s", c.limit, c.before, diff)
		}
	}
	for _, limit := range []int{0, -1, MaxPage + 1} {
		if _, err := Read(t.Context(), s, 10, 1000, limit, nil); err == nil {
			t.Errorf("a page of %d was answered", limit)
		}
	}
}

func TestReadTakesWhatIsAskedFor(t *testing.T) {
	s := store.NewMemory()
	write(t, s, 1, 600, "")
	list, err := Read(t.Context(), s, 601, 600, 5, func(r Record) (take, more bool) { return r.Number%100 == 0, r.Number > 250 })
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint64{600, 500, 400, 300}, numbers(list)); diff != "" {
		t.Error(diff)
	}
}

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	s := store.NewMemory()
	want := Record{
		Number: 7, Prev: "00", At: at, By: "uid 0", From: "admin socket", Action: TokenCreate, Subject: "t1", Name: "tag:db",
		User: "ann@example.com", Reason: "for the \"new\" rack <&>", Version: "1.7", Policy: 3,
	}
	op, _, err := Append("00", want)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Txn(t.Context(), nil, []store.Op{op}); err != nil {
		t.Fatal(err)
	}
	list, err := Read(t.Context(), s, 8, 7, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Record{want}, list); diff != "" {
		t.Error(diff)
	}
}

func TestTextsAreBounded(t *testing.T) {
	op, _, err := Append("", Record{Number: 1, At: at, Action: NodeEnroll, Name: strings.Repeat("ä\xff", 10000)})
	if err != nil {
		t.Fatal(err)
	}
	if len(op.Value) > 2*maxText+400 {
		t.Errorf("a record of %d bytes", len(op.Value))
	}
	if _, err := Parse(store.Entry{Key: op.Key, Value: op.Value}); err != nil {
		t.Error(err)
	}
}

func TestIncompleteRecordsAreRefused(t *testing.T) {
	for _, r := range []Record{{At: at, Action: "x"}, {Number: 1, Action: "x"}, {Number: 1, At: at}, {Number: 2, At: at, Action: "x"}} {
		if _, _, err := Append("", r); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
}

func FuzzParse(f *testing.F) {
	op, _, err := Append("", Record{Number: 1, At: at, By: "uid 0", Action: PolicyApply, Subject: "1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(op.Key, op.Value)
	f.Add("audit/1", []byte("{}"))
	f.Add("audit/000000000000000g", []byte(`{"v":2}`))
	f.Add(op.Key, []byte(`{"v":2,"number":1,"prev":"","at":"2026-08-01T12:00:00Z","by":"","action":"","subject":"","more":1,"hash":""}`))
	f.Add(op.Key, append(op.Value, '{', '}'))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		r, err := Parse(store.Entry{Key: key, Value: value})
		if err == nil && Key(r.Number) != key {
			t.Errorf("%q was read as record %d", key, r.Number)
		}
		var c Chain
		if r, err := c.Add(value); err == nil && (r.Number != 1 || c.Number() != 1 || len(c.Hash()) != 64) {
			t.Errorf("a chain begins with record %d, %q", r.Number, c.Hash())
		}
	})
}

func FuzzParseCheckpoint(f *testing.F) {
	p, err := testSigner().Seal(9, "ab", at)
	if err != nil {
		f.Fatal(err)
	}
	b, err := p.Line()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"v":1,"mesh":"","number":1,"hash":"","at":"2026-08-01T12:00:00Z","key":"","signature":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCheckpoint(b)
		if err == nil && (c.Number != 9 || c.Hash != "ab") && string(c.Key) == string(testSigner().Public()) {
			t.Errorf("%s: taken, and was never signed", b)
		}
	})
}
