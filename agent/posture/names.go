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

	UpdatesPending = "posture:updatesPending"
	UpdatesAge     = "posture:updatesAge"
	RebootRequired = "posture:rebootRequired"
	ScreenLock     = "posture:screenLock"
	EDR            = "posture:edr"
	EDRHash        = "posture:edrHash"
	SSHRootLogin   = "posture:sshRootLogin"
	OsqueryVersion = "posture:osqueryVersion"
	AgentHash      = "posture:agentHash"
)

// advice is what a person can do where a rule asks for something else than a fact says.
var advice = map[string]string{
	Distro:        "the rule requires a different distribution",
	DistroVersion: "upgrade the system to a newer release of the distribution",
	KernelVersion: "install the updates, and boot the newest kernel",
	Lockdown:      "boot with secure boot, or with lockdown=integrity on the kernel command line",
	SecureBoot:    "turn on secure boot in the firmware setup",
	FirewallOn: "turn on a firewall that drops incoming packets by default: on Linux `ufw enable`, firewalld, " +
		"or an nftables chain at the input hook with policy drop",
	UpdatesPending: "install the updates: `apt-get update && apt-get upgrade`, or `dnf upgrade --security`",
	UpdatesAge:     "install the updates: `apt-get update && apt-get upgrade`, or `dnf upgrade --security`",
	RebootRequired: "reboot the machine",
	ScreenLock: "make the system lock idle screens, and keep users from changing that: for GNOME in /etc/dconf/db/local.d and its " +
		"locks, for Plasma in /etc/xdg/kscreenlockerrc",
	EDR:            "install the product that the rule requires, and start its service; other products can be given to the agent with --edr",
	EDRHash:        "install the version of the product that the rule requires",
	SSHRootLogin:   "set PermitRootLogin in /etc/ssh/sshd_config to what the rule requires, and reload sshd",
	OsqueryVersion: "install osquery, and start osqueryd.service",
	AgentHash:      "install the version of the agent that the rule requires",
	DiskEncrypted:  "encrypt the disk: with LUKS (and also the swap) on Linux, with FileVault on macOS, with BitLocker on Windows",
}

// Advice says how to mend what a fact shows; empty where that is not known.
func Advice(fact string) string { return advice[fact] }
