package posture

import (
	"context"
	"strings"

	"github.com/redoubt-mesh/redoubt/proto/fact"
)

// powershell runs one command. Its output is independent of the language: numbers and names of the system.
func powershell(ctx context.Context, h Host, command string) ([]byte, error) {
	return h.Run(ctx, "powershell.exe", "-NoLogo", "-NoProfile", "-NonInteractive", "-Command", command)
}

// bitLocker asks Windows whether the system drive is encrypted.
func bitLocker(ctx context.Context, h Host) []Reading {
	b, err := powershell(ctx, h, "$v = Get-BitLockerVolume -MountPoint $env:SystemDrive; "+
		"'VolumeStatus={0:d} ProtectionStatus={1:d}' -f $v.VolumeStatus, $v.ProtectionStatus")
	if err != nil {
		return []Reading{unknown(fact.DiskEncrypted, err.Error())}
	}
	return []Reading{bitLockerStatus(string(b))}
}

// bitLockerStatus parses VolumeStatus and ProtectionStatus. The drive is protected if it is fully encrypted (1) and its key
// is not stored on it in clear (1). While formerly free space is being wiped (6, 7) it is not done.
func bitLockerStatus(s string) Reading {
	values := assignments(s)
	volume, protection := values["VolumeStatus"], values["ProtectionStatus"]
	switch {
	case volume == "1" && protection == "1":
		return yesNo(fact.DiskEncrypted, true, "BitLocker")
	case volume == "1" && protection == "0":
		return yesNo(fact.DiskEncrypted, false, "BitLocker is suspended")
	case len(volume) == 1 && strings.Contains("0234567", volume):
		return yesNo(fact.DiskEncrypted, false, "the system's drive is not fully encrypted")
	}
	return unknown(fact.DiskEncrypted, "Get-BitLockerVolume says something unexpected")
}

// defenderFirewall asks Windows for the state of its firewall.
func defenderFirewall(ctx context.Context, h Host) []Reading {
	b, err := powershell(ctx, h, "Get-NetFirewallProfile -PolicyStore ActiveStore | "+
		"ForEach-Object { '{0}={1:d}/{2:d}' -f $_.Name, $_.Enabled, $_.DefaultInboundAction }")
	if err != nil {
		return []Reading{unknown(fact.FirewallOn, err.Error())}
	}
	return []Reading{defenderFirewallProfiles(string(b))}
}

// defenderFirewallProfiles requires the firewall to be on (1) in each profile, since the network may change, and to block
// what no rule matches (4, or the default, 0, which blocks as well).
func defenderFirewallProfiles(s string) Reading {
	values := assignments(s)
	for _, profile := range []string{"Domain", "Private", "Public"} {
		switch on, inbound, _ := strings.Cut(values[profile], "/"); {
		case on == "0":
			return yesNo(fact.FirewallOn, false, "the firewall is off in the profile "+profile)
		case on == "1" && inbound == "2":
			return yesNo(fact.FirewallOn, false, "the firewall admits what no rule matches in the profile "+profile)
		case on != "1" || inbound != "0" && inbound != "4":
			return unknown(fact.FirewallOn, "Get-NetFirewallProfile says something unexpected")
		}
	}
	return yesNo(fact.FirewallOn, true, "on in all profiles")
}

// assignments parses words such as Name=1.
func assignments(s string) map[string]string {
	out := map[string]string{}
	for word := range strings.FieldsSeq(s) {
		if name, value, ok := strings.Cut(word, "="); ok && len(out) < 64 {
			out[name] = value
		}
	}
	return out
}
