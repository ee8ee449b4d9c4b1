package machine

import (
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Event is something that happened.
type Event interface{ event() }

// Start is the first event: continue from what was loaded.
type Start struct{}

// Up asks the node to run. The caller has called Check.
type Up struct {
	Join     *state.Join // nil: with the present identity
	Hostname string
	// Routing replaces the routing settings; nil leaves them unchanged.
	Routing *state.Routing
}

// Down asks the node to stop running.
type Down struct{}

// Stop announces that the program ends; the node continues in the next run.
type Stop struct{}

// Enrolled delivers the first certificate.
type Enrolled struct{ Self *identity.Self }

// EnrolFailed reports that enrolment was refused for good.
type EnrolFailed struct{ Reason string }

// Trouble reports why the coordinator cannot be reached at the moment; the client keeps trying.
type Trouble struct{ Reason string }

// Pending reports that this machine must wait until an administrator approves it.
type Pending struct {
	URL        string // of the coordinator
	Code, Name string // by which administrators recognise the machine
	Message    string // what to do
}

// Connected reports that a stream with the coordinator is open.
type Connected struct {
	URL string
	// Quarantine is why this node is isolated from all others; empty if it is not.
	Quarantine string
	RenewFirst bool // the certificate we came with is no longer good, or not the latest: nothing is served before a renewal
}

// Heard reports that something came on the stream.
type Heard struct{}

// Lost reports that the stream ended.
type Lost struct {
	Reason string
	Unread bool // because the coordinator's last message could not be parsed
}

// Refused reports that the coordinator ended the stream.
type Refused struct {
	Kind    Refusal
	Message string
}

// Refusal is what a refusal means for the node.
type Refusal uint8

// The kinds of refusals.
const (
	RefusedForNow      Refusal = iota + 1 // it may work later
	RefusedRevoked                        // the node no longer belongs to the mesh
	RefusedQuarantined                    // the node is isolated, because two machines have its identity
	RefusedLocked                         // the node is not trusted until an administrator says otherwise
)

// Snapshot delivers a whole netmap.
type Snapshot struct{ Netmap *proto.Netmap }

// Change delivers the delta to the next netmap.
type Change struct{ Delta *proto.Delta }

// Renewed delivers the next certificate.
type Renewed struct{ Self *identity.Self }

// RenewFailed reports that there is no new certificate.
type RenewFailed struct {
	Reason string
	// KeyUsed means that the coordinator will not accept the key to come next.
	KeyUsed bool
	// Withheld means that there is none until somebody has done something about it; After is when to ask again.
	Withheld bool
	After    time.Duration
}

// PathUp reports that the data path is running, with nothing passing yet.
type PathUp struct{}

// PathDown reports that the data path is not running, and why.
type PathDown struct{ Reason string }

// Failed reports that an effect could not be carried out. If that one enforces or saves, no Ack after it in the same list
// was carried out; if it saves, neither was any later save.
type Failed struct {
	Effect Effect
	Reason string
}

// KeysRead delivers the node keys that could not be read when the program started, the one in use first.
type KeysRead struct{ Held []key.NodePublic }

// Tick reports that the time that Arm asked for has come.
type Tick struct{}

func (Start) event()       {}
func (Up) event()          {}
func (Down) event()        {}
func (Stop) event()        {}
func (Enrolled) event()    {}
func (EnrolFailed) event() {}
func (Trouble) event()     {}
func (Pending) event()     {}
func (Connected) event()   {}
func (Heard) event()       {}
func (Lost) event()        {}
func (Refused) event()     {}
func (Snapshot) event()    {}
func (Change) event()      {}
func (Renewed) event()     {}
func (RenewFailed) event() {}
func (PathUp) event()      {}
func (PathDown) event()    {}
func (Failed) event()      {}
func (KeysRead) event()    {}
func (Tick) event()        {}
