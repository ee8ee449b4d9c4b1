package pathmsg_test

import (
	"errors"
	"testing"

	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// A box that nobody uses is kept and accepts nothing twice, unless thousands of others came after it.
func TestBoxesAreKept(t *testing.T) {
	own, theirs := newKey(t), newKey(t)
	all := pathmsg.NewBoxes(own)
	get := func(k key.PathPublic) *pathmsg.Box {
		b, err := all.Get(k, pathmsg.Ends{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	msg := newBox(t, theirs, own).Seal(nil, pathmsg.Pong{})
	first := get(theirs.Public())
	if _, err := first.Open(msg); err != nil {
		t.Fatal(err)
	}
	if get(theirs.Public()) != first {
		t.Error("a second box for the same key")
	}
	all.Release(theirs.Public(), pathmsg.Ends{})
	all.Release(theirs.Public(), pathmsg.Ends{})
	pass := func(n int) {
		for range n {
			k := newKey(t).Public()
			get(k)
			all.Release(k, pathmsg.Ends{})
		}
	}
	pass(pathmsg.MaxIdle - 1)
	if _, err := get(theirs.Public()).Open(msg); !errors.Is(err, pathmsg.ErrReplay) {
		t.Errorf("later: %v", err)
	}
	pass(pathmsg.MaxIdle)
	if get(theirs.Public()) != first {
		t.Error("a box in use was forgotten")
	}
	all.Release(theirs.Public(), pathmsg.Ends{})
	all.Release(theirs.Public(), pathmsg.Ends{})
	pass(pathmsg.MaxIdle)
	if get(theirs.Public()) == first {
		t.Error("every box is kept")
	}
}
