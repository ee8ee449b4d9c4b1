package osnet

// Kinds of verdicts of a FilterRule.
const (
	VerdictNone   = ""       // it goes on: the rule counts, logs or marks
	VerdictAccept = "accept" // ends the hook's chain
	VerdictDrop   = "drop"   // or reject
	VerdictJump   = "jump"   // to Target, and back here
	VerdictGoto   = "goto"   // Target, and back to whoever jumped here
	VerdictReturn = "return"
)

// FilterChain is a chain of this host's packet filters, as far as it matters for what comes in.
type FilterChain struct {
	Family string // ip, ip6 or inet
	Table  string
	Name   string
	Input  bool // what comes in for this host begins here
	Drops  bool // its policy is to drop
	Rules  []FilterRule
}

// FilterRule is a rule of a chain.
type FilterRule struct {
	Conditional bool // it is about some packets only
	Verdict     string
	Target      string // of a jump or goto
}
