package directory

import (
	"errors"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Errors that callers distinguish. Returned errors wrap one of them and say what to do next.
var (
	ErrTokenUnknown  = errors.New("join token is not known")
	ErrTokenSpent    = errors.New("join token was used before")
	ErrTokenExpired  = errors.New("join token has expired")
	ErrTokenRevoked  = errors.New("join token was revoked")
	ErrMachineKnown  = errors.New("machine is another node already")
	ErrDowngrade     = errors.New("machine proves less than the node's did before")
	ErrKeyUsed       = errors.New("key is held by another node, or was once")
	ErrRevoked       = errors.New("node was revoked")
	ErrUnknown       = errors.New("node is not known")
	ErrPolicyChanged = errors.New("another policy was applied in the meantime")
	ErrPolicyUnknown = errors.New("there is no such policy version")
	ErrInvalid       = errors.New("not valid")
	ErrFenced        = errors.New("another coordinator has opened this store")
	ErrClosed        = errors.New("directory is closed")
)

// Node is a machine in the mesh. Values are shared and never change.
type Node struct {
	proto.Identity
	Device key.DevicePublic
	// Key is the first WireGuard key named in the last certificate; Next replaces it at NextFrom. A node that has never renewed
	// has no Next.
	Key, Next key.NodePublic
	NextFrom  time.Time
	// Seed is the secret from which the node's tickets are derived. Ticket is the number of the ticket issued with the
	// certificate, Used that of the ticket the certificate was issued for; see Renew.
	Seed         []byte
	Ticket, Used uint64
	Released     bool        // from quarantine, and not renewed since
	Quarantine   *Quarantine // nil unless the node is quarantined
	Level        cert.Level  // as last proved; see Attestation for the rest
	Relay        bool        // carries packets for nodes; policies do not apply to it
	Ephemeral    bool        // removed after being away for AwayLimit
	Hostname     string      // as reported by the node; Name is derived from it
	Token        string      // id of the token it enrolled with
	Created      time.Time
	Revoked      *Revocation // nil while the node is trusted
	Lock         *Lock       // the lock in effect; nil for none. Not part of the node's record
	Verdict      *Verdict    // an administrator's decision about the machine; nil for none
	// Certificate is the last certificate issued.
	Certificate Certificate
	Attestation Attestation
}

// Attested is what a node's machine proved about itself, besides its level.
type Attested struct {
	Kind      string // of the evidence
	Device    string // name of the hardware device; one device is one node
	Selectors []string
	Checks    []string
	// Again reports that the proof can be repeated at each renewal; Known is needed for that.
	Again bool
	Known []byte
}

// Attestation is the record of what a machine proved.
type Attestation struct {
	Attested
	// Highest is the highest level proved so far; a machine below it cannot replace this one. It is LevelNone after a reset.
	Highest cert.Level
	Since   time.Time // when the current proof was first given
	Lapse   string    // why the proof could not be repeated; empty while it can
}

// Checked returns when the node last proved what it is: at its last certificate if it repeats the proof at each renewal.
func (n *Node) Checked() time.Time {
	if a := &n.Attestation; a.Again && a.Lapse == "" {
		return n.Certificate.Issued
	}
	return n.Attestation.Since
}

// Certificate is an issued node certificate.
type Certificate struct {
	DER       []byte
	Serial    string
	Sequence  uint64
	Issued    time.Time // by the coordinator's clock; NotBefore may be earlier
	NotBefore time.Time
	NotAfter  time.Time
}

// Revocation records who revoked something, when, and why.
type Revocation struct {
	At     time.Time
	By     string
	Reason string
}

// Token lets machines join. Its secret half is known only to whoever created it, never to the coordinator.
type Token struct {
	ID        string // "t" and 13 characters, derived from the public half
	Public    key.TokenPublic
	User      string   // login name of the user who will own the nodes
	Tags      []string // sorted; empty if there is a user
	Reusable  bool
	Ephemeral bool
	Relay     bool // for relays, which have neither a user nor tags
	By        string
	Created   time.Time
	Expires   time.Time
	Uses      uint32
	// Spent is the device that used up a single-use token; only that device may enroll with it again.
	Spent   key.DevicePublic
	SpentBy proto.NodeID
	// Replace is the node whose machine the joining one replaces; 0 if it becomes a new node.
	Replace proto.NodeID
	Revoked *Revocation
}

// Token states.
const (
	TokenValid   = "valid"
	TokenSpent   = "spent"
	TokenExpired = "expired"
	TokenRevoked = "revoked"
)

// State returns the token's state at a time.
func (t *Token) State(now time.Time) string {
	switch {
	case t.Revoked != nil:
		return TokenRevoked
	case t.SpentBy != 0:
		return TokenSpent
	case !now.Before(t.Expires):
		return TokenExpired
	}
	return TokenValid
}

// Policy is one version of the mesh's policy, as its author wrote it.
type Policy struct {
	Number  uint64 // from 1, without gaps
	Source  string
	Applied time.Time
	By      string
	Comment string
	// Of is the version whose text was rolled back to; 0 if the policy was applied from a file.
	Of uint64
}

// Mesh is the mesh and its creation time.
type Mesh struct {
	proto.Mesh
	Created time.Time
}

// Issue signs a certificate for n and returns n with its validity and raw form filled in. The writer calls it: it must neither
// block nor call the directory.
type Issue func(n cert.Node, now time.Time) (cert.Node, error)
