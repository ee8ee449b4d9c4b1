package posture

// Names of facts.
const (
	Distro        = "posture:distro"
	DistroVersion = "posture:distroVersion"
	KernelVersion = "posture:kernelVersion"
	Lockdown      = "posture:kernelLockdown"
	SecureBoot    = "posture:secureBoot"
	FirewallOn    = "posture:firewall"
	DiskEncrypted = "posture:diskEncrypted"
)

// advice is what a person can do where a rule asks for something else than a fact says.
var advice = map[string]string{
	Distro:        "the rule is for machines with another distribution",
	DistroVersion: "upgrade the system to a newer release of the distribution",
	KernelVersion: "install the updates, and boot the newest kernel",
	Lockdown:      "boot with secure boot, or with lockdown=integrity on the kernel's command line",
	SecureBoot:    "turn secure boot on in the firmware's set-up",
	FirewallOn: "turn on a firewall that drops what comes in and that no rule of it lets in: on Linux `ufw enable`, firewalld, " +
		"or a chain of nftables at the hook input with policy drop",
	DiskEncrypted: "encrypt the disk: with LUKS on Linux, also the swap, with FileVault on macOS, with BitLocker on Windows",
}

// Advice says how to mend what a fact shows; empty where that is not known.
func Advice(fact string) string { return advice[fact] }
