package posture

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

const (
	// maxUpdates is how many updates are looked at.
	maxUpdates = 5000
	// maxListAge is how old the package lists may be: older ones say nothing about what is pending.
	maxListAge = 7 * 24 * time.Hour
	day        = 24 * time.Hour
)

// update is a package with a security fix that is not installed.
type update struct {
	name   string    // with its version
	issued time.Time // zero: not known
}

// updates counts the pending updates, and reports for how many days the oldest has been pending: since it was issued if that
// is known, otherwise since this agent first saw it.
func updates(memory Memory) func(context.Context, Host) []Reading {
	var apt lastAsked
	return func(ctx context.Context, h Host) []Reading {
		pending, err := pendingUpdates(ctx, h, &apt)
		if err != nil {
			return []Reading{unknown(fact.UpdatesPending, err.Error()), unknown(fact.UpdatesAge, err.Error())}
		}
		now := h.Now()
		was, err := memory.Load()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return []Reading{known(fact.UpdatesPending, strconv.Itoa(len(pending)), ""), unknown(fact.UpdatesAge, err.Error())}
		}
		seen, oldest := remember(decodeSeen(was), pending, now)
		if b := encodeSeen(seen); string(b) != string(was) {
			err = memory.Save(b)
		} else {
			err = nil
		}
		count := known(fact.UpdatesPending, strconv.Itoa(len(pending)), examples(pending))
		if err != nil {
			return []Reading{count, unknown(fact.UpdatesAge, err.Error())}
		}
		return []Reading{count, known(fact.UpdatesAge, strconv.Itoa(int(max(now.Sub(oldest), 0)/day)), "days")}
	}
}

func examples(list []update) string {
	var names []string
	for _, u := range list[:min(len(list), 3)] {
		names = append(names, u.name)
	}
	if more := len(list) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// pendingUpdates asks the system's package manager, using the package lists that it has. To dnf, a repository without lists
// is an error only if it is told so: otherwise it counts without that one. Apt is asked only if its answer may have changed.
func pendingUpdates(ctx context.Context, h Host, apt *lastAsked) ([]update, error) {
	switch {
	case h.exists("usr/bin/apt-get"):
		if err := fresh(h, "apt-get", aptLists(h)); err != nil {
			return nil, err
		}
		return apt.ask(h.Now(), aptState(h.Files), func() ([]update, error) {
			return ask(ctx, h, aptUpdates, "apt-get", "--simulate", "-qq", "-o", "Debug::NoLocking=true", "dist-upgrade")
		})
	case h.exists("usr/bin/dnf5"):
		return listed(ctx, h, dnf5Updates, dnfLists(h.Files, "var/cache/libdnf5"), "dnf5", "--cacheonly", "--quiet",
			"--setopt=logdir=/tmp", "--setopt=*.skip_if_unavailable=False", "advisory", "list", "--security")
	case h.exists("usr/bin/dnf"):
		return listed(ctx, h, dnfUpdates, dnfLists(h.Files, "var/cache/dnf"), "dnf", "--cacheonly", "--quiet",
			"--setopt=logdir=/tmp", "--setopt=*.skip_if_unavailable=False", "updateinfo", "list", "--security")
	}
	return nil, errors.New("the package manager of this system has no security information")
}

// listed runs a package manager, if its lists are fresh.
func listed(ctx context.Context, h Host, parse func([]byte) []update, lists time.Time, program string, args ...string) ([]update, error) {
	if err := fresh(h, program, lists); err != nil {
		return nil, err
	}
	return ask(ctx, h, parse, program, args...)
}

// fresh rejects package lists that say nothing about what is pending now.
func fresh(h Host, program string, lists time.Time) error {
	if lists.IsZero() {
		return fmt.Errorf("%s has no package lists of a security repository", program)
	}
	if age := h.Now().Sub(lists); age > maxListAge {
		return fmt.Errorf("the package lists are %d days old", int(age/day))
	}
	return nil
}

// ask runs a package manager.
func ask(ctx context.Context, h Host, parse func([]byte) []update, program string, args ...string) ([]update, error) {
	b, err := h.Run(ctx, program, args...)
	if err != nil {
		return nil, err
	}
	out := parse(b)
	slices.SortFunc(out, func(a, b update) int { return cmp.Or(cmp.Compare(a.name, b.name), a.issued.Compare(b.issued)) })
	return slices.CompactFunc(out, func(a, b update) bool { return a.name == b.name }), nil
}

const (
	// maxLists is how many list files are looked at.
	maxLists = 512
	// maxRelease is how much of a Release file is read: what it is about is at its beginning.
	maxRelease = 8 << 10
)

// aptLists returns when apt's newest list of security updates was made, according to the archive itself: apt touches its
// directories even when it could fetch nothing.
func aptLists(h Host) (at time.Time) {
	names, err := fs.Glob(h.Files, "var/lib/apt/lists/*Release")
	if err != nil {
		return at // cannot happen: the pattern is constant
	}
	for _, name := range names[:min(len(names), maxLists)] {
		if made := securityRelease(h.head(name, maxRelease)); made.After(at) {
			at = made
		}
	}
	return at
}

// securityRelease returns when a Release file was made, if it is about security updates; otherwise the zero time.
func securityRelease(b []byte) (made time.Time) {
	security := false
	for line := range bytes.Lines(b) {
		key, value, _ := strings.Cut(strings.TrimSpace(string(line)), ": ")
		switch key {
		case "Label", "Suite":
			security = security || isSecurity(value, value)
		case "Date":
			for _, zone := range []string{"MST", "-0700"} {
				if t, err := time.Parse("Mon, 2 Jan 2006 15:04:05 "+zone, value); err == nil {
					made = t
				}
			}
		}
	}
	if !security {
		return time.Time{}
	}
	return made
}

// isSecurity reports whether a package source is for security updates, by its label or its suite.
func isSecurity(label, suite string) bool {
	return strings.Contains(label, "Security") || strings.HasSuffix(suite, "-security")
}

// dnfLists returns when dnf last fetched a repository's security information. Not all repositories have any.
func dnfLists(files fs.FS, cache string) (at time.Time) {
	names, err := fs.Glob(files, cache+"/*/repodata/*updateinfo*")
	if err != nil {
		return at // cannot happen: the pattern is constant
	}
	for _, name := range names[:min(len(names), maxLists)] {
		if s, err := fs.Stat(files, path.Dir(name)+"/repomd.xml"); err == nil && s.ModTime().After(at) {
			at = s.ModTime()
		}
	}
	return at
}

// aptUpdates parses what `apt-get -s dist-upgrade` would install:
//
//	Inst libssl3 [3.0.11-1~deb12u1] (3.0.15-1~deb12u1 Debian-Security:12/stable-security [amd64])
//	Inst openssl [3.0.2-0ubuntu1.9] (3.0.2-0ubuntu1.18 Ubuntu:22.04/jammy-updates, Ubuntu:22.04/jammy-security [amd64])
func aptUpdates(b []byte) (out []update) {
	for _, f := range fields(b, 3) {
		if f[0] != "Inst" || len(out) >= maxUpdates {
			continue
		}
		line := strings.Join(f[2:], " ")
		_, line, _ = strings.Cut(line, "(")
		inside, _, ok := strings.Cut(line, ")")
		version, sources, spaced := strings.Cut(inside, " ")
		if !ok || !spaced {
			continue
		}
		sources, _, _ = strings.Cut(sources, " [")
		for source := range strings.SplitSeq(sources, ", ") {
			label, suite, _ := strings.Cut(source, "/")
			if isSecurity(label, suite) {
				out = append(out, update{name: brief(f[1] + " " + version)})
				break
			}
		}
	}
	return out
}

// dnf5Updates parses the table that `dnf5 advisory list` prints:
//
//	Name                   Type     Severity  Package                             Issued
//	FEDORA-2025-2bcc9bb5d4 security Important openssl-libs-1:3.2.4-3.fc42.x86_64  2025-04-02 02:13:33
func dnf5Updates(b []byte) (out []update) {
	for _, f := range fields(b, 6) {
		if f[1] != "security" || len(out) >= maxUpdates {
			continue
		}
		issued, err := time.Parse(time.DateTime, f[len(f)-2]+" "+f[len(f)-1])
		if err != nil {
			continue
		}
		out = append(out, update{brief(f[len(f)-3]), issued})
	}
	return out
}

// dnfUpdates parses the list that `dnf updateinfo list` prints, as does yum:
//
//	RHSA-2025:1234  Important/Sec. openssl-libs-1:3.0.7-27.el9.x86_64
func dnfUpdates(b []byte) (out []update) {
	for _, f := range fields(b, 3) {
		if len(f) == 3 && strings.HasSuffix(f[1], "/Sec.") && len(out) < maxUpdates {
			out = append(out, update{name: brief(f[2])})
		}
	}
	return out
}

// seen is when each pending update was first seen, in Unix seconds.
type seen map[string]int64

// remember keeps of was what is still pending, and adds what is new. Oldest is since when the oldest has been pending.
func remember(was seen, pending []update, now time.Time) (out seen, oldest time.Time) {
	out, oldest = seen{}, now
	for _, u := range pending {
		since, known := was[u.name]
		if !known || since > now.Unix() {
			since = now.Unix()
		}
		out[u.name] = since
		at := time.Unix(since, 0)
		if !u.issued.IsZero() && u.issued.Before(now) {
			at = u.issued
		}
		if at.Before(oldest) {
			oldest = at
		}
	}
	return out, oldest
}

func encodeSeen(s seen) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // only strings and numbers
	}
	return append(b, '\n')
}

// decodeSeen parses the output of encodeSeen; nil if it cannot.
func decodeSeen(b []byte) seen {
	var s seen
	if json.Unmarshal(b, &s) != nil || len(s) > maxUpdates {
		return nil
	}
	return s
}

// rebootRequired reports whether something that was updated is still running in its old version.
func rebootRequired(_ context.Context, h Host) []Reading {
	if h.exists("run/reboot-required") || h.exists("var/run/reboot-required") {
		return []Reading{yesNo(fact.RebootRequired, true, "for "+strings.Join(strings.Fields(h.text("run/reboot-required.pkgs")), ", "))}
	}
	running := h.text("proc/sys/kernel/osrelease")
	var kernels []string
	for _, pattern := range []string{"usr/lib/modules/*/modules.builtin", "lib/modules/*/modules.builtin"} {
		names, err := fs.Glob(h.Files, pattern)
		if err != nil {
			continue // cannot happen: the pattern is constant
		}
		for _, name := range names {
			kernels = append(kernels, path.Base(path.Dir(name)))
		}
	}
	if running == "" || len(kernels) == 0 {
		return []Reading{unknown(fact.RebootRequired, "no kernel is installed here")}
	}
	return []Reading{judgeKernel(running, kernels)}
}

// judgeKernel compares the running kernel with the installed ones.
func judgeKernel(running string, installed []string) Reading {
	if !slices.Contains(installed, running) {
		return yesNo(fact.RebootRequired, true, "the running kernel, "+running+", is no longer installed")
	}
	for _, k := range installed {
		if flavour(k) == flavour(running) && newer(k, running) {
			return yesNo(fact.RebootRequired, true, k+" is installed, and "+running+" runs")
		}
	}
	return yesNo(fact.RebootRequired, false, "")
}

// flavour returns a kernel release without its numbers: kernels of several flavours may be installed.
func flavour(release string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) {
			return r
		}
		return -1
	}, release)
}

// newer compares the numbers in two releases in order.
func newer(a, b string) bool {
	x, y := numbers(a), numbers(b)
	return slices.Compare(x, y) > 0
}

func numbers(s string) (out []int) {
	for _, f := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.Atoi(f)
		if err != nil {
			n = int(^uint(0) >> 1) // longer than any real one
		}
		out = append(out, n)
	}
	return out
}
