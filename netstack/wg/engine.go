package wg

import (
	"errors"
	"io"
	"net/netip"
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Engine is a running WireGuard interface. Its methods may be called from any goroutine.
type Engine interface {
	// Configure sets the node key and the UDP port (0: any, and the same as before if there was one), and starts to
	// listen. A changed node key ends all sessions.
	Configure(private key.NodePrivate, port uint16) error
	// RotateLocalKey gives the node another key. Where the engine can, the one before stays good for 180 s, and no packet
	// is lost, if the peers have learned of the new key by AddRemoteKey; else it is like Configure.
	RotateLocalKey(private key.NodePrivate) error
	// AddRemoteKey makes k the key to use first with a peer; its others stay good where the engine can have several.
	AddRemoteKey(id proto.NodeID, k key.NodePublic) error
	// RemoveRemoteKey ends all sessions under a key of a peer at once. The last one cannot be removed.
	RemoveRemoteKey(id proto.NodeID, k key.NodePublic) error
	// SetPeer adds a peer or changes it. What is the same as before is not touched. A peer that cannot be made as asked
	// is an error; where that shows only half-way, the peer is removed.
	SetPeer(PeerConfig) error
	// RemovePeer forgets a peer and its keys: when it returns, no packet passes either way. An unknown peer is no error.
	RemovePeer(proto.NodeID) error
	// Probe sets the candidates of a peer, and sends it something at once, to all of them, that tells it where we are:
	// a keepalive where there is a session, else the first message of a handshake.
	Probe(id proto.NodeID, candidates []netip.AddrPort) error
	// Rebind opens the UDP sockets anew, on the same port if that is free. Sessions stay. After an error nothing is
	// received until Configure or Rebind works.
	Rebind() error
	// Peers are the counters of all peers, sorted by ID.
	Peers() ([]PeerStats, error)
	// Active are those of the peers that have a session or want one, sorted by ID; it may be of others too. It costs what
	// these cost, not what all do.
	Active() ([]PeerStats, error)
	// Peer are those of one peer; an unknown one has none.
	Peer(proto.NodeID) (PeerStats, error)
	// Stats are the node's own.
	Stats() (Stats, error)
	// Port is the UDP port; 0 where nothing listens.
	Port() (uint16, error)
	// WriteUAPI writes the state as the answer to the text protocol's "get", without private and pre-shared keys.
	WriteUAPI(io.Writer) error
	// Done is closed when the engine ended: by Close, or by itself because the TUN device broke.
	Done() <-chan struct{}
	// Close ends all sessions, closes TUN device and bind, and waits.
	Close() error
}

// PeerConfig is what an engine needs to know of a peer.
type PeerConfig struct {
	ID proto.NodeID
	// Keys are the node keys that the peer may have now, the one to use first. There is at least one.
	Keys []key.NodePublic
	// Addrs are the only addresses in the mesh that packets may come from, and that are routed to the peer.
	Addrs proto.Addrs
	// Routes are prefixes behind the peer, for which the same holds; of several peers' the longest. Each is one peer's at a
	// time.
	Routes []netip.Prefix
	// Endpoints are the candidates, best first. They replace what was there if there are others than those given before;
	// another order, or none, leaves it as it is. Where a peer really is follows its packets.
	Endpoints []netip.AddrPort
	// Course is the peer's endpoint instead, where others decide on it. Only Inline knows of such.
	Course *bind.Course
	// PSK is mixed into handshakes; zero where there is none.
	PSK [32]byte
	// Keepalive is how often an idle peer is sent something, in whole seconds; 0 for never.
	Keepalive time.Duration
}

// PeerStats is what an engine counts of a peer.
type PeerStats struct {
	ID  proto.NodeID
	Key key.NodePublic // in use
	// Endpoint is where the peer's last authenticated packet came from; zero where none came since the candidates were
	// set.
	Endpoint      netip.AddrPort
	LastHandshake time.Time // zero where there was none
	Rx, Tx        uint64    // bytes on the underlay
	Drops         Drops     // of what is known to be of the peer, or for it

	KeySince     time.Time // since when this engine has known Key as the peer's
	Keys         int       // of the peer that are good
	Sessions     int       // that are alive, those among them that are replaced already
	SessionSince time.Time // when the one was made that is sent by; zero where there is none
	Handshakes   uint64    // that came to an end
	Unanswered   uint64    // first messages of handshakes to which no answer came in time
}

// Stats is what an engine counts of itself.
type Stats struct {
	Keys  []LocalKey // the newest first; none where it is not configured
	Drops Drops      // of all peers, of those also that are gone, and of nobody's
}

// LocalKey is a node key of this node.
type LocalKey struct {
	Public key.NodePublic
	Since  time.Time // when the engine was given it
	Until  time.Time // when it ends, since there is a newer one; else zero
}

// ErrClosed says that an engine was closed, or ended by itself.
var ErrClosed = errors.New("the WireGuard engine is closed")
