package directory

import (
	"errors"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Errors that callers tell apart. What is returned wraps one of them and says what to do next.
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
	// Key is the WireGuard key that the last certificate begins with; Next takes its place at NextFrom. A node that has never
	// renewed has no next.
	Key, Next key.NodePublic
	NextFrom  time.Time
	// Seed is what the node's tickets are made with, Ticket the number of the one that came with the certificate, Used that of
	// the one that the certificate was given for; see Renew.
	Seed         []byte
	Ticket, Used uint64
	Released     bool        // from quarantine, and not renewed since
	Quarantine   *Quarantine // nil while the node is one of the mesh
	Level        cert.Level  // as proved last; Attestation has the rest
	Relay        bool        // it carries packets for nodes, and is none that policies are about
	Ephemeral    bool        // removed when it was away for AwayLimit
	Hostname     string      // as the node named itself; Name was made from it
	Token        string      // id of the token that it enrolled with
	Created      time.Time
	Revoked      *Revocation // nil while the node is trusted
	Lock         *Lock       // what holds it; nil for nothing. Not part of the node's record
	Verdict      *Verdict    // what an administrator said of the machine; nil for nothing
	// Certificate is the last one that was issued.
	Certificate Certificate
	Attestation Attestation
}

// Attested is what the machine of a node proved of itself beside its level.
type Attested struct {
	Kind      string // of the evidence
	Device    string // name of the piece of hardware; one is one node
	Selectors []string
	Checks    []string
	// Again says that it can be proved again at each renewal, which takes Known.
	Again bool
	Known []byte
}

// Attestation is what is remembered of that.
type Attestation struct {
	Attested
	// Highest is the highest level so far, below which no other machine may take this one's place; LevelNone after a reset.
	Highest cert.Level
	Since   time.Time // of what was proved last
	Lapse   string    // why it could not be proved again; empty while it can
}

// Checked is when a node proved what it is for the last time: with each certificate, where it proves that again.
func (n *Node) Checked() time.Time {
	if a := &n.Attestation; a.Again && a.Lapse == "" {
		return n.Certificate.Issued
	}
	return n.Attestation.Since
}

// Certificate is a node certificate that was issued.
type Certificate struct {
	DER       []byte
	Serial    string
	Sequence  uint64
	Issued    time.Time // by the coordinator's clock; NotBefore may be earlier
	NotBefore time.Time
	NotAfter  time.Time
}

// Revocation says who ended something, when, and why.
type Revocation struct {
	At     time.Time
	By     string
	Reason string
}

// Token lets machines join. Its secret half is known to whoever created it, and to nobody here.
type Token struct {
	ID        string // "t" and 13 characters, made from the public half
	Public    key.TokenPublic
	User      string   // login name of the person whose machines join with it
	Tags      []string // sorted; empty where there is a user
	Reusable  bool
	Ephemeral bool
	Relay     bool // for relays, which have neither a user nor tags
	By        string
	Created   time.Time
	Expires   time.Time
	Uses      uint32
	// Spent is the device that used up a single-use token; only it may finish again.
	Spent   key.DevicePublic
	SpentBy proto.NodeID
	// Replace is the node whose machine the one that joins takes the place of; 0 where it becomes a new node.
	Replace proto.NodeID
	Revoked *Revocation
}

// The states of a token.
const (
	TokenValid   = "valid"
	TokenSpent   = "spent"
	TokenExpired = "expired"
	TokenRevoked = "revoked"
)

// State names what the token is good for at a time.
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
	// Of is the version whose text this one brought back; 0 for one that was applied from a file.
	Of uint64
}

// Mesh is the mesh and when it was made.
type Mesh struct {
	proto.Mesh
	Created time.Time
}

// Issue makes a certificate for n, whose validity and raw form it fills in. It is called by the writer: it must neither
// wait nor call the directory.
type Issue func(n cert.Node, now time.Time) (cert.Node, error)
