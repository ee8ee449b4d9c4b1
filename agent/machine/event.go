package machine

import (
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
)

// Event is something that happened.
type Event interface{ event() }

// Start is the first event: go on with what was loaded.
type Start struct{}

// Up says that the node shall run. Check has been asked before.
type Up struct {
	Join     *state.Join // nil: with the identity that there is
	Hostname string
	// Routing is what shall hold from now on; nil: as before.
	Routing *state.Routing
}

// Down says that the node shall not run.
type Down struct{}

// Stop says that the program ends; the node goes on in its next run.
type Stop struct{}

// Enrolled brings the first certificate.
type Enrolled struct{ Self *identity.Self }

// EnrolFailed says that enrolment was refused for good.
type EnrolFailed struct{ Reason string }

// Trouble says why the coordinator cannot be reached just now; it is tried again.
type Trouble struct{ Reason string }

// Pending says that this machine is a node once an administrator has approved it, and waits for that.
type Pending struct {
	URL        string // of the coordinator
	Code, Name string // by which administrators know the machine
	Message    string // what to do
}

// Connected says that a stream with the coordinator is open.
type Connected struct {
	URL string
	// Quarantine says why this node is kept apart from all others; empty where it is not.
	Quarantine string
	RenewFirst bool // the certificate that we came with is no good any more, or not the last: nothing is served before a renewal
}

// Heard says that something came on the stream.
type Heard struct{}

// Lost says that the stream ended.
type Lost struct {
	Reason string
	Unread bool // because what the coordinator said last is not understood
}

// Refused says that the coordinator ended the stream.
type Refused struct {
	Kind    Refusal
	Message string
}

// Refusal is what a refusal means for the node.
type Refusal uint8

// The kinds of refusals.
const (
	RefusedForNow      Refusal = iota + 1 // it may work later
	RefusedRevoked                        // the node is not one of the mesh any more
	RefusedQuarantined                    // the node is kept apart, for two machines have its identity
	RefusedLocked                         // the node is not trusted until an administrator says otherwise
)

// Snapshot brings a whole netmap.
type Snapshot struct{ Netmap *proto.Netmap }

// Change brings what leads to the next netmap.
type Change struct{ Delta *proto.Delta }

// Renewed brings the next certificate.
type Renewed struct{ Self *identity.Self }

// RenewFailed says that no certificate came.
type RenewFailed struct {
	Reason string
	// KeyUsed says that the key to come next is not to be had.
	KeyUsed bool
	// Withheld says that there is none before somebody has done something about it, and After when to ask again.
	Withheld bool
	After    time.Duration
}

// PathUp says that the data path of this generation runs, with nothing passing yet.
type PathUp struct{}

// PathDown says that the data path does not run, and why.
type PathDown struct{ Reason string }

// Failed says that an effect could not be carried out. Of those after it in the same list, none that saves and no Ack
// was carried out either.
type Failed struct {
	Effect Effect
	Reason string
}

// Tick says that the time that Arm asked for has come.
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
func (Tick) event()        {}
