package posture

import (
	"context"
	"fmt"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// fileVault asks macOS whether its disk is encrypted.
func fileVault(ctx context.Context, h Host) []Reading {
	b, err := h.Run(ctx, "fdesetup", "status")
	if err != nil {
		return []Reading{unknown(fact.DiskEncrypted, err.Error())}
	}
	return []Reading{fileVaultStatus(string(b))}
}

// fileVaultStatus parses the output of `fdesetup status`: a line that says On or Off, and others around it. While the disk
// is being encrypted or decrypted it says On, with the progress in another line. Anything unexpected does not count as yes.
func fileVaultStatus(s string) Reading {
	on, off, odd := "", "", ""
	for line := range strings.Lines(s) {
		switch line = strings.TrimSpace(line); {
		case line == "", line == "FileVault master keychain appears to be installed.":
		case line == "FileVault is On.":
			on = line
		case strings.HasPrefix(line, "FileVault is Off"), // also: "Off, but will be enabled after the next restart."
			strings.HasPrefix(line, "FileVault is On, but"), // "needs to be restarted to finish."
			strings.Contains(line, "in progress"):
			off = line
		default:
			odd = line
		}
	}
	switch {
	case off != "":
		return yesNo(fact.DiskEncrypted, false, off)
	case on != "" && odd == "":
		return yesNo(fact.DiskEncrypted, true, on)
	}
	return unknown(fact.DiskEncrypted, fmt.Sprintf("fdesetup says %q, which is not understood", odd))
}

// applicationFirewall asks macOS for the state of its firewall.
func applicationFirewall(ctx context.Context, h Host) []Reading {
	b, err := h.Run(ctx, "socketfilterfw", "--getglobalstate")
	if err != nil {
		return []Reading{unknown(fact.FirewallOn, err.Error())}
	}
	return []Reading{applicationFirewallState(string(b))}
}

// applicationFirewallState parses the output of `socketfilterfw --getglobalstate`, such as "Firewall is enabled. (State =
// 1)". State 2 blocks everything.
func applicationFirewallState(s string) Reading {
	_, state, ok := strings.Cut(s, "(State = ")
	state, _, end := strings.Cut(state, ")")
	switch {
	case ok && end && state == "0":
		return yesNo(fact.FirewallOn, false, s)
	case ok && end && (state == "1" || state == "2"):
		return yesNo(fact.FirewallOn, true, s)
	}
	return unknown(fact.FirewallOn, "socketfilterfw says something unexpected")
}
