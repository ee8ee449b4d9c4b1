package posture

import (
	"context"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestDistribution(t *testing.T) {
	for file, want := range map[string]string{
		"os-release-debian.txt": "distro=debian distroVersion=12",
		"os-release-ubuntu.txt": "distro=ubuntu distroVersion=24.04",
		"os-release-fedora.txt": "distro=fedora distroVersion=42",
		"os-release-arch.txt":   "distro=arch distroVersion=-",
	} {
		h := machine(map[string]string{"/etc/os-release": recorded(t, file)}, nil)
		if got := values(distribution(t.Context(), h)); got != want {
			t.Errorf("%s: %s, want %s", file, got, want)
		}
	}
	h := machine(map[string]string{"/usr/lib/os-release": `ID='it\'s'` + "\n# VERSION_ID=1\nVERSION_ID=\"1\x00\"\nNONSENSE\n"}, nil)
	if got := values(distribution(t.Context(), h)); got != "distro=it's distroVersion=-" {
		t.Error(got)
	}
	if got := values(distribution(t.Context(), machine(nil, nil))); got != "distro=- distroVersion=-" {
		t.Error(got)
	}
}

func TestKernelAndFirmware(t *testing.T) {
	const on, off = "\x06\x00\x00\x00\x01", "\x06\x00\x00\x00\x00"
	boot := "/" + efiVariables + "/SecureBoot-" + efiGlobal
	setup := "/" + efiVariables + "/SetupMode-" + efiGlobal
	for _, c := range []struct {
		read  func(context.Context, Host) []Reading
		files map[string]string
		want  string
	}{
		{kernel, map[string]string{"/proc/sys/kernel/osrelease": "6.12.9-amd64\n"}, "kernelVersion=6.12.9-amd64"},
		{kernel, nil, "kernelVersion=-"},
		{lockdown, map[string]string{"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, "kernelLockdown=integrity"},
		{lockdown, map[string]string{"/sys/kernel/security/lockdown": "[none] integrity confidentiality\n"}, "kernelLockdown=none"},
		{lockdown, map[string]string{"/sys/kernel/security/lockdown": "none integrity [all]"}, "kernelLockdown=-"},
		{lockdown, nil, "kernelLockdown=-"},
		{secureBoot, map[string]string{boot: on, setup: off}, "secureBoot=true"},
		{secureBoot, map[string]string{boot: on}, "secureBoot=true"},
		{secureBoot, map[string]string{boot: off, setup: off}, "secureBoot=false"},
		{secureBoot, map[string]string{boot: on, setup: on}, "secureBoot=false"},
		{secureBoot, map[string]string{boot: "\x01"}, "secureBoot=-"},
		{secureBoot, map[string]string{boot: "\x06\x00\x00\x00\x02"}, "secureBoot=-"},
		{secureBoot, map[string]string{"/sys/firmware/efi/runtime": ""}, "secureBoot=-"},
		{secureBoot, nil, "secureBoot=false"},
	} {
		if got := values(c.read(t.Context(), machine(c.files, nil))); got != c.want {
			t.Errorf("%q: %s, want %s", c.files, got, c.want)
		}
	}
}

// sound checks that readings may be reported, whatever they were read from.
func sound(t *testing.T, rs ...Reading) {
	t.Helper()
	for _, r := range rs {
		if r.Value != clean(r.Value) || len(r.Note) > maxText || !utf8.ValidString(r.Note) ||
			strings.ContainsFunc(r.Note, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("%+q", r)
		}
	}
}

func FuzzOSRelease(f *testing.F) {
	for _, name := range []string{"os-release-debian.txt", "os-release-ubuntu.txt", "os-release-fedora.txt", "os-release-arch.txt"} {
		f.Add(recorded(f, name))
	}
	f.Fuzz(func(t *testing.T, s string) {
		sound(t, distribution(t.Context(), machine(map[string]string{"/etc/os-release": s}, nil))...)
	})
}

func FuzzKernelFiles(f *testing.F) {
	f.Add("none [integrity] confidentiality\n", "\x06\x00\x00\x00\x01", "fe800000000000000000000000000001 02 40 20 80     eth0\n")
	f.Fuzz(func(t *testing.T, mode, variable, inet6 string) {
		h := machine(map[string]string{"/sys/kernel/security/lockdown": mode, "/" + efiVariables + "/SecureBoot-" + efiGlobal: variable}, nil)
		sound(t, lockdown(t.Context(), h)...)
		sound(t, secureBoot(t.Context(), h)...)
		if reachableV6(inet6, "redoubt0") && !strings.Contains(inet6, "00") {
			t.Errorf("a global address in %q", inet6)
		}
	})
}
