package probe

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/redoubt-mesh/redoubt/acl/compile"
	"github.com/redoubt-mesh/redoubt/proto"
)

const good = `{"at":"n2","src_ip":"100.64.0.1","dst_ip":"100.64.0.2","proto":"tcp","port":22}`

func TestParse(t *testing.T) {
	want := Probe{At: "n2", Src: netip.MustParseAddr("100.64.0.1"), Dst: netip.MustParseAddr("100.64.0.2"), Protocol: 6, Port: 22}
	for _, line := range []string{
		good, " " + good + "\r\n",
		strings.Replace(good, `"at"`, `"allowed":true,"note":{"x":[1]},"at"`, 1),
		strings.Replace(good, `"tcp"`, `6`, 1),
		strings.Replace(good, `"tcp"`, `"6"`, 1),
		strings.Replace(good, `n2`, `\u006e2`, 1),
	} {
		if got, err := Parse([]byte(line)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", line, got, err)
		}
	}
	got, err := Parse([]byte(`{"at":"x","src_ip":"::1","dst_ip":"::2","proto":"icmpv6"}`))
	if err != nil || got.Protocol != proto.ProtoICMPv6 || got.Port != 0 {
		t.Errorf("ping without a port: %+v, %v", got, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"":                                    "not a JSON object",
		"null":                                "not a JSON object",
		"[]":                                  "not a JSON object",
		"{":                                   "not a JSON object",
		good + "x":                            "not a JSON object",
		"{}":                                  `"at" is missing`,
		strings.Replace(good, `"n2"`, "2", 1): `"at" is no string`,
		strings.Replace(good, `.1"`, `.1000"`, 1):  "src_ip",
		strings.Replace(good, `.2"`, `"`, 1):       "dst_ip",
		strings.Replace(good, "tcp", "tpc", 1):     "proto",
		strings.Replace(good, `"tcp"`, "256", 1):   "proto",
		strings.Replace(good, "22", "65536", 1):    "port",
		strings.Replace(good, "22", "-1", 1):       "port",
		strings.Replace(good, "22", "022", 1):      "not a JSON object",
		strings.Replace(good, "22", `"22"`, 1):     "port",
		strings.Replace(good, `,"port":22`, "", 1): `"port" is missing`,
		strings.Replace(good, `"port"`, `"at"`, 1): "twice",

		strings.Replace(good, `"port"`, `"\u0061t"`, 1):                 `"at" is there twice`,
		strings.Replace(good, `"port"`, `"note":[],"port":1,"port"`, 1): `"port" is there twice`,
		strings.Replace(good, `"n2"`, `null,"at":"n2"`, 1):              `"at" is there twice`,
	} {
		if p, err := Parse([]byte(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", line, p, err, want)
		}
	}
}

func TestAnswers(t *testing.T) {
	for want, v := range map[string]compile.Verdict{
		`{"allowed":true,"rule":"grants[0]","mode":"enforce"}`:      {Allowed: true, Rule: &proto.Origin{Path: "grants[0]"}, Mode: compile.Enforce},
		`{"allowed":true,"rule":"acls[1]","mode":"enforce"}`:        {Allowed: true, Rule: &proto.Origin{Path: "acls[1].dst[2]"}, Mode: compile.Enforce},
		`{"allowed":true,"rule":"enforcement[0]","mode":"monitor"}`: {Allowed: true, Rule: &proto.Origin{Path: "enforcement[0]"}, Mode: compile.Monitor},
		`{"allowed":false,"rule":"deny[0]","mode":"enforce"}`:       {Rule: &proto.Origin{Path: "deny[0]"}, Mode: compile.Enforce},
		`{"allowed":false,"rule":"","mode":"enforce"}`:              {Mode: compile.Enforce},
	} {
		if got := string(AppendVerdict(nil, v)); got != want+"\n" {
			t.Errorf("got %s want %s", got, want)
		}
	}
}

// FuzzParse checks that the parser written by hand agrees with encoding/json.
func FuzzParse(f *testing.F) {
	for _, s := range []string{good, "{}", "null", `{"at":"x","at":"y"}`, `{"port":1e2}`, strings.Replace(good, "n2", `\u006e`, 1)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		p, err := Parse(line)
		var r raw
		if ok, _ := r.scan(line); !ok {
			return
		}
		if !json.Valid(line) {
			t.Fatalf("%q is read but is no JSON", line)
		}
		var slow raw
		if slowErr := slow.decode(line); slowErr != nil {
			t.Fatalf("%q: %v", line, slowErr)
		}
		q, slowErr := slow.probe()
		if (err == nil) != (slowErr == nil) || err == nil && p != q {
			t.Fatalf("%q: %+v (%v) by hand, %+v (%v)", line, p, err, q, slowErr)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse([]byte(good)); err != nil {
			b.Fatal(err)
		}
	}
}
