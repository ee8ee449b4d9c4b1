package posture

import (
	"context"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// maxSettings is how many settings files are read.
const maxSettings = 256

// screenLock reports whether the system locks the screens of idle desktops, whatever their users have set. Users' settings
// are not read: the agent has no business in their home directories, and they may change them at any moment.
func screenLock(_ context.Context, h Host) []Reading {
	var verdicts []Reading
	if h.exists("usr/bin/gnome-shell") {
		verdicts = append(verdicts, judgeGNOME(h.dconf()))
	}
	if h.exists("usr/bin/plasmashell") {
		verdicts = append(verdicts, judgePlasma(h.text("etc/xdg/kscreenlockerrc")))
	}
	for _, r := range verdicts {
		if r.Value == "false" {
			return []Reading{r}
		}
	}
	if len(verdicts) > 0 {
		return verdicts[:1]
	}
	for _, pattern := range []string{"usr/share/wayland-sessions/*.desktop", "usr/share/xsessions/*.desktop"} {
		if found, err := fs.Glob(h.Files, pattern); err == nil && len(found) > 0 {
			return []Reading{unknown(fact.ScreenLock, "it is not known how this desktop locks its screen")}
		}
	}
	return []Reading{unknown(fact.ScreenLock, "there is no desktop")}
}

// dconf returns what the system's keyfiles set, and which of the settings users cannot change.
func (h Host) dconf() (settings map[string]string, locks map[string]bool) {
	settings, locks = map[string]string{}, map[string]bool{}
	read := func(pattern string, take func(string)) {
		names, err := fs.Glob(h.Files, pattern)
		if err != nil {
			return // cannot happen: the pattern is constant
		}
		for _, name := range names[:min(len(names), maxSettings)] {
			take(h.text(name))
		}
	}
	read("etc/dconf/db/*.d/locks/*", func(s string) {
		for line := range strings.Lines(s) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
				locks[line] = true
			}
		}
	})
	read("etc/dconf/db/*.d/*", func(s string) {
		for key, value := range keyFile(s) {
			settings["/"+key] = value
		}
	})
	return settings, locks
}

// keyFile reads a file of [group] and key=value lines; keys are joined to their group by a slash.
func keyFile(s string) map[string]string {
	out := map[string]string{}
	group := ""
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			group = line[1 : len(line)-1]
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") && len(out) < 4096 {
			out[path.Join(group, strings.TrimSpace(key))] = strings.TrimSpace(value)
		}
	}
	return out
}

func judgeGNOME(settings map[string]string, locks map[string]bool) Reading {
	const lock, idle = "/org/gnome/desktop/screensaver/lock-enabled", "/org/gnome/desktop/session/idle-delay"
	for _, key := range []string{lock, idle} {
		if !locks[key] || settings[key] == "" {
			return yesNo(fact.ScreenLock, false, "users may change "+key+" of GNOME: the system does not set and lock it in /etc/dconf/db")
		}
	}
	words := strings.Fields(settings[idle]) // uint32 300
	after, err := strconv.ParseUint(words[len(words)-1], 10, 32)
	if settings[lock] != "true" || err != nil || after == 0 {
		return yesNo(fact.ScreenLock, false, "the system keeps GNOME from locking the screen")
	}
	return yesNo(fact.ScreenLock, true, "GNOME, after "+strconv.FormatUint(after, 10)+" s")
}

// judgePlasma reads kscreenlockerrc. Users cannot change what is marked with [$i].
func judgePlasma(s string) Reading {
	settings := keyFile(s)
	fixed := func(key string) (value string, locked bool) {
		for _, form := range []struct {
			name   string
			locked bool
		}{
			{"Daemon/" + key + "[$i]", true},
			{"Daemon][$i/" + key, true},
			{"Daemon/" + key, false},
		} {
			if v, ok := settings[form.name]; ok {
				return v, form.locked
			}
		}
		return "", false
	}
	lock, locked := fixed("Autolock")
	after, bound := fixed("Timeout")
	minutes, err := strconv.ParseUint(after, 10, 16)
	switch {
	case !locked || !bound:
		return yesNo(fact.ScreenLock, false, "users may change Autolock or Timeout of Plasma: /etc/xdg/kscreenlockerrc does not fix them by [$i]")
	case lock != "true" || err != nil || minutes == 0:
		return yesNo(fact.ScreenLock, false, "the system keeps Plasma from locking the screen")
	}
	return yesNo(fact.ScreenLock, true, "Plasma, after "+after+" min")
}
