package posture

import (
	"bufio"
	"bytes"
	"context"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// osRelease parses os-release(5).
func osRelease(b []byte) map[string]string {
	out := map[string]string{}
	for line := range bytes.Lines(b) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "=")
		if !ok || strings.HasPrefix(key, "#") || len(out) > 64 {
			continue
		}
		out[key] = unquote(value)
	}
	return out
}

// unquote undoes shell quoting, as far as os-release(5) allows it.
func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		s = s[1 : len(s)-1]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// distribution reports which Linux distribution this is.
func distribution(_ context.Context, h Host) []Reading {
	b, err := h.read("etc/os-release")
	if err != nil {
		b, err = h.read("usr/lib/os-release")
	}
	if err != nil {
		return []Reading{unknown(fact.Distro, "there is no /etc/os-release"), unknown(fact.DistroVersion, "there is no /etc/os-release")}
	}
	release := osRelease(b)
	name := known(fact.Distro, release["ID"], release["PRETTY_NAME"])
	version := known(fact.DistroVersion, release["VERSION_ID"], release["VERSION"])
	if version.Value == "" {
		version.Note = "the distribution has no versions"
	}
	return []Reading{name, version}
}

// kernel reports the release of the running kernel.
func kernel(_ context.Context, h Host) []Reading {
	return []Reading{known(fact.KernelVersion, h.text("proc/sys/kernel/osrelease"), "")}
}

// lockdown reports what the kernel prevents even root from doing.
func lockdown(_ context.Context, h Host) []Reading {
	b, err := h.read("sys/kernel/security/lockdown")
	if err != nil {
		return []Reading{unknown(fact.Lockdown, "the kernel has no lockdown, or securityfs is not mounted")}
	}
	mode := lockdownMode(string(b))
	if mode == "" {
		return []Reading{unknown(fact.Lockdown, "/sys/kernel/security/lockdown says something unexpected")}
	}
	return []Reading{known(fact.Lockdown, mode, "")}
}

// lockdownMode returns the mode in brackets of "none [integrity] confidentiality".
func lockdownMode(s string) string {
	for word := range strings.FieldsSeq(s) {
		mode, begins := strings.CutPrefix(word, "[")
		if mode, ends := strings.CutSuffix(mode, "]"); begins && ends {
			switch mode {
			case "none", "integrity", "confidentiality":
				return mode
			}
		}
	}
	return ""
}

const (
	efiVariables = "sys/firmware/efi/efivars"
	efiGlobal    = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
)

// secureBoot reports what the firmware says.
func secureBoot(_ context.Context, h Host) []Reading {
	if !h.exists("sys/firmware/efi") {
		return []Reading{yesNo(fact.SecureBoot, false, "the machine was not booted by UEFI")}
	}
	b, err := h.read(efiVariables + "/SecureBoot-" + efiGlobal)
	if err != nil {
		return []Reading{unknown(fact.SecureBoot, "the firmware's variable SecureBoot cannot be read")}
	}
	on, ok := efiFlag(b)
	if !ok {
		return []Reading{unknown(fact.SecureBoot, "the firmware's variable SecureBoot is no flag")}
	}
	// In setup mode anybody may replace the keys.
	if setup, ok := efiFlag(h.raw(efiVariables + "/SetupMode-" + efiGlobal)); ok && setup {
		return []Reading{yesNo(fact.SecureBoot, false, "the firmware is in setup mode: it accepts any key")}
	}
	return []Reading{yesNo(fact.SecureBoot, on, "")}
}

// raw returns a file; nil if it cannot be read.
func (h Host) raw(name string) []byte {
	b, err := h.read(name)
	if err != nil {
		return nil
	}
	return b
}

// efiFlag parses a variable of one byte, which follows its four bytes of attributes.
func efiFlag(b []byte) (on, ok bool) {
	if len(b) != 5 || b[4] > 1 {
		return false, false
	}
	return b[4] == 1, true
}

// fields returns the columns of each line of a table, skipping lines with fewer than least.
func fields(b []byte, least int) (out [][]string) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, maxFile)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) >= least {
			out = append(out, f)
		}
	}
	return out
}
