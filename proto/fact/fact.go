// Package fact is the vocabulary of facts about nodes' machines, and of what people can do about them: agents collect facts,
// policies require them, and both ends advise people how to satisfy a rule that fails.
//
//	"needs posture:walled: posture:firewall == 'true', and it is "false"" ─Named─► posture:firewall ─Advice─► what to do
package fact

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Names of facts that agents collect.
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

// Names of facts that the coordinator knows of every node.
const (
	Attestation = "device:attestation"
	OSVersion   = "node:osVersion"
	Version     = "node:version"
)

// custom is the prefix of facts that administrators set.
const custom = "custom:"

// advice says what a person can do if a rule requires another value of a fact.
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
	Attestation: "the machine needs stronger attestation: rejoin it with a TPM whose vendor the coordinator trusts (--tpm-roots), or " +
		"with a certificate of the company",
	OSVersion: "update the machine's operating system, and reboot it",
	Version:   "install a newer version of Redoubt on the machine",
}

// Advice says how to change what a fact shows; it is empty if there is no advice.
func Advice(name string) string {
	if strings.HasPrefix(name, custom) {
		return "an administrator sets it: `redoubt-coordinator node fact set NODE " + name + " VALUE`"
	}
	return advice[name]
}

// Named returns the facts mentioned in a text for which there is advice, each once, in order of appearance.
func Named(text string) (out []string) {
	for text != "" {
		start := strings.IndexFunc(text, inName)
		if start < 0 {
			return out
		}
		text = text[start:]
		end := strings.IndexFunc(text, func(r rune) bool { return !inName(r) })
		if end < 0 {
			end = len(text)
		}
		// The name of a posture may be followed by a colon that belongs to the sentence.
		name := strings.TrimRight(text[:end], ":")
		if _, known := advice[name]; (known || strings.HasPrefix(name, custom)) && !slices.Contains(out, name) {
			out = append(out, name)
		}
		_, size := utf8.DecodeRuneInString(text[end:])
		text = text[end+size:]
	}
	return out
}

func inName(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || r == ':' || r == '_' || r == '-'
}
