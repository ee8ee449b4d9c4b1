package session

import (
	"time"

	"github.com/redoubt-mesh/redoubt/netstack/wg/noise"
)

// Event is what happens to a Peer.
type Event interface{ event() }

// Want says that a packet waits for a session.
type Want struct{}

// Sent says that messages went out by the current session.
type Sent struct{ Data bool } // not keepalives only

// Received says that a message of a session was authentic.
type Received struct {
	Session *Session
	Data    bool // not keepalives only
}

// Initiation is the first message of a handshake by the peer. Who sent it is not proven yet.
type Initiation struct {
	Pair    *Pair
	Message *noise.Initiation
}

// Response is a message that may be the answer to our initiation.
type Response struct{ Message []byte }

// CookieReply is a message that may have a cookie for our last message.
type CookieReply struct {
	Index   uint32
	Message []byte
}

// Tick says that the time of Next has come.
type Tick struct{}

// Probe asks for something that tells the peer where we are.
type Probe struct{}

// SetPairs says which keys are good now, the pair to use first. Sessions of others end at once.
type SetPairs struct{ Pairs []*Pair }

// SetPSK is for handshakes from now on.
type SetPSK struct{ PSK [32]byte }

// SetKeepalive says how often an idle peer is sent something; 0 for never.
type SetKeepalive struct{ Interval time.Duration }

func (Want) event()         {}
func (Sent) event()         {}
func (Received) event()     {}
func (Initiation) event()   {}
func (Response) event()     {}
func (CookieReply) event()  {}
func (Tick) event()         {}
func (Probe) event()        {}
func (SetPairs) event()     {}
func (SetPSK) event()       {}
func (SetKeepalive) event() {}

// Effect is what a Peer wants done, in this order.
type Effect interface{ effect() }

// Heard says that the Initiation or Response of this step is authentic: the peer is where it came from.
type Heard struct{}

// Message is a handshake message to be sent to the peer.
type Message struct{ Bytes []byte }

// Keepalive is an empty message to be sent by the current session.
type Keepalive struct{}

// Ready says that there is a session for what waits. Where nothing does, and Confirm is set, a keepalive must be sent: the
// peer cannot send before it heard from us.
type Ready struct{ Confirm bool }

// GiveUp says that the peer does not answer: what waits for a session is lost.
type GiveUp struct{}

// ForgetSource says that the address that we send from may be the cause of silence.
type ForgetSource struct{}

// Install says that messages with the session's index may come from now on.
type Install struct{ Session *Session }

// Unanswered says that the handshake that was under way had no answer in time.
type Unanswered struct{}

// Dropped says that the message of this step was not taken, and why.
type Dropped struct{ Why error }

// Release says that an index is free again.
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
