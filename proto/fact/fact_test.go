package fact

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// named matches the definitions of fact names.
var named = regexp.MustCompile(`= "(posture:[A-Za-z]+)"`)

// TestFactsAreDocumented checks that the documentation has exactly the facts of this package, and that there is advice for each.
func TestFactsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/posture.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |"); ok && strings.HasPrefix(name, "posture:") {
			documented[name] = true
			if Advice(name) == "" {
				t.Errorf("nobody is told how to mend %s", name)
			}
		}
	}
	if b, err = os.ReadFile("fact.go"); err != nil {
		t.Fatal(err)
	}
	names := named.FindAllSubmatch(b, -1)
	for _, m := range names {
		if !documented[string(m[1])] {
			t.Errorf("docs/posture.md does not have %s", m[1])
		}
	}
	if len(names) < len(documented) {
		t.Errorf("%d facts have names, and %d are documented", len(names), len(documented))
	}
}

func TestNamed(t *testing.T) {
	for text, want := range map[string]string{
		`needs posture:walled: posture:firewall == 'true', and it is "false"`:                                    "posture:firewall",
		"needs posture:a: posture:edrHash IN ['x'], and it is not set; or posture:b: posture:firewall == 'true'": "posture:edrHash posture:firewall",
		"needs posture:genuine: device:attestation >= 'tpm', and it is \"token\"":                                "device:attestation",
		"needs posture:a: custom:tier == 'prod', and it is not set":                                              "custom:tier",
		"needs posture:firewallIsOn: posture:firewalls == 'x'":                                                   "",
		"posture:edr posture:edr,posture:edr:":                                                                   "posture:edr",
		"custom: ::: posture:ü\xffposture:edr":                                                                   "posture:edr",
		"":                                                                                                       "",
	} {
		if got := strings.Join(Named(text), " "); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		for _, name := range Named(text) {
			if Advice(name) == "" {
				t.Errorf("nobody is told how to mend %s", name)
			}
		}
	}
	if got := Advice("custom:tier"); !strings.Contains(got, "fact set NODE custom:tier") {
		t.Error(got)
	}
}
