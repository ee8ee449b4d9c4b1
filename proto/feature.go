package proto

// Protocol versions of the control stream that this program speaks. Each side names its range and the highest common
// one is taken; where there is none the connection is refused with both ranges in the message.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)

// Features are what a program can do beyond the protocol's version. An agent declares those it has; a netmap names those
// that enforcing it takes.
const (
	// FeatureBarred is knowing of nodes that are revoked or locked. No netmap requires it: they are no peers either way.
	FeatureBarred = "barred/1"
	// FeatureRelays is reaching peers through relays. Netmaps name relays to nodes that have it, and none requires it.
	FeatureRelays = "relays/1"
	// FeaturePaths is knowing of path keys and home relays. Netmaps have those for nodes with it, and none requires it.
	FeaturePaths = "paths/1"
	// FeatureRules is enforcing Rules with Sets in both directions, statefully.
	FeatureRules = "rules/1"
	// FeatureDeny is enforcing rules whose action is Deny or Monitor, and Until.
	FeatureDeny = "deny/1"
	// FeatureConditions is letting go of conditional sets and rules Outage.Posture after the last contact.
	FeatureConditions = "conditions/1"
	// FeaturePosture is taking facts of a machine's health on the stream. No netmap requires it.
	FeaturePosture = "posture/1"
)

// Features lists what this build can do, sorted.
func Features() []string {
	return []string{FeatureBarred, FeatureConditions, FeatureDeny, FeaturePaths, FeaturePosture, FeatureRelays, FeatureRules}
}
