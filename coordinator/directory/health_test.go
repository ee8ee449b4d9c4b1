package directory

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// says sends a health report of an attached node.
func (r *rig) says(n *Node, whole bool, pairs ...string) {
	r.t.Helper()
	h := Health{Whole: whole}
	for i := 0; i < len(pairs); i += 2 {
		h.Facts = append(h.Facts, HealthFact{pairs[i], pairs[i+1], 3 * time.Minute})
	}
	if err := r.ReportHealth(r.t.Context(), n.ID, h); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) attach(n *Node) { r.SetLive(n.ID, func(l *Live) { l.Connected = true }) }

// fall ends a node's stream.
func (r *rig) fall(n *Node, heard time.Time) {
	r.t.Helper()
	r.SetLive(n.ID, func(l *Live) { l.Connected = false })
	if err := r.Fallen(r.t.Context(), n.ID, heard); err != nil {
		r.t.Fatal(err)
	}
}

// health returns a node's health facts as policies see them.
func (r *rig) health(n *Node) string {
	var out []string
	for _, f := range r.Snapshot().Known(n.ID).Facts {
		if v, ok := r.Snapshot().Traits(n.ID).Facts[f.Name]; ok != (v == f.Value) {
			r.t.Errorf("%s is %q for policies and %q for people", f.Name, v, f.Value)
		}
		if name, ok := strings.CutPrefix(f.Name, "posture:"); ok {
			out = append(out, name+"="+f.Value)
		}
	}
	return strings.Join(out, " ")
}

// TestHealthHoldsWhileTheNodeIsHeard checks that health facts hold while the node is heard and for their TTL afterwards, across
// restarts.
func TestHealthHoldsWhileTheNodeIsHeard(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, r *rig) {
		n, other := r.node("host"), r.node("other")
		sub := r.Subscribe()
		defer sub.Close()
		want := func(what string, changes bool) {
			t.Helper()
			synctest.Wait()
			if got := r.health(n); got != what {
				t.Errorf("after %v: %q, want %q", time.Since(r.opened), got, what)
			}
			ids, ok := changed(sub)
			if ok != changes || ok && (len(ids) != 1 || ids[0] != n.ID) {
				t.Errorf("after %v: changes %v", time.Since(r.opened), ids)
			}
		}
		r.attach(n)
		r.attach(other)
		r.says(other, true, "posture:firewall", "true")
		changed(sub)
		r.says(n, true, "posture:firewall", "true", "posture:distro", "debian")
		want("distro=debian firewall=true", true)
		r.says(n, false, "posture:firewall", "true")
		want("distro=debian firewall=true", false)
		r.says(n, false, "posture:firewall", "false", "posture:nothing", "")
		want("distro=debian firewall=false", true)
		r.says(n, true, "posture:firewall", "true")
		want("firewall=true", true)
		time.Sleep(24 * time.Hour)
		want("firewall=true", false)

		// It falls silent, comes back in time, and falls silent for good. A node that has attached on another stream is not
		// silent.
		r.fall(n, time.Now().Add(-time.Minute))
		time.Sleep(time.Minute + 59*time.Second)
		want("firewall=true", false)
		r.attach(n)
		r.says(n, true, "posture:firewall", "true")
		if err := r.Fallen(t.Context(), n.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		want("firewall=true", false)
		r.fall(n, time.Now())
		time.Sleep(3*time.Minute - time.Second)
		want("firewall=true", false)
		time.Sleep(time.Second)
		want("", true)
		if got := r.health(other); got != "firewall=true" {
			t.Errorf("of a node that is attached: %q", got)
		}
	})
}

func TestHealthOverARestart(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	r.attach(n)
	r.says(n, true, "posture:firewall", "true")
	r.clock.pass(time.Hour)
	r.reopen()
	if got := r.health(n); got != "firewall=true" {
		t.Errorf("after a restart: %q", got)
	}
	f, ok := r.Snapshot().state.traits.Get(n.ID)
	if !ok || len(f.Facts) == 0 || !f.ends.Equal(r.opened.Add(3*time.Minute)) {
		t.Errorf("the node has not come back, and %+v", f)
	}
}

func TestHealthIsBounded(t *testing.T) {
	r := newRig(t)
	n := r.node("host")
	many := Health{}
	for i := range MaxFacts {
		many.Facts = append(many.Facts, HealthFact{fmt.Sprint("posture:a", i), "x", 0})
	}
	more := Health{}
	for i := range MaxFacts {
		more.Facts = append(more.Facts, HealthFact{fmt.Sprint("posture:b", i), "x", 1000 * time.Hour})
	}
	for _, h := range []Health{many, more} {
		if err := r.ReportHealth(t.Context(), n.ID, h); err != nil {
			t.Fatal(err)
		}
	}
	if got := strings.Count(r.health(n), "="); got != MaxFacts {
		t.Errorf("%d facts of a node that says %d", got, 2*MaxFacts)
	}
	r.fact(n, "custom:tier", "prod", 0)
	more.Whole = true
	if err := r.ReportHealth(t.Context(), n.ID, more); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Snapshot().Known(n.ID).Facts {
		if f.health() && (!strings.HasPrefix(f.Name, "posture:b") || f.TTL != MaxHealthTTL) {
			t.Errorf("%+v", f)
		}
	}
	if r.Snapshot().Traits(n.ID).Facts["custom:tier"] != "prod" {
		t.Error("the node's report took an administrator's word away")
	}
	for _, f := range []HealthFact{
		{"custom:tier", "gold", time.Minute},
		{"device:attestation", "measured", time.Minute},
		{"node:os", "plan9", time.Minute},
		{"posture:", "x", time.Minute},
		{"posture:a", "\a", time.Minute},
		{"posture:a", strings.Repeat("x", MaxFact+1), time.Minute},
	} {
		if err := r.ReportHealth(t.Context(), n.ID, Health{Facts: []HealthFact{f}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if err := r.ReportHealth(t.Context(), n.ID, Health{Facts: make([]HealthFact, MaxFacts+1)}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// TestProvedBeatsReported checks that a machine cannot deny what it has proved, and that what it proved overrides reported
// facts.
func TestProvedBeatsReported(t *testing.T) {
	for _, level := range []cert.Level{cert.LevelToken, cert.LevelTPM, cert.LevelMeasured} {
		traits := (&Traits{Facts: []Fact{{Name: factSecureBoot, Value: "false", Source: SourceNode, TTL: time.Minute}}}).complete(level)
		want := map[bool]string{true: "true", false: "false"}[level == cert.LevelMeasured]
		if got := traits.all.Facts[factSecureBoot]; got != want {
			t.Errorf("%v: secureBoot is %q, want %q", level, got, want)
		}
	}
}
