package posture

import (
	"testing"
	"testing/fstest"
	"time"
)

const (
	falcon     = "/opt/CrowdStrike/falcon-sensor"
	falconUnit = "/sys/fs/cgroup/system.slice/falcon-sensor.service/cgroup.events"
	sumOfABC   = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
)

func TestEDR(t *testing.T) {
	own, err := ParseGuard("aaa=/opt/own/watcher:own-watcher.service")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"none":                      {nil, "edr=- edrHash=-"},
		"installed, does not run":   {map[string]string{falcon: "abc"}, "edr=- edrHash=-"},
		"runs as something else":    {map[string]string{falconUnit: "populated 1\nfrozen 0\n"}, "edr=- edrHash=-"},
		"has stopped":               {map[string]string{falcon: "abc", falconUnit: "populated 0\nfrozen 0\n"}, "edr=- edrHash=-"},
		"runs":                      {map[string]string{falcon: "abc", falconUnit: "populated 1\nfrozen 0\n"}, "edr=crowdstrike edrHash=" + sumOfABC},
		"runs, on an older kernel":  {map[string]string{falcon: "abc", "/sys/fs/cgroup/systemd/system.slice/falcon-sensor.service/cgroup.procs": "812\n"}, "edr=crowdstrike edrHash=" + sumOfABC},
		"one that we were told of":  {map[string]string{"/opt/own/watcher": "abc", "/sys/fs/cgroup/system.slice/own-watcher.service/cgroup.events": "populated 1"}, "edr=aaa edrHash=" + sumOfABC},
		"a directory is no program": {map[string]string{falcon + "/x": "", falconUnit: "populated 1"}, "edr=- edrHash=-"},
	} {
		if got := values(edr(append([]Guard{own}, guards...))(t.Context(), machine(c.files, nil))); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestGuardsThatAreNone(t *testing.T) {
	for _, s := range []string{"", "x", "x=", "=/opt/x", "x=opt/x", "x=/opt/../x", "x=/opt/x:y", "x=/opt/x:a/b.service", "a\x00=/opt/x"} {
		if g, err := ParseGuard(s); err == nil {
			t.Errorf("%q: %+v", s, g)
		}
	}
	if g, err := ParseGuard("x=/opt/x"); err != nil || g.Unit != "x.service" {
		t.Errorf("%+v, %v", g, err)
	}
}

// TestHashes checks that a program is read again if it has changed, and only then.
func TestHashes(t *testing.T) {
	h := machine(map[string]string{"/proc/self/exe": "abc"}, nil)
	files, ok := h.Files.(fstest.MapFS)
	if !ok {
		t.Fatal(h.Files)
	}
	read := agentHash("/proc/self/exe")
	want := func(sum string) {
		t.Helper()
		if got := values(read(t.Context(), h)); got != "agentHash="+sum {
			t.Errorf("%s, want %s", got, sum)
		}
	}
	want(sumOfABC)
	files["proc/self/exe"].Data = []byte("xyz")
	want(sumOfABC)
	files["proc/self/exe"].ModTime = noon.Add(time.Second)
	want("3608bca1e44ea6c4d268eb6db02260269892c0b42b86bbf1e77a6fa16c3c9282")
	delete(files, "proc/self/exe")
	want("-")
}

func TestServices(t *testing.T) {
	const askSSH = "sshd -T -C user=root,host=localhost,addr=192.0.2.1"
	for out, want := range map[string]string{
		recorded(t, "sshd-debian12.txt"):                         "prohibit-password",
		"port 22\npermitrootlogin without-password\n":            "prohibit-password",
		"port 22\nPermitRootLogin yes\npermitrootlogin yes\n":    "yes",
		"permitrootlogin no\npasswordauthentication no\n":        "no",
		"permitrootlogin forced-commands-only\n":                 "forced-commands-only",
		"permitrootlogin maybe\n":                                "-",
		"":                                                       "-",
		"!Missing privilege separation directory: /run/sshd\n":   "-",
		"permitrootlogin\nx permitrootlogin\npermitrootlogin \n": "-",
	} {
		if got := values(sshRootLogin(t.Context(), machine(nil, map[string]string{askSSH: out}))); got != "sshRootLogin="+want {
			t.Errorf("%q: %s, want %s", out, got, want)
		}
	}
	if got := values(sshRootLogin(t.Context(), machine(nil, nil))); got != "sshRootLogin=no" {
		t.Errorf("without sshd: %s", got)
	}
	unit := map[string]string{"/sys/fs/cgroup/system.slice/osqueryd.service/cgroup.events": "populated 1\n"}
	version := map[string]string{"osqueryd --version": "osqueryd version 5.12.1\n"}
	for _, c := range []struct {
		files, programs map[string]string
		want            string
	}{{nil, version, "-"}, {unit, nil, "-"}, {unit, version, "5.12.1"}, {unit, map[string]string{"osqueryd --version": "?"}, "-"}} {
		if got := values(osquery(t.Context(), machine(c.files, c.programs))); got != "osqueryVersion="+c.want {
			t.Errorf("%v: %s, want %s", c, got, c.want)
		}
	}
}

func FuzzServices(f *testing.F) {
	f.Add("permitrootlogin without-password\n", "osqueryd version 5.12.1\n", "populated 1\nfrozen 0\n", "x=/opt/x:y.service")
	f.Fuzz(func(t *testing.T, ssh, version, group, guard string) {
		h := machine(map[string]string{falcon: "abc", falconUnit: group, "/sys/fs/cgroup/system.slice/osqueryd.service/cgroup.events": group},
			map[string]string{"osqueryd --version": version, "sshd -T -C user=root,host=localhost,addr=192.0.2.1": ssh})
		sound(t, sshRootLogin(t.Context(), h)...)
		sound(t, osquery(t.Context(), h)...)
		sound(t, edr(guards)(t.Context(), h)...)
		if g, err := ParseGuard(guard); err == nil && (g.Name == "" || g.Program[0] != '/') {
			t.Errorf("%q: %+v", guard, g)
		}
	})
}
