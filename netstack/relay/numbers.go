package relay

import (
	"sync/atomic"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/relaymsg"
)

const (
	// sayAgain is how often a number is announced again even though the other side has learned it: an attacker on the path may
	// have changed it there, since packets are not authenticated.
	sayAgain = 5 * time.Second
	// disuse is how long a number must be unused to be given to another peer, unless glances numbers in a row are in use.
	disuse  = 2 * sayAgain
	glances = 32
)

// outgoing is the number that stands for a peer in sent packets.
type outgoing struct {
	peer    proto.NodeID
	number  uint32
	learned bool         // by the other side
	said    atomic.Int64 // Unix nanoseconds: when it was last announced
}

// header returns the header of a packet to send. Holding the lock that guards learned for reading is enough.
func (o *outgoing) header(session uint32, now int64) relaymsg.Header {
	h := relaymsg.Header{Kind: relaymsg.Data, Number: o.number, Session: session}
	if !o.learned || now-o.said.Load() >= int64(sayAgain) {
		h.Kind = relaymsg.DataFor
		o.said.Store(now)
	}
	return h
}

// numbers are those of all peers that a session has packets for. When there are maxPeers, new peers take over numbers that are
// not in use.
type numbers struct {
	of   map[proto.NodeID]*outgoing
	all  []*outgoing // by number
	hand int         // the next number that may be taken over
}

// add gives a peer a number.
func (n *numbers) add(peer proto.NodeID, now int64) *outgoing {
	o := &outgoing{peer: peer, number: uint32(len(n.all))}
	if len(n.all) < maxPeers {
		n.all = append(n.all, o)
	} else {
		old := n.spare(now)
		delete(n.of, old.peer)
		o.number = old.number
		n.all[o.number] = o
	}
	if n.of == nil {
		n.of = map[proto.NodeID]*outgoing{}
	}
	n.of[peer] = o
	return o
}

// spare returns the number to take over. While one is in use it is announced every sayAgain. If too many are, one of them does
// too: its peer gets another number with its next packet.
func (n *numbers) spare(now int64) (o *outgoing) {
	for range glances {
		o = n.all[n.hand]
		n.hand = (n.hand + 1) % len(n.all)
		if now-o.said.Load() >= int64(disuse) {
			break
		}
	}
	return o
}

// learn handles the other side's report on a number: which peer it stands for, or that this is unknown.
func (n *numbers) learn(m *relaymsg.Message) {
	if o := n.of[m.Peer]; m.Kind == relaymsg.Learned && o != nil && o.number == m.Number {
		o.learned = true
	} else if int64(m.Number) < int64(len(n.all)) {
		n.all[m.Number].learned = false
	}
}
