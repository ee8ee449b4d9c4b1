package pilot

import (
	"slices"

	"github.com/redoubt-mesh/redoubt/netstack/bind"
	"github.com/redoubt-mesh/redoubt/netstack/path"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/key"
	"github.com/redoubt-mesh/redoubt/proto/pathmsg"
)

// A peer that announces a path key has signed it, but not shown that it has the private half: it may have copied the key of
// another peer, or ours. So a key belongs to every peer that announces it, and if there are several, messages count only in bound
// boxes, which the liar can neither seal nor open: they are for one pair of nodes. What we seal for the liar only the owner of
// the key could open, and it does not, since it is not the liar. The owner may not know that its key was announced twice, and
// begin with a Ping that is not bound: that names its sender. The first answer shows it what to do.

// peer is a peer whose path key is known.
type peer struct {
	id     proto.NodeID
	course *bind.Course
	public key.PathPublic
	keyID  pathmsg.KeyID
	boxes  [2]*pathmsg.Box // plain and bound, acquired when they are first needed
	binds  bool            // it sends bound messages, and so do we

	sent, heard, beside uint64 // as of the course's last count
}

// ends returns the nodes that the plain or bound box for a peer is bound to.
func (p *Pilot) ends(x *peer, bound bool) (pathmsg.Ends, int) {
	if bound {
		return pathmsg.Ends{Own: p.cfg.Self, Peer: x.id}, 1
	}
	return pathmsg.Ends{}, 0
}

// boxOf returns the plain or bound box for a peer.
func (p *Pilot) boxOf(x *peer, bound bool) (*pathmsg.Box, error) {
	ends, i := p.ends(x, bound)
	if x.boxes[i] == nil {
		box, err := p.cfg.Boxes.Get(x.public, ends)
		if err != nil {
			return nil, err
		}
		x.boxes[i] = box
	}
	return x.boxes[i], nil
}

// claim records which key a peer has announced.
func (p *Pilot) claim(x *peer, public key.PathPublic) {
	x.public, x.keyID, x.binds = public, pathmsg.IDOf(public), false
	p.byKey[x.keyID] = append(p.byKey[x.keyID], x)
}

// disclaim forgets a peer's key.
func (p *Pilot) disclaim(x *peer) {
	for _, bound := range []bool{false, true} {
		if ends, i := p.ends(x, bound); x.boxes[i] != nil {
			p.cfg.Boxes.Release(x.public, ends)
			x.boxes[i] = nil
		}
	}
	left := slices.DeleteFunc(p.byKey[x.keyID], func(y *peer) bool { return y == x })
	if len(left) == 0 {
		delete(p.byKey, x.keyID)
	} else {
		p.byKey[x.keyID] = left
	}
}

// contested reports whether the key that a peer has announced may be another's.
func (p *Pilot) contested(x *peer) bool {
	return x.public == p.own || slices.ContainsFunc(p.byKey[x.keyID], func(y *peer) bool { return y != x && y.public == x.public })
}

// open opens a path message, and passes it to the finder.
func (p *Pilot) open(id pathmsg.KeyID, from *bind.Endpoint, msg []byte) {
	x, m := p.opened(id, from.Via(), msg)
	if x == nil {
		p.dropped.Add(1)
		return
	}
	x.binds = x.binds || pathmsg.Bound(msg)
	p.step(path.Got{ID: x.id, From: wayOf(from), Message: m})
}

// opened opens a path message, and returns which peer it is from; nil if that is not certain.
func (p *Pilot) opened(id pathmsg.KeyID, via bind.Via, msg []byte) (*peer, pathmsg.Message) {
	bound := pathmsg.Bound(msg)
	for _, x := range p.byKey[id] {
		if via != (bind.Via{}) && via.Peer != x.id {
			continue
		}
		box, err := p.boxOf(x, bound)
		if err != nil {
			continue
		}
		m, err := box.Open(msg)
		if err != nil {
			continue
		}
		switch ping, ok := m.(pathmsg.Ping); {
		case ok && !bound:
			return p.named(x, ping.Node, via), m
		case ok && ping.Node != x.id, !bound && p.contested(x):
			return nil, nil
		}
		return x, m
	}
	return nil, nil
}

// named returns the peer of the given number, if it has announced the same key as x.
func (p *Pilot) named(x *peer, id proto.NodeID, via bind.Via) *peer {
	y := p.peers[id]
	if y == nil || y.public != x.public || y.public == p.own || via != (bind.Via{}) && via.Peer != id {
		return nil
	}
	return y
}
