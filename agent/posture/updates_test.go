package posture

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

const (
	askApt  = "apt-get --simulate -qq -o Debug::NoLocking=true dist-upgrade"
	askDnf5 = "dnf5 --cacheonly --quiet --setopt=logdir=/tmp --setopt=*.skip_if_unavailable=False advisory list --security"
	askDnf  = "dnf --cacheonly --quiet --setopt=logdir=/tmp --setopt=*.skip_if_unavailable=False updateinfo list --security"
)

const (
	debian         = "/var/lib/apt/lists/deb.debian.org_debian_dists_bookworm_InRelease"
	debianSecurity = "/var/lib/apt/lists/deb.debian.org_debian-security_dists_bookworm-security_InRelease"
)

// note is a Memory for tests.
type note struct{ b []byte }

func (n *note) Load() ([]byte, error) {
	if n.b == nil {
		return nil, fs.ErrNotExist
	}
	return n.b, nil
}

func (n *note) Save(b []byte) error {
	n.b = b
	return nil
}

func TestUpdates(t *testing.T) {
	apt := map[string]string{
		"/usr/bin/apt-get": "", debian: recorded(t, "release-debian.txt"), debianSecurity: recorded(t, "release-debian-security.txt"),
	}
	dnf := map[string]string{"/usr/bin/dnf": ""}
	dnf5 := map[string]string{"/usr/bin/dnf5": "", "/usr/bin/dnf": ""}
	for _, name := range []string{"repomd.xml", "4be0-updateinfo.xml.zst"} {
		dnf["/var/cache/dnf/updates-0123456789abcdef/repodata/"+name] = ""
		dnf5["/var/cache/libdnf5/updates-0123456789abcdef/repodata/"+name] = ""
	}
	noAdvisories := map[string]string{"/usr/bin/dnf": "", "/var/cache/dnf/plain-0123456789abcdef/repodata/repomd.xml": ""}
	for name, c := range map[string]struct {
		files    map[string]string
		ask, out string
		want     string
	}{
		"Debian 12":         {apt, askApt, recorded(t, "apt-debian12.txt"), "updatesPending=20 updatesAge=0"},
		"Debian, only main": {with(apt, map[string]string{debianSecurity: ""}), askApt, "", "updatesPending=- updatesAge=-"},
		"Debian":            {apt, askApt, recorded(t, "apt-debian.txt"), "updatesPending=3 updatesAge=0"},
		"Ubuntu":            {apt, askApt, recorded(t, "apt-ubuntu.txt"), "updatesPending=3 updatesAge=0"},
		"nothing pending":   {apt, askApt, "", "updatesPending=0 updatesAge=0"},
		"apt is broken":     {apt, askApt, "!E: dpkg was interrupted", "updatesPending=- updatesAge=-"},
		"Fedora":            {dnf5, askDnf5, recorded(t, "dnf5-fedora.txt"), "updatesPending=3 updatesAge=29"},
		"Red Hat":           {dnf, askDnf, recorded(t, "dnf-rhel.txt"), "updatesPending=2 updatesAge=0"},
		"dnf 4":             {dnf, askDnf, recorded(t, "dnf4-debian12.txt"), "updatesPending=2 updatesAge=0"},
		"no advisories":     {noAdvisories, askDnf, "", "updatesPending=- updatesAge=-"},
		"no lists":          {map[string]string{"/usr/bin/dnf5": ""}, askDnf5, recorded(t, "dnf5-fedora.txt"), "updatesPending=- updatesAge=-"},
		"Arch does not say": {map[string]string{"/usr/bin/pacman": ""}, askDnf5, "", "updatesPending=- updatesAge=-"},
	} {
		h := machine(c.files, map[string]string{c.ask: c.out})
		if got := values(updates(&note{})(t.Context(), h)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestAgeOfUpdates checks that a pending update grows older across restarts, that an installed one is forgotten, and that
// old lists do not count.
func TestAgeOfUpdates(t *testing.T) {
	now := noon
	memory := File(filepath.Join(t.TempDir(), "posture.json"))
	programs := map[string]string{askApt: recorded(t, "apt-debian.txt")}
	lists := &fstest.MapFile{}
	made := func(at time.Time) {
		lists.Data = []byte("Suite: stable-security\nDate: " + at.Format(time.RFC1123) + "\n")
	}
	made(noon)
	h := machine(map[string]string{"/usr/bin/apt-get": ""}, programs)
	files, ok := h.Files.(fstest.MapFS)
	if !ok {
		t.Fatal(h.Files)
	}
	files[strings.TrimPrefix(debianSecurity, "/")] = lists
	h.Now = func() time.Time { return now }
	want := func(what string) {
		t.Helper()
		if got := values(updates(memory)(t.Context(), h)); got != what {
			t.Errorf("at %v: %s, want %s", now, got, what)
		}
	}
	want("updatesPending=3 updatesAge=0")
	now = now.Add(5 * day)
	want("updatesPending=3 updatesAge=5")
	now = now.Add(3 * day)
	want("updatesPending=- updatesAge=-")
	made(now)
	want("updatesPending=3 updatesAge=8")
	programs[askApt] = "Inst bash [5.2] (5.3 Debian-Security:12/stable-security [amd64])\n"
	want("updatesPending=1 updatesAge=0")
	programs[askApt] = recorded(t, "apt-debian.txt")
	want("updatesPending=3 updatesAge=0")
	now = now.Add(-2 * day) // somebody sets the clock
	want("updatesPending=3 updatesAge=0")
}

// TestReleasesOfSecurity checks that a Release file's Date says when it was made, whatever the file's own time.
func TestReleasesOfSecurity(t *testing.T) {
	made := time.Date(2026, 5, 20, 16, 28, 12, 0, time.UTC)
	for text, want := range map[string]time.Time{
		recorded(t, "release-debian-security.txt"):                                                  made,
		recorded(t, "release-debian.txt"):                                                           {},
		"Origin: Ubuntu\nLabel: Ubuntu\nSuite: jammy-security\nDate: Wed, 20 May 2026 16:28:12 UTC": made,
		"Suite: x-security\nDate: Wed, 20 May 2026 18:28:12 +0200\n":                                made,
		"Suite: x-security\nDate: yesterday\n":                                                      {},
		"Suite: x-security\n":                                                                       {},
		"Description: Security\nDate: Wed, 20 May 2026 16:28:12 UTC\n":                              {},
		"": {},
	} {
		if got := securityRelease([]byte(text)); !got.Equal(want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

func TestRebootRequired(t *testing.T) {
	kernels := func(running string, installed ...string) map[string]string {
		files := map[string]string{"/proc/sys/kernel/osrelease": running + "\n"}
		for _, k := range installed {
			files["/usr/lib/modules/"+k+"/modules.builtin"] = ""
		}
		return files
	}
	asked := kernels("6.1.0-21-amd64", "6.1.0-21-amd64")
	asked["/run/reboot-required"], asked["/run/reboot-required.pkgs"] = "*** System restart required ***\n", "libc6\ndbus\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"Debian asks for it":      {asked, "true"},
		"Debian":                  {kernels("6.1.0-21-amd64", "6.1.0-18-amd64", "6.1.0-21-amd64"), "false"},
		"Debian, older":           {kernels("6.1.0-9-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64"), "true"},
		"Ubuntu":                  {kernels("6.8.0-31-generic", "6.8.0-31-generic", "6.8.0-35-generic"), "true"},
		"Fedora":                  {kernels("6.8.9-300.fc40.x86_64", "6.8.5-301.fc40.x86_64", "6.8.9-300.fc40.x86_64"), "false"},
		"Fedora, next release":    {kernels("6.8.9-300.fc40.x86_64", "6.8.9-300.fc40.x86_64", "6.11.4-301.fc41.x86_64"), "true"},
		"Arch":                    {kernels("6.9.1-arch1-1", "6.9.1-arch1-1", "6.10.1-1-lts"), "false"},
		"Arch, upgraded":          {kernels("6.9.1-arch1-1", "6.9.2-arch1-1"), "true"},
		"a container":             {kernels("6.9.1-arch1-1"), "-"},
		"a kernel of long number": {kernels("6.99999999999999999999.1", "6.99999999999999999999.1"), "false"},
	} {
		if got := values(rebootRequired(t.Context(), machine(c.files, nil))); got != "rebootRequired="+c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestAptIsAskedIfSomethingChanged checks that apt runs only if its answer may have changed, or after a day, and that old lists
// count as old although their answer is known.
func TestAptIsAskedIfSomethingChanged(t *testing.T) {
	now := noon
	made := "Suite: stable-security\nDate: " + noon.Format(time.RFC1123) + "\n"
	h := machine(map[string]string{"/usr/bin/apt-get": "", debianSecurity: made}, map[string]string{askApt: recorded(t, "apt-debian.txt")})
	files, ok := h.Files.(fstest.MapFS)
	if !ok {
		t.Fatal(h.Files)
	}
	runs, broken := 0, false
	run := h.Run
	h.Now = func() time.Time { return now }
	h.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
		if runs++; broken {
			return nil, errors.New("dpkg was interrupted")
		}
		return run(ctx, name, args...)
	}
	collect := updates(&note{})
	want := func(when string, asked int, pending string) {
		t.Helper()
		before := runs
		if got := values(collect(t.Context(), h)); !strings.HasPrefix(got, "updatesPending="+pending+" ") || runs-before != asked {
			t.Errorf("%s: %s, and it ran %d times", when, got, runs-before)
		}
	}
	want("no packages", 1, "3")
	want("no packages again", 1, "3")
	status := &fstest.MapFile{Data: []byte("Package: bash\n"), ModTime: noon}
	files["var/lib/dpkg/status"] = status
	want("first", 1, "3")
	want("again", 0, "3")
	status.ModTime = noon.Add(time.Second)
	want("something was installed", 1, "3")
	want("again", 0, "3")
	for _, name := range []string{
		strings.TrimPrefix(debian, "/"), "etc/apt/apt.conf", "etc/apt/apt.conf.d/50unattended-upgrades", "etc/apt/preferences",
		"etc/apt/preferences.d/pin", "etc/apt/sources.list", "etc/apt/sources.list.d/debian.sources",
	} {
		files[name] = &fstest.MapFile{Data: []byte("one"), ModTime: noon}
		want(name+" came", 1, "3")
		files[name] = &fstest.MapFile{Data: []byte("another"), ModTime: noon}
		want(name+" changed", 1, "3")
		want("again", 0, "3")
		delete(files, name)
		want(name+" went", 1, "3")
	}
	now = now.Add(day - time.Second)
	want("almost a day later", 0, "3")
	now = now.Add(time.Second)
	want("a day later", 1, "3")
	now = now.Add(-2 * day)
	want("the clock was ahead", 1, "3")
	now = now.Add(day)
	broken = true
	want("broken", 1, "-")
	want("still broken", 1, "-")
	broken = false
	want("mended", 1, "3")
	for range 2 * maxListAge / time.Hour {
		now = now.Add(time.Hour)
		collect(t.Context(), h)
	}
	want("the lists are old", 0, "-")
}

func FuzzUpdates(f *testing.F) {
	for _, name := range []string{"apt-debian.txt", "apt-ubuntu.txt", "dnf5-fedora.txt", "dnf-rhel.txt"} {
		f.Add(recorded(f, name), `{"bash 5.3":1777636800}`, "6.8.9-300.fc40.x86_64")
	}
	f.Add(recorded(f, "release-debian-security.txt"), "", "")
	f.Fuzz(func(t *testing.T, out, memory, release string) {
		if made := securityRelease([]byte(out)); !made.IsZero() && !strings.Contains(strings.ToLower(out), "security") {
			t.Errorf("%q is for security", out)
		}
		for _, parse := range []func([]byte) []update{aptUpdates, dnf5Updates, dnfUpdates} {
			pending := parse([]byte(out))
			if len(pending) > maxUpdates || len(pending) > strings.Count(out, "\n")+1 {
				t.Fatalf("%d updates", len(pending))
			}
			was := decodeSeen([]byte(memory))
			next, oldest := remember(was, pending, noon)
			if oldest.After(noon) || len(next) > len(pending) {
				t.Fatalf("%v since %v", next, oldest)
			}
			if again := decodeSeen(encodeSeen(next)); len(again) != len(next) {
				t.Fatalf("%v was written, and %v read", next, again)
			}
		}
		sound(t, judgeKernel(brief(release), []string{brief(release), "6.1.0-9-amd64"}))
		if newer(release, release) {
			t.Errorf("%q is newer than itself", release)
		}
	})
}

func TestProgramsAreBounded(t *testing.T) {
	out := &capped{most: 4}
	if _, err := out.Write([]byte("abcd")); err != nil || out.over {
		t.Error(err)
	}
	if _, err := out.Write([]byte("e")); err == nil || !out.over || out.String() != "abcd" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if _, err := run(context.Background(), "no-such-program"); err == nil {
		t.Error("a program that is not there was run")
	}
}
