package proto

// Protocol versions of the control stream that this program speaks. Each side announces its range, and the highest common
// version is used; if there is none, the connection is refused with both ranges in the message.
const (
	ProtocolMin = 1
	ProtocolMax = 1
)

// Features are abilities of a program beyond the protocol version. An agent declares those it has; a netmap names those needed
// to enforce it.
const (
	// FeatureBarred is knowing about revoked or locked nodes. No netmap requires it: they are not peers either way.
	FeatureBarred = "barred/1"
	// FeatureRelays is reaching peers through relays. Netmaps list relays only for nodes that have it, and none requires it.
	FeatureRelays = "relays/1"
	// FeaturePaths is knowing path keys and home relays. Netmaps contain them only for nodes that have it, and none requires it.
	FeaturePaths = "paths/1"
	// FeatureRules is enforcing Rules with Sets in both directions, statefully.
	FeatureRules = "rules/1"
	// FeatureDeny is enforcing rules whose action is Deny or Monitor, and Until.
	FeatureDeny = "deny/1"
	// FeatureConditions is dropping conditional sets and rules Outage.Posture after the last contact.
	FeatureConditions = "conditions/1"
	// FeaturePosture is accepting facts about a machine's health on the stream. No netmap requires it.
	FeaturePosture = "posture/1"
)

// Features lists what this build can do, sorted.
func Features() []string {
	return []string{FeatureBarred, FeatureConditions, FeatureDeny, FeaturePaths, FeaturePosture, FeatureRelays, FeatureRules}
}
