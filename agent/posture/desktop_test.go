package posture

import "testing"

const (
	gnomeLocks    = "/org/gnome/desktop/screensaver/lock-enabled\n/org/gnome/desktop/session/idle-delay\n"
	gnomeSettings = "# of the company\n[org/gnome/desktop/screensaver]\nlock-enabled=true\n\n[org/gnome/desktop/session]\nidle-delay=uint32 300\n"
)

func TestScreenLock(t *testing.T) {
	gnome := func(settings, locks string) map[string]string {
		return map[string]string{"/usr/bin/gnome-shell": "", "/etc/dconf/db/local.d/00-lock": settings, "/etc/dconf/db/local.d/locks/lock": locks}
	}
	plasma := func(s string) map[string]string {
		return map[string]string{"/usr/bin/plasmashell": "", "/etc/xdg/kscreenlockerrc": s}
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a server":                            {nil, "-"},
		"a desktop of another kind":           {map[string]string{"/usr/share/xsessions/xfce.desktop": ""}, "-"},
		"GNOME as it comes":                   {map[string]string{"/usr/bin/gnome-shell": ""}, "false"},
		"GNOME, set and locked":               {gnome(gnomeSettings, gnomeLocks), "true"},
		"GNOME, set":                          {gnome(gnomeSettings, ""), "false"},
		"GNOME, locked to never":              {gnome("[org/gnome/desktop/screensaver]\nlock-enabled=true\n[org/gnome/desktop/session]\nidle-delay=uint32 0\n", gnomeLocks), "false"},
		"GNOME, locked to off":                {gnome("[org/gnome/desktop/screensaver]\nlock-enabled=false\n[org/gnome/desktop/session]\nidle-delay=300\n", gnomeLocks), "false"},
		"GNOME, nonsense":                     {gnome("[org/gnome/desktop/screensaver]\nlock-enabled=true\n[org/gnome/desktop/session]\nidle-delay=soon\n", gnomeLocks), "false"},
		"Plasma as it comes":                  {plasma(""), "false"},
		"Plasma, set":                         {plasma("[Daemon]\nAutolock=true\nTimeout=5\n"), "false"},
		"Plasma, fixed":                       {plasma("[Daemon]\nAutolock[$i]=true\nTimeout[$i]=5\n"), "true"},
		"Plasma, fixed as a whole":            {plasma("[Daemon][$i]\nAutolock=true\nTimeout=5\n"), "true"},
		"Plasma, fixed to off":                {plasma("[Daemon][$i]\nAutolock=false\nTimeout=5\n"), "false"},
		"both, and one that users may change": {with(gnome(gnomeSettings, gnomeLocks), plasma("")), "false"},
	} {
		if got := values(screenLock(t.Context(), machine(c.files, nil))); got != "screenLock="+c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzDesktop(f *testing.F) {
	f.Add(gnomeSettings, gnomeLocks, "[Daemon][$i]\nAutolock=true\nTimeout=5\n")
	f.Fuzz(func(t *testing.T, settings, locks, plasma string) {
		h := machine(map[string]string{
			"/usr/bin/gnome-shell": "", "/etc/dconf/db/local.d/a": settings, "/etc/dconf/db/local.d/locks/a": locks,
		}, nil)
		sound(t, screenLock(t.Context(), h)...)
		sound(t, judgePlasma(plasma))
	})
}
