package session

import (
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

// Event is something that happens to a Peer.
type Event interface{ event() }

// Want reports that a packet waits for a session.
type Want struct{}

// Sent reports that messages were sent over the current session.
type Sent struct{ Data bool } // not only keepalives

// Received reports an authentic message of a session.
type Received struct {
	Session *Session
	Data    bool // not only keepalives
}

// Initiation is an initiation by the peer. Its sender is not proven yet.
type Initiation struct {
	Pair    *Pair
	Message *noise.Initiation
}

// Response is a message that may be the response to our initiation.
type Response struct{ Message []byte }

// CookieReply is a message that may contain a cookie for our last message.
type CookieReply struct {
	Index   uint32
	Message []byte
}

// Tick reports that the time returned by Next has come.
type Tick struct{}

// Probe asks for a message that tells the peer where we are.
type Probe struct{}

// SetPairs sets the valid pairs, the preferred one first. Sessions of any others end at once.
type SetPairs struct{ Pairs []*Pair }

// Leave announces that a key of ours is about to end: if the peer may still use it, a handshake for the first pair begins.
type Leave struct{ Local *noise.Local }

// SetPSK sets the pre-shared key of future handshakes.
type SetPSK struct{ PSK [32]byte }

// SetKeepalive sets the interval at which an idle peer is sent something; 0 means never.
type SetKeepalive struct{ Interval time.Duration }

func (Want) event()         {}
func (Sent) event()         {}
func (Received) event()     {}
func (Initiation) event()   {}
func (Response) event()     {}
func (CookieReply) event()  {}
func (Tick) event()         {}
func (Probe) event()        {}
func (Leave) event()        {}
func (SetPairs) event()     {}
func (SetPSK) event()       {}
func (SetKeepalive) event() {}

// Effect is something that a Peer wants done, in order.
type Effect interface{ effect() }

// Heard means that the Initiation or Response of this step is authentic: the peer is where it came from.
type Heard struct{}

// Message is a handshake message to be sent to the peer.
type Message struct{ Bytes []byte }

// Keepalive asks for an empty message to be sent over the current session.
type Keepalive struct{}

// Ready means that there is a session for waiting packets. If there are none, and Confirm is set, a keepalive must be sent: the
// peer cannot send before it has heard from us.
type Ready struct{ Confirm bool }

// GiveUp means that the peer does not answer: packets waiting for a session are lost.
type GiveUp struct{}

// ForgetSource means that our source address may be the cause of silence.
type ForgetSource struct{}

// Install means that messages with the session's index may arrive from here on.
type Install struct{ Session *Session }

// Unanswered means that the handshake in flight got no response in time.
type Unanswered struct{}

// Dropped means that the message of this step was not accepted, and why.
type Dropped struct{ Why error }

// Release means that an index is free again.
type Release struct{ Index uint32 }

func (Heard) effect()        {}
func (Message) effect()      {}
func (Keepalive) effect()    {}
func (Ready) effect()        {}
func (GiveUp) effect()       {}
func (ForgetSource) effect() {}
func (Install) effect()      {}
func (Unanswered) effect()   {}
func (Dropped) effect()      {}
func (Release) effect()      {}
