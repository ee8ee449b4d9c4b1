package proto

import "time"

// Limits of a netmap. A coordinator that needs more must split the mesh; an agent refuses more.
const (
	MaxPeers       = 100_000
	MaxEndpoints   = 16 // of one node
	MaxSignature   = 80 // of a path key, bytes
	MaxAuthorities = 32
	MaxCertificate = 8 << 10 // bytes
	MaxBarred      = MaxPeers
	MaxSets        = 20_000
	MaxMembers     = 2_000_000 // of all sets together
	MaxRules       = 50_000
	MaxRequires    = 64
	// Per rule. Together they keep a rule smaller than one part on the wire.
	MaxRuleSets     = 256
	MaxRulePrefixes = 4096 // each of Peers.Prefixes and Local
	MaxServices     = 4096
	MaxCapabilities = 64      // of one rule
	MaxCapability   = 8 << 10 // bytes of one rule's capabilities together
	MaxWithheld     = 256     // rules of a netmap that do not apply
	MaxRoutes       = 256     // of one peer
	MaxRelays       = 64
	MaxRelayAddrs   = 8 // of one relay
	MaxRelayURLs    = 8 // of one relay
	// Lengths of strings, in bytes.
	MaxName   = 256 // names of sets, keys and paths of rules, features
	MaxDomain = 190 // leaves room for a label before it
	MaxTags   = 64
	MaxTag    = 64
	MaxUser   = 256 // each of issuer, subject and name
	MaxReason = 512 // why a rule does not apply
	MaxGrace  = 366 * 24 * time.Hour
)
