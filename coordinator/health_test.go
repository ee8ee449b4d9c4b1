package coordinator

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redoubt-mesh/redoubt/coordinator/directory"
	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

// say sends a health report from the node.
func (s *stream) say(t *testing.T, whole bool, pairs ...string) {
	t.Helper()
	p := &redoubtv1.Posture{Whole: whole}
	for i := 0; i < len(pairs); i += 2 {
		p.Facts = append(p.Facts, &redoubtv1.PostureFact{Name: "posture:" + pairs[i], Value: pairs[i+1], TtlSeconds: 180})
	}
	if _, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Posture{Posture: p}}); err != nil {
		t.Fatal(err)
	}
	settle()
}

// health returns the node's health facts in effect.
func (r *rig) health(node string) string {
	var out []string
	for _, name := range []string{"a", "b", "c"} {
		if f := r.facts(node)["posture:"+name]; f != "" {
			out = append(out, name+"="+f)
		}
	}
	return strings.Join(out, " ")
}

// TestHealthBeforeTheRenewal checks that health reports made before a renewal, which are not repeated, take effect together
// after it.
func TestHealthBeforeTheRenewal(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		s.say(t, true, "a", "1", "b", "1")
		s.close()
		time.Sleep(time.Hour + directory.Patience + 2*time.Minute)
		if got := r.health("m"); got != "" {
			t.Errorf("of a node that was not heard for an hour: %q", got)
		}
		s = m.attach(nil)
		if !s.welcome.GetRenewFirst() {
			t.Fatal("the welcome does not ask for a renewal")
		}
		s.say(t, true, "a", "2", "b", "2")
		s.say(t, false, "b", "", "c", "2")
		if got := r.health("m"); got != "" {
			t.Errorf("before the renewal: %q", got)
		}
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		settle()
		if got := r.health("m"); got != "a=2 c=2" || s.failed() != nil {
			t.Errorf("after the renewal: %q, %v", got, s.failed())
		}
		s.close()
	})
}

// TestHealthOverAnotherStream checks that a node that opens another stream counts as heard without interruption.
func TestHealthOverAnotherStream(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		old := m.attach(nil)
		old.say(t, true, "a", "1")
		next := m.attach(nil)
		next.say(t, true, "a", "1")
		old.close()
		for range 10 {
			if _, err := next.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			if got := r.health("m"); got != "a=1" {
				t.Fatalf("%q", got)
			}
		}
		next.close()
		time.Sleep(3*time.Minute - time.Second)
		if got := r.health("m"); got != "a=1" {
			t.Errorf("before its time is over: %q", got)
		}
		time.Sleep(2 * time.Second)
		if got := r.health("m"); got != "" {
			t.Errorf("after its time: %q", got)
		}
	})
}

// TestHealthOfAHostileNode checks that a node that floods reports harms only itself: its stream is slowed down, and facts that
// it may not report are refused.
func TestHealthOfAHostileNode(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		for round := range 12 {
			var pairs []string
			for i := range directory.MaxFacts {
				pairs = append(pairs, fmt.Sprintf("x%d-%d", round, i), strings.Repeat("x", directory.MaxFact))
			}
			s.say(t, false, pairs...)
		}
		time.Sleep(time.Minute)
		if n := len(r.facts("m")); n < directory.MaxFacts || n > directory.MaxFacts+5 {
			t.Errorf("%d facts are known of it", n)
		}
		if _, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_Posture{Posture: &redoubtv1.Posture{
			Facts: []*redoubtv1.PostureFact{{Name: "device:attestation", Value: "measured", TtlSeconds: 60}},
		}}}); err != nil {
			t.Fatal(err)
		}
		<-s.done
		refusedWith(t, s.failed(), redoubtv1.Refusal_CODE_MALFORMED, "posture")
		s.close()
	})
}

// TestHealthComesWithTheRenewal checks that a renewal replaces all health facts, with effect from the certificate on.
func TestHealthComesWithTheRenewal(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m := r.join("m", &redoubtv1.CreateTokenRequest{})
		s := m.attach(nil)
		s.say(t, true, "a", "1", "b", "1")
		m.posture = &redoubtv1.Posture{Whole: true, Facts: []*redoubtv1.PostureFact{{Name: "posture:a", Value: "2", TtlSeconds: 180}}}
		if err := s.renew(); err != nil {
			t.Fatal(err)
		}
		if got := r.health("m"); got != "a=2" {
			t.Errorf("after the renewal: %q", got)
		}
		m.posture.Facts[0].Name = "custom:a"
		if err := s.renew(); err == nil || r.facts("m")["custom:a"] != "" {
			t.Errorf("a renewal that says what is not its to say: %v", err)
		}
	})
}

// TestHealthComesWithTheEnrolment checks that the health report in a machine's first proof takes effect with its first
// certificate, and holds for its TTL if the machine does not attach.
func TestHealthComesWithTheEnrolment(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		m, code := r.machine("m"), r.code(&redoubtv1.CreateTokenRequest{})
		m.posture = &redoubtv1.Posture{Whole: true, Facts: []*redoubtv1.PostureFact{{Name: "custom:a", Value: "1", TtlSeconds: 180}}}
		if err := m.enrol(code); codeOf(err) != redoubtv1.Refusal_CODE_MALFORMED {
			t.Fatalf("an enrolment that says what is not its to say: %v", err)
		}
		m.posture.Facts[0].Name = "posture:a"
		if err := m.enrol(code); err != nil { // the code is not spent
			t.Fatal(err)
		}
		if got := r.health("m"); got != "a=1" {
			t.Errorf("with the certificate: %q", got)
		}
		time.Sleep(3*time.Minute + time.Second)
		if got := r.health("m"); got != "" {
			t.Errorf("of a machine that did not attach: %q", got)
		}
		other := r.machine("other")
		other.posture = m.posture
		if err := other.enrol(r.code(&redoubtv1.CreateTokenRequest{})); err != nil {
			t.Fatal(err)
		}
		s := other.attach(nil)
		s.say(t, true, "a", "1")
		for range 10 {
			if _, err := s.c.send(&redoubtv1.Up{Message: &redoubtv1.Up_KeepAlive{KeepAlive: &redoubtv1.KeepAlive{}}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		if got := r.health("other"); got != "a=1" {
			t.Errorf("of a machine that is heard: %q", got)
		}
		s.close()
	})
}
