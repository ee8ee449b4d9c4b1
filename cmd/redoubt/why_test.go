package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func TestWhy(t *testing.T) {
	f, socket := fake(t, status())
	until := time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		answer *redoubtv1.WhyResponse
		code   int
		want   []string
	}{
		"allowed": {
			&redoubtv1.WhyResponse{Allowed: true, Rule: &redoubtv1.WhyRule{Path: "grants[3]", Line: 12, Action: "allow"}, PolicyVersion: "1.7"},
			0,
			[]string{"allowed: web -> db 6:22", "by grants[3] (line 12 of the policy)", "policy version 1.7"},
		},
		"denied": {
			&redoubtv1.WhyResponse{Reason: "a rule denies it", Rule: &redoubtv1.WhyRule{Path: "deny[0]", Line: 30, Action: "deny"}},
			exitFalse,
			[]string{"not allowed: web -> db", "denied by deny[0] (line 30"},
		},
		"watched": {
			&redoubtv1.WhyResponse{
				Allowed: true, Reason: "no rule lets these nodes connect",
				Rule: &redoubtv1.WhyRule{Path: "enforcement[0]", Line: 40, Action: "monitor", Until: until.Unix()},
			},
			0,
			[]string{"allowed: web", "enforcement[0]", "2027-01-31T00:00:00Z", "no rule lets these nodes connect"},
		},
		"missing": {
			&redoubtv1.WhyResponse{
				Destination: "100.64.0.2", Reason: "no rule names this protocol and port", Nearest: &redoubtv1.WhyRule{Path: "grants[2]", Line: 9, Action: "allow"},
				Missing: []*redoubtv1.WhyRule{{Path: "grants[4]", Line: 20, Missing: "needs posture:managed: diskEncrypted is not set"}},
			},
			exitFalse,
			[]string{
				"not allowed", "no rule names this protocol and port", "nearest: grants[2] (line 9",
				"grants[4] (line 20 of the policy) would allow it: needs posture:managed: diskEncrypted is not set",
			},
		},
		"unknown": {
			&redoubtv1.WhyResponse{
				Reason:  "no rule that is in force connects this node with one of that name",
				Missing: []*redoubtv1.WhyRule{{Path: "grants[4]", Line: 20, Missing: "node:os is not set"}},
			},
			exitFalse,
			[]string{"-> ?)", "no rule that is in force", "grants[4] (line 20 of the policy) may apply: node:os is not set"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f.Explain(c.answer)
			r := redoubt(t, "", "--socket", socket, "why", "db:22", "--from", "web")
			said := strings.Join(strings.Fields(r.out), " ")
			for _, w := range c.want {
				if !strings.Contains(said, w) {
					t.Errorf("%q is not in\n%s", w, r.out)
				}
			}
			if r.code != c.code || r.err != "" {
				t.Errorf("exit code %d, %q", r.code, r.err)
			}
			for line := range strings.Lines(r.out) {
				if len(line) > 81 {
					t.Errorf("too wide: %s", line)
				}
			}
			r = redoubt(t, "", "--socket", socket, "why", "db:22", "--json")
			var v whyJSON
			if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Allowed != c.answer.GetAllowed() || r.code != c.code || v.Missing == nil {
				t.Errorf("%+v: %v", r, err)
			}
		})
	}
}

func TestWhyQuestions(t *testing.T) {
	for _, c := range []struct {
		dst, protocol string
		want          string // host, protocol and port, or the error
	}{
		{"db:22", "", "db 6 22"},
		{"db:22", "udp", "db 17 22"},
		{"db", "", "db 0 0"},
		{"db", "icmp", "db 1 0"},
		{"db", "47", "db 47 0"},
		{"db", "GRE", "db 47 0"},
		{"100.64.0.2:443", "tcp", "100.64.0.2 6 443"},
		{"[fd00::2]:443", "", "fd00::2 6 443"},
		{"[fd00::2]", "", "fd00::2 0 0"},
		{"fd00::2", "icmpv6", "fd00::2 58 0"},
		{"db", "tcp", "give one, as in db:443"},
		{"db:22", "icmp", "has no ports"},
		{"db:22", "tpc", "want tcp"},
		{"db:66000", "", "up to 65535"},
		{":22", "", "want NAME:PORT"},
		{"", "", "want a name"},
	} {
		r, err := question(c.dst, c.protocol, "")
		var got string
		if err != nil {
			got = err.Error()
		} else {
			b, merr := json.Marshal([]any{r.GetDestination(), r.GetProtocol(), r.GetPort()})
			if merr != nil {
				t.Fatal(merr)
			}
			got = strings.NewReplacer("[", "", "]", "", `"`, "", ",", " ").Replace(string(b))
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%q %q: %s, want %s", c.dst, c.protocol, got, c.want)
		}
	}
	_, socket := fake(t, status())
	if r := redoubt(t, "", "--socket", socket, "why", "db:x"); r.code != exitUsage || r.err == "" {
		t.Errorf("%+v", r)
	}
	if r := redoubt(t, "", "--socket", socket, "why", "db"); r.code != exitFalse || !strings.Contains(r.err, "no node of that name") {
		t.Errorf("%+v", r)
	}
}
