package posture

import (
	"context"
	"strings"
)

// fileVault asks macOS whether its disk is encrypted.
func fileVault(ctx context.Context, h Host) []Reading {
	b, err := h.Run(ctx, "fdesetup", "status")
	if err != nil {
		return []Reading{unknown(DiskEncrypted, err.Error())}
	}
	return []Reading{fileVaultStatus(string(b))}
}

// fileVaultStatus reads what `fdesetup status` prints. While the disk is being encrypted it says On in the first line, and how far
// it is in the next.
func fileVaultStatus(s string) Reading {
	first, rest, _ := strings.Cut(s, "\n")
	switch strings.TrimSpace(first) {
	case "FileVault is On.":
		if strings.Contains(rest, "in progress") {
			return yesNo(DiskEncrypted, false, rest)
		}
		return yesNo(DiskEncrypted, true, first)
	case "FileVault is Off.":
		return yesNo(DiskEncrypted, false, first)
	}
	return unknown(DiskEncrypted, "fdesetup says something that is not understood")
}

// applicationFirewall asks macOS for its firewall.
func applicationFirewall(ctx context.Context, h Host) []Reading {
	b, err := h.Run(ctx, "socketfilterfw", "--getglobalstate")
	if err != nil {
		return []Reading{unknown(FirewallOn, err.Error())}
	}
	return []Reading{applicationFirewallState(string(b))}
}

// applicationFirewallState reads what `socketfilterfw --getglobalstate` prints, such as "Firewall is enabled. (State = 1)". State 2
// blocks everything.
func applicationFirewallState(s string) Reading {
	_, state, ok := strings.Cut(s, "(State = ")
	state, _, end := strings.Cut(state, ")")
	switch {
	case ok && end && state == "0":
		return yesNo(FirewallOn, false, s)
	case ok && end && (state == "1" || state == "2"):
		return yesNo(FirewallOn, true, s)
	}
	return unknown(FirewallOn, "socketfilterfw says something that is not understood")
}
