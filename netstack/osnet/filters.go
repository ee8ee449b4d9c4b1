package osnet

// The verdicts of a FilterRule.
const (
	VerdictNone   = ""       // evaluation continues: the rule counts, logs or marks
	VerdictAccept = "accept" // ends the hook's chain
	VerdictDrop   = "drop"   // or reject
	VerdictJump   = "jump"   // to Target, which returns here
	VerdictGoto   = "goto"   // to Target, which returns to the caller of this chain
	VerdictReturn = "return"
)

// FilterChain is a chain of this host's packet filters, as far as it matters for incoming packets.
type FilterChain struct {
	Family string // ip, ip6 or inet
	Table  string
	Name   string
	Input  bool // packets for this host enter here
	Drops  bool // its policy is to drop
	Rules  []FilterRule
}

// FilterRule is a rule of a chain.
type FilterRule struct {
	Conditional bool // it applies to some packets only
	Verdict     string
	Target      string // of a jump or goto
}
