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
	// Configure sets the node key and the UDP port, and starts listening. Port 0 means any port, or the previous one if there
	// was one. A changed node key ends all sessions.
	Configure(private key.NodePrivate, port uint16) error
	// RotateLocalKey replaces the node key. If the engine supports it, the previous key stays valid for 180 s and no packet is
	// lost, provided the peers have learned the new key through AddRemoteKey; otherwise it is like Configure.
	RotateLocalKey(private key.NodePrivate) error
	// AddRemoteKey makes k the preferred key of a peer; its others stay valid if the engine supports several.
	AddRemoteKey(id proto.NodeID, k key.NodePublic) error
	// RemoveRemoteKey ends all sessions under a peer's key at once. The last key cannot be removed.
	RemoveRemoteKey(id proto.NodeID, k key.NodePublic) error
	// SetPeer adds or changes a peer. Whatever is unchanged is left alone. It returns an error if the peer cannot be configured
	// as asked; if that only becomes clear halfway through, the peer is removed.
	SetPeer(PeerConfig) error
	// RemovePeer forgets a peer and its keys: once it returns, no packet passes either way. An unknown peer is not an error.
	RemovePeer(proto.NodeID) error
	// Probe sets the candidates of a peer and at once sends all of them a packet that tells the peer where we are: a keepalive
	// if there is a session, otherwise a handshake initiation.
	Probe(id proto.NodeID, candidates []netip.AddrPort) error
	// Rebind reopens the UDP sockets, on the port last asked for if that is free. Sessions stay. After an error, also one of
	// Configure, nothing is received until Configure or Rebind succeeds.
	Rebind() error
	// Peers returns the counters of all peers, sorted by ID.
	Peers() ([]PeerStats, error)
	// Active returns those of the peers that have a session or want one, sorted by ID; it may include others. Its cost grows
	// with the number of these peers, not of all peers.
	Active() ([]PeerStats, error)
	// Peer returns those of one peer; they are zero for an unknown one.
	Peer(proto.NodeID) (PeerStats, error)
	// Stats returns the node's own counters.
	Stats() (Stats, error)
	// Port returns the UDP port; 0 if nothing is listening.
	Port() (uint16, error)
	// WriteUAPI writes the state as the text protocol's answer to "get", without private and pre-shared keys.
	WriteUAPI(io.Writer) error
	// Done is closed when the engine has ended: by Close, or by itself because the TUN device broke.
	Done() <-chan struct{}
	// Close ends all sessions, closes the TUN device and the bind, and waits.
	Close() error
}

// PeerConfig is what an engine needs to know about a peer.
type PeerConfig struct {
	ID proto.NodeID
	// Keys are the peer's currently valid node keys, the preferred one first. There is at least one.
	Keys []key.NodePublic
	// Addrs are the only mesh addresses that packets from the peer may have, and that are routed to it.
	Addrs proto.Addrs
	// Routes are prefixes behind the peer, to which the same applies; the longest match among all peers wins. A prefix belongs
	// to one peer at a time.
	Routes []netip.Prefix
	// Endpoints are the candidates, best first. They replace the previous ones only if the set differs; a different order, or
	// an empty list, changes nothing. The engine follows a peer to wherever its packets come from.
	Endpoints []netip.AddrPort
	// Course, if set, is the peer's endpoint instead, and is steered by its owner. Only Inline supports it.
	Course *bind.Course
	// PSK is mixed into handshakes; zero means none.
	PSK [32]byte
	// Keepalive is the interval at which an idle peer is sent something, in whole seconds; 0 means never.
	Keepalive time.Duration
}

// PeerStats holds an engine's counters for a peer.
type PeerStats struct {
	ID  proto.NodeID
	Key key.NodePublic // in use
	// Endpoint is where the peer's last authenticated packet came from; zero if none has come since the candidates were set.
	Endpoint      netip.AddrPort
	LastHandshake time.Time // zero if there was none
	Rx, Tx        uint64    // bytes on the underlay
	Drops         Drops     // of packets known to be from or for the peer

	KeySince     time.Time // when this engine first knew Key as the peer's
	Keys         int       // valid keys of the peer
	Sessions     int       // that are alive, including those already replaced
	SessionSince time.Time // when the session used for sending was made; zero if there is none
	Handshakes   uint64    // completed
	Unanswered   uint64    // initiations that were not answered in time
}

// Stats holds an engine's own counters.
type Stats struct {
	Keys  []LocalKey // newest first; empty if not configured
	Drops Drops      // of all peers, including removed ones, and of unknown senders
}

// LocalKey is a node key of this node.
type LocalKey struct {
	Public key.NodePublic
	Since  time.Time // when the engine was given it
	Until  time.Time // when it expires, if a newer one has replaced it; else zero
}

// ErrClosed means that an engine was closed, or ended by itself.
var ErrClosed = errors.New("the WireGuard engine is closed")
