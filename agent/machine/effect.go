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

// StartPath brings up device, routes and engine, with nothing passing, in place of any that are up; the guard of the host
// stays. Beyond holds from the start. PathUp or PathDown follows.
type StartPath struct {
	Self   *identity.Self
	Beyond Beyond
}

// Lead changes what the host's network routes beyond the mesh.
type Lead struct{ Beyond Beyond }

// Offer says which routes to announce to the coordinator. The slice must not be changed.
type Offer struct{ Routes []netip.Prefix }

// StopPath takes them down again and restores the host's network.
type StopPath struct{}

// Enrol asks the coordinator for the first certificate: Trouble, Enrolled or EnrolFailed follows.
type Enrol struct {
	Join     state.Join
	Hostname string
}

// Attach keeps a stream with the coordinator open under this identity: Trouble, Connected, Lost and the events of the stream
// follow. Applied is the version to resume from.
type Attach struct {
	Self    *identity.Self
	Applied proto.Version
}

// Resume changes the version from which the next stream resumes.
type Resume struct{ Applied proto.Version }

// Redial ends the stream, so that the next one resumes from the version of the last Resume.
type Redial struct{ Reason string }

// Hang ends Enrol or Attach.
type Hang struct{}

// Renew asks for the next certificate on the stream: Renewed or RenewFailed follows.
type Renew struct{ Self *identity.Self }

// Turn starts using another node key that the certificate names. If that was the key to come next, sessions made under the
// previous key go on until they are rekeyed.
type Turn struct{ To key.NodePublic }

// DropKey discards the key that a renewal would ask for, so that the next renewal asks for another one.
type DropKey struct{ Self *identity.Self }

// Ack tells the coordinator which version the data path enforces. It is skipped if an enforcing or saving effect before it
// failed.
type Ack struct{ Version proto.Version }

// Arm asks for a Tick at a mesh time. A later Arm replaces it; the zero time asks for none.
type Arm struct{ At time.Time }

// Log is a line for the log.
type Log struct {
	Warn    bool
	Message string
	Args    []any // key, value, ...
}

// SaveWanted saves whether the node is to be up, is revoked or is locked.
type SaveWanted struct{ Wanted state.Wanted }

// SaveJoin saves the content of the join code.
type SaveJoin struct{ Join state.Join }

// SaveIdentity saves a certificate.
type SaveIdentity struct{ Record identity.Record }

// SaveNetmap saves a whole netmap.
type SaveNetmap struct{ Netmap *proto.Netmap }

// SaveDelta saves a change of the netmap. Netmap is the result.
type SaveDelta struct {
	Delta  *proto.Delta
	Netmap *proto.Netmap
}

// SaveFloors saves the floors. Whoever carries it out fills in that of mesh time, which the machine does not know.
type SaveFloors struct{ Floors state.Floors }

// Forget removes keys, identity and netmap: the node starts from scratch.
type Forget struct{}

// Install gives the filter the program by which it decides; nil lets nothing pass.
type Install struct{ Program *filter.Program }

// Sweep checks all flows at once and sends the resets of those that end.
type Sweep struct{}

// SetPeers adds or changes peers of the engine.
type SetPeers struct {
	Peers []Peer
	// Again means that they may hold sessions with a previous engine of ours: they should be contacted at once.
	Again bool
}

// Peer is a peer that the engine may talk to.
type Peer struct {
	ID     proto.NodeID
	Keys   []key.NodePublic
	Addrs  proto.Addrs
	Routes []netip.Prefix   // networks behind it; each belongs to one peer at a time
	Device key.DevicePublic // by which its path key is signed
	proto.Reach
}

// RemovePeers removes peers from the engine, with their sessions.
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
