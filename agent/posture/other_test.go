package posture

import (
	"context"
	"testing"
)

const (
	askBitLocker = "powershell.exe -NoLogo -NoProfile -NonInteractive -Command $v = Get-BitLockerVolume -MountPoint $env:SystemDrive; " +
		"'VolumeStatus={0:d} ProtectionStatus={1:d}' -f $v.VolumeStatus, $v.ProtectionStatus"
	askDefender = "powershell.exe -NoLogo -NoProfile -NonInteractive -Command " +
		"Get-NetFirewallProfile -PolicyStore ActiveStore | ForEach-Object { '{0}={1:d}' -f $_.Name, $_.Enabled }"
)

// What other systems' programs print, as recorded.
func TestOtherSystems(t *testing.T) {
	for _, c := range []struct {
		read         func(context.Context, Host) []Reading
		program, out string
		want         string
	}{
		{fileVault, "fdesetup status", "FileVault is On.\n", "diskEncrypted=true"},
		{fileVault, "fdesetup status", "FileVault is On.\nEncryption in progress: Percent completed = 41\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "FileVault is Off.\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "FileVault is Off.\nDeferred enablement appears to be active for user 'ann'.\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "Error: unknown\n", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "!", "diskEncrypted=-"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is enabled. (State = 1) \n", "firewall=true"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is set to block all non-essential incoming connections. (State = 2)\n", "firewall=true"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is disabled. (State = 0)\n", "firewall=false"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall settings cannot be modified from command line on managed Mac computers.\n", "firewall=-"},
		{applicationFirewall, "none", "", "firewall=-"},
		{bitLocker, askBitLocker, "VolumeStatus=1 ProtectionStatus=1\r\n", "diskEncrypted=true"},
		{bitLocker, askBitLocker, "VolumeStatus=1 ProtectionStatus=0\r\n", "diskEncrypted=false"},
		{bitLocker, askBitLocker, "VolumeStatus=2 ProtectionStatus=0\r\n", "diskEncrypted=false"},
		{bitLocker, askBitLocker, "VolumeStatus= ProtectionStatus=\r\n", "diskEncrypted=-"},
		{defenderFirewall, askDefender, "Domain=1\r\nPrivate=1\r\nPublic=1\r\n", "firewall=true"},
		{defenderFirewall, askDefender, "Domain=1\r\nPrivate=0\r\nPublic=1\r\n", "firewall=false"},
		{defenderFirewall, askDefender, "Domain=1\r\nPublic=2\r\n", "firewall=-"},
		{defenderFirewall, "none", "", "firewall=-"},
	} {
		if got := values(c.read(t.Context(), machine(nil, map[string]string{c.program: c.out}))); got != c.want {
			t.Errorf("%q: %s, want %s", c.out, got, c.want)
		}
	}
}

func FuzzOtherSystems(f *testing.F) {
	f.Add("FileVault is On.\nEncryption in progress: Percent completed = 41\n")
	f.Add("Firewall is enabled. (State = 1) \n")
	f.Add("VolumeStatus=1 ProtectionStatus=1\r\n")
	f.Add("Domain=1\r\nPrivate=1\r\nPublic=1\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		sound(t, fileVaultStatus(s), applicationFirewallState(s), bitLockerStatus(s), defenderFirewallProfiles(s))
	})
}
