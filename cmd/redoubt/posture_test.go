package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	redoubtv1 "github.com/redoubt-mesh/redoubt/proto/redoubt/v1"
)

func health() *redoubtv1.PostureResponse {
	return &redoubtv1.PostureResponse{
		Told: true, PolicyVersion: "1.12",
		Facts: []*redoubtv1.LocalFact{
			{
				Name: "posture:diskEncrypted", Value: "true", Source: "reported", Since: noon.Add(-72 * time.Hour).Unix(), Checked: noon.Add(-20 * time.Minute).Unix(),
				TtlSeconds: 3 * 3600, Note: "/ on dm-crypt, swap on dm-crypt", Mend: "encrypt the disk",
			},
			{
				Name: "posture:firewall", Value: "false", Source: "reported", Since: noon.Add(-5 * time.Minute).Unix(), Checked: noon.Add(-12 * time.Second).Unix(),
				TtlSeconds: 180, Note: "incoming packets are not dropped by default", Mend: "turn on a firewall, such as ufw",
			},
			{
				Name: "posture:updatesPending", Source: "reported", Since: noon.Add(-time.Hour).Unix(), Checked: noon.Add(-time.Hour).Unix(),
				TtlSeconds: 3 * 3600, Note: "the package lists are 12 days old", Mend: "run `apt-get update`",
			},
		},
		Withheld: []*redoubtv1.WithheldRule{{
			Path: "grants[3]", Line: 17, Facts: []string{"posture:firewall"},
			Reason: `needs posture:managed: posture:firewall == 'true', and it is "false"`,
		}},
	}
}

func TestPosture(t *testing.T) {
	f, socket := fake(t, status())
	f.SetPosture(health())
	r := redoubt(t, "", "posture", "--json", "--socket", socket)
	var got postureJSON
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || r.code != exitFalse || r.err != "" {
		t.Fatalf("%+v: %v", r, err)
	}
	golden(t, "posture.json", r.out)
	var out bytes.Buffer
	if err := printPosture(&out, health(), noon, false); err != nil {
		t.Fatal(err)
	}
	golden(t, "posture.txt", out.String())

	// If all is well, the output says so; long values are folded, not cut.
	well := health()
	well.Withheld = nil
	hash := strings.Repeat("0123456789abcdef", 4)
	well.Facts = append(well.Facts, &redoubtv1.LocalFact{Name: "posture:edrHash", Value: hash, Note: "/opt/CrowdStrike/falcon-sensor"})
	out.Reset()
	if err := printPosture(&out, well, noon, false); err != nil {
		t.Fatal(err)
	}
	whole := ""
	for line := range strings.Lines(out.String()) {
		if len([]rune(line)) > width+1 {
			t.Errorf("a line of %d columns: %s", len([]rune(line)), line)
		}
		if f := strings.Fields(strings.TrimPrefix(line, "posture:edrHash")); len(f) > 0 && strings.Contains(hash+hash, f[0]) {
			whole += f[0]
		}
	}
	if whole != hash || strings.Contains(out.String(), "…") || !strings.Contains(out.String(), "no rule of the policy fails because of these facts") {
		t.Errorf("%s: %s", whole, &out)
	}

	f.SetPosture(nil)
	r = redoubt(t, "", "posture", "--refresh", "--socket", socket)
	if r.code != 0 || !strings.Contains(r.out, "no facts are known") || !strings.Contains(r.out, "not connected") || f.Refreshed() != 1 {
		t.Errorf("%+v", r)
	}
}
