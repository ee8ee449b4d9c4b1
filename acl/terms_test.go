package acl

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTerms(t *testing.T) {
	p := good(t, `{"tagOwners": {"tag:ci": [], "tag:db": []},
		"session": {"maxAge": "7d"}, "outage": {"grace": "0", "posture": "15m"},
		"node": {"certLifetime": {"*": "2h", "tag:ci": "10m", "tag:db": "24h"}}}`)
	if p.Session.MaxAge != 7*24*time.Hour || p.Session.Path != "session" {
		t.Errorf("session %+v", p.Session)
	}
	if o := p.Outage; o.Grace == nil || *o.Grace != 0 || o.Posture == nil || *o.Posture != 15*time.Minute {
		t.Errorf("outage %+v", o)
	}
	if n := p.Node; n.CertLifetime != 2*time.Hour || !cmp.Equal(n.ByTag, map[string]time.Duration{"tag:ci": 10 * time.Minute, "tag:db": 24 * time.Hour}) {
		t.Errorf("node %+v", n)
	}
	p = good(t, `{"node": {"certLifetime": "90m"}, "outage": {}}`)
	if p.Node.CertLifetime != 90*time.Minute || len(p.Node.ByTag) > 0 || p.Outage.Grace != nil || p.Session.MaxAge != 0 {
		t.Errorf("%+v %+v %+v", p.Node, p.Outage, p.Session)
	}
}

func TestTermsErrors(t *testing.T) {
	runErrorTests(t, []errorTest{
		{"session of nothing", `{"session": |{}}`, `"maxAge" is missing`},
		{"session of a wrong type", `{"session": |"12h"}`, `is a string; want an object with maxAge`},
		{"no duration", `{"session": {"maxAge": |"12"}}`, `is not a duration; write one such as 90m, 12h or 7d`},
		{"number", `{"session": {"maxAge": |12}}`, `is a number; want a duration`},
		{"too short", `{"session": {"maxAge": |"1s"}}`, `"1s" is not from 1m to 366d`},
		{"below zero", `{"outage": {"grace": |"-1h"}}`, `"-1h" is not from 0s to 366d`},
		{"more than there is", `{"outage": {"grace": |"9999d"}}`, `is not from 0s to 366d`},
		{"more than that", `{"outage": {"grace": |"99999999999999999999d"}}`, `is not a duration`},
		{"days of hours", `{"outage": {"grace": |"1h1d"}}`, `is not a duration`},
		{"parts of seconds", `{"outage": {"grace": |"1500ms"}}`, `is not a number of whole seconds`},
		{"near key", `{"outage": {|"graze": "1h"}}`, `did you mean "grace"?`},
		{"certificates that last too long", `{"node": {"certLifetime": |"48h"}}`, `"48h" is not from 10m to 1d`},
		{"lifetime of a group", `{"node": {"certLifetime": {|"group:a": "1h"}}}`, `write tag:NAME, or * for every other node`},
		{"lifetime of an undefined tag", `{"node": {"certLifetime": {|"tag:a": "1h"}}}`, `tag "tag:a" is not defined`},
		{"lifetime of a wrong type", `{"node": {"certLifetime": |3600}}`, `is a number; want a duration`},
	})
}

func TestShortDurations(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", time.Minute: "1m", 90 * time.Minute: "1h30m", time.Hour: "1h", 25 * time.Hour: "25h", 48 * time.Hour: "2d",
	} {
		if got := shortly(d); got != want {
			t.Errorf("%v is written %s, want %s", d, got, want)
		}
	}
}
