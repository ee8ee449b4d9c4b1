package machine

import (
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/acl/filter"
	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Effect is something to be done.
type Effect interface{ effect() }

// StartPath brings up device, routes and engine, with nothing passing, in the place of those that there are; what guards the
// host meanwhile stays. Beyond holds from the first moment. PathUp or PathDown follows.
type StartPath struct {
	Self   *identity.Self
	Beyond Beyond
}

// Lead changes what the host's network leads beyond the mesh.
type Lead struct{ Beyond Beyond }

// Offer says which routes the coordinator is told of from now on. The slice does not change.
type Offer struct{ Routes []netip.Prefix }

// StopPath takes them down again and puts everything back.
type StopPath struct{}

// Enrol asks the coordinator for the first certificate: Trouble, Enrolled or EnrolFailed follow.
type Enrol struct {
	Join     state.Join
	Hostname string
}

// Attach keeps a stream with the coordinator open, with this identity: Trouble, Connected, Lost and what comes on it
// follow. Applied is the version to resume from.
type Attach struct {
	Self    *identity.Self
	Applied proto.Version
}

// Resume changes the version that the next stream resumes from.
type Resume struct{ Applied proto.Version }

// Redial ends the stream, so that the next one begins from what Resume said last.
type Redial struct{ Reason string }

// Hang ends Enrol or Attach.
type Hang struct{}

// Renew asks for the next certificate on the stream: Renewed or RenewFailed follow.
type Renew struct{ Self *identity.Self }

// Turn puts another node key to use that the certificate names. Where that key was to come next, sessions go on under the one
// before until they are made anew.
type Turn struct{ To key.NodePublic }

// DropKey gives up the key that a renewal would ask for, so that the next one asks for another.
type DropKey struct{ Self *identity.Self }

// Ack tells the coordinator which version the data path enforces. It is left out if an effect before it failed.
type Ack struct{ Version proto.Version }

// Arm asks for a Tick at a mesh time. A later Arm replaces it; the zero time asks for none.
type Arm struct{ At time.Time }

// Log is a line for the log.
type Log struct {
	Warn    bool
	Message string
	Args    []any // key, value, ...
}

// SaveWanted makes up, down or revoked last.
type SaveWanted struct{ Wanted state.Wanted }

// SaveJoin makes the join code's content last.
type SaveJoin struct{ Join state.Join }

// SaveIdentity makes a certificate last.
type SaveIdentity struct{ Record identity.Record }

// SaveNetmap makes a whole netmap last.
type SaveNetmap struct{ Netmap *proto.Netmap }

// SaveDelta makes a change of the netmap last. Netmap is what it leads to.
type SaveDelta struct {
	Delta  *proto.Delta
	Netmap *proto.Netmap
}

// SaveFloors makes the floors last, all but that of mesh time, which is not for the machine to know.
type SaveFloors struct{ Floors state.Floors }

// Forget removes keys, identity and netmap: the node begins anew.
type Forget struct{}

// Install gives the filter the program that decides from now on; nil lets nothing pass.
type Install struct{ Program *filter.Program }

// Sweep judges all flows at once and sends the resets of those that died.
type Sweep struct{}

// SetPeers makes or changes peers of the engine.
type SetPeers struct {
	Peers []Peer
	// Again says that they may hold sessions with an engine of ours that is gone: they are worth a word at once.
	Again bool
}

// Peer is one that the engine may talk to.
type Peer struct {
	ID     proto.NodeID
	Keys   []key.NodePublic
	Addrs  proto.Addrs
	Routes []netip.Prefix   // behind it; each is one peer's at a time
	Device key.DevicePublic // that its path key is signed with
	proto.Reach
}

// RemovePeers removes peers of the engine, with their sessions.
type RemovePeers struct{ IDs []proto.NodeID }

func (Lead) effect()         {}
func (Offer) effect()        {}
func (Install) effect()      {}
func (Sweep) effect()        {}
func (SetPeers) effect()     {}
func (RemovePeers) effect()  {}
func (StartPath) effect()    {}
func (StopPath) effect()     {}
func (Enrol) effect()        {}
func (Attach) effect()       {}
func (Resume) effect()       {}
func (Redial) effect()       {}
func (Hang) effect()         {}
func (Renew) effect()        {}
func (Turn) effect()         {}
func (DropKey) effect()      {}
func (Ack) effect()          {}
func (Arm) effect()          {}
func (Log) effect()          {}
func (SaveWanted) effect()   {}
func (SaveJoin) effect()     {}
func (SaveIdentity) effect() {}
func (SaveNetmap) effect()   {}
func (SaveDelta) effect()    {}
func (SaveFloors) effect()   {}
func (Forget) effect()       {}
