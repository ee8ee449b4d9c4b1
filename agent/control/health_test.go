package control

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/wire"
)

// told describes what the outbox has for the coordinator.
func told(t *testing.T, o *outbox) string {
	t.Helper()
	frames, err := o.take(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for r := strings.NewReader(string(frames)); r.Len() > 0; {
		frame, err := wire.ReadFrame(r, nil, wire.MaxFrame)
		if err != nil {
			t.Fatal(err)
		}
		up, err := wire.DecodeUp(frame)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range up.GetPosture().GetFacts() {
			out = append(out, strings.TrimPrefix(f.GetName(), "posture:")+"="+f.GetValue())
		}
		if up.GetPosture().GetWhole() {
			out = append(out, "whole")
		}
	}
	return strings.Join(out, " ")
}

func one(name, value string) []Fact { return []Fact{{"posture:" + name, value, time.Minute}} }

// TestHealthIsToldOnce checks that changes go to the present stream, everything goes to the next one, and nothing to a
// coordinator that does not listen.
func TestHealthIsToldOnce(t *testing.T) {
	o := newOutbox()
	listens := []string{proto.FeaturePosture}
	for i, step := range []struct {
		do   func()
		want string
	}{
		{func() { o.posture(one("a", "1"), false) }, ""},
		{func() { o.begin(nil) }, ""},
		{func() { o.posture(one("a", "2"), false) }, ""},
		{func() { o.begin(listens) }, "a=2"},
		{func() {}, ""},
		{func() { o.posture(one("a", "2"), false) }, ""},
		{func() { o.posture(one("b", "1"), false) }, "b=1"},
		// Once everything is known, the coordinator forgets the rest.
		{func() { o.posture(nil, true) }, "a=2 b=1 whole"},
		{func() { o.posture(one("b", ""), true) }, "b="},
		{func() { o.posture(one("b", ""), true) }, ""},
		{func() { o.posture(one("c", ""), true) }, ""},
		{func() { o.begin(listens) }, "a=2 whole"},
		{func() { o.posture(one("a", ""), true) }, "a="},
		{func() { o.begin(listens) }, "whole"},
	} {
		step.do()
		if got := told(t, o); got != step.want {
			t.Errorf("step %d: tells %q, want %q", i, got, step.want)
		}
	}
	for i := range 2 * wire.MaxFacts {
		o.posture(one(fmt.Sprint("f", i), "x"), true)
	}
	if n := strings.Count(told(t, o), "="); n != wire.MaxFacts {
		t.Errorf("tells %d facts", n)
	}
}
