package posture

import (
	"context"
	"testing"
)

const (
	askBitLocker = "powershell.exe -NoLogo -NoProfile -NonInteractive -Command $v = Get-BitLockerVolume -MountPoint $env:SystemDrive; " +
		"'VolumeStatus={0:d} ProtectionStatus={1:d}' -f $v.VolumeStatus, $v.ProtectionStatus"
	askDefender = "powershell.exe -NoLogo -NoProfile -NonInteractive -Command " +
		"Get-NetFirewallProfile -PolicyStore ActiveStore | ForEach-Object { '{0}={1:d}/{2:d}' -f $_.Name, $_.Enabled, $_.DefaultInboundAction }"
)

// TestOtherSystems uses the recorded output of other systems' programs.
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
		{fileVault, "fdesetup status", "FileVault is On.\nDeferred enablement appears to be active for user 'ann'.\n", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "FileVault is On.\nDecryption in progress: Percent completed = 7.0\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "Decryption in progress: Percent completed = 25.0\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "Encryption in progress: Percent completed = 50.0\nFileVault master keychain appears to be installed.\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "FileVault is On.\nFileVault master keychain appears to be installed.\n", "diskEncrypted=true"},
		{fileVault, "fdesetup status", "FileVault master keychain appears to be installed.\nFileVault is On.\n", "diskEncrypted=true"},
		{fileVault, "fdesetup status", "FileVault is On, but needs to be restarted to finish.\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "FileVault is Off, but will be enabled after the next restart.\n", "diskEncrypted=false"},
		{fileVault, "fdesetup status", "FileVault ist aktiviert.\n", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "FileVault is On\n", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "Is it so that FileVault is On.\n", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "Error: unknown\n", "diskEncrypted=-"},
		{fileVault, "fdesetup status", "!", "diskEncrypted=-"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is enabled. (State = 1) \n", "firewall=true"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is set to block all non-essential incoming connections. (State = 2)\n", "firewall=true"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is disabled. (State = 0)\n", "firewall=false"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall settings cannot be modified from command line on managed Mac computers.\n", "firewall=-"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is enabled.\n", "firewall=-"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is enabled. (State = 3)\n", "firewall=-"},
		{applicationFirewall, "socketfilterfw --getglobalstate", "Firewall is enabled. (State = 1\n", "firewall=-"},
		{applicationFirewall, "none", "", "firewall=-"},
		{bitLocker, askBitLocker, "VolumeStatus=1 ProtectionStatus=1\r\n", "diskEncrypted=true"},
		{bitLocker, askBitLocker, "VolumeStatus=1 ProtectionStatus=0\r\n", "diskEncrypted=false"},
		{bitLocker, askBitLocker, "VolumeStatus=2 ProtectionStatus=0\r\n", "diskEncrypted=false"},
		{bitLocker, askBitLocker, "VolumeStatus=3 ProtectionStatus=1\r\n", "diskEncrypted=false"},
		{bitLocker, askBitLocker, "VolumeStatus=6 ProtectionStatus=1\r\n", "diskEncrypted=false"},
		{bitLocker, askBitLocker, "VolumeStatus=1 ProtectionStatus=2\r\n", "diskEncrypted=-"},
		{bitLocker, askBitLocker, "VolumeStatus=8 ProtectionStatus=1\r\n", "diskEncrypted=-"},
		{bitLocker, askBitLocker, "VolumeStatus=FullyEncrypted ProtectionStatus=On\r\n", "diskEncrypted=-"},
		{bitLocker, askBitLocker, "VolumeStatus= ProtectionStatus=\r\n", "diskEncrypted=-"},
		{bitLocker, askBitLocker, "!VolumeStatus=1 ProtectionStatus=1\r\n", "diskEncrypted=-"},
		{defenderFirewall, askDefender, "Domain=1/4\r\nPrivate=1/4\r\nPublic=1/4\r\n", "firewall=true"},
		{defenderFirewall, askDefender, "Domain=1/0\r\nPrivate=1/0\r\nPublic=1/4\r\n", "firewall=true"},
		{defenderFirewall, askDefender, "Domain=1/4\r\nPrivate=0/4\r\nPublic=1/4\r\n", "firewall=false"},
		{defenderFirewall, askDefender, "Domain=1/4\r\nPrivate=1/2\r\nPublic=1/4\r\n", "firewall=false"},
		{defenderFirewall, askDefender, "Domain=1/4\r\nPrivate=1/4\r\nPublic=2/4\r\n", "firewall=-"},
		{defenderFirewall, askDefender, "Domain=1/4\r\nPrivate=1/4\r\nPublic=1/\r\n", "firewall=-"},
		{defenderFirewall, askDefender, "Domain=True/Block\r\nPrivate=True/Block\r\nPublic=True/Block\r\n", "firewall=-"},
		{defenderFirewall, askDefender, "Domain=1/4\r\nPublic=1/4\r\n", "firewall=-"},
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
	f.Add("Domain=1/4\r\nPrivate=1/4\r\nPublic=1/4\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		sound(t, fileVaultStatus(s), applicationFirewallState(s), bitLockerStatus(s), defenderFirewallProfiles(s))
	})
}
