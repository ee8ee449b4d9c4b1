package filter

import (
	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// control judges ICMP messages other than echoes. An error passes if the packet it quotes was sent by its receiver in a live
// flow, and if it comes from the other side of that flow: its endpoint, or the node in front of it, which as a router reports
// packets that are too big for the network behind it. So nobody can interfere with other nodes' flows. Nothing else passes;
// hosts of a mesh have no neighbours to discover.
func (f *Filter) control(d proto.Direction, from proto.NodeID, pkt []byte, p *packet.Packet) Verdict {
	if !p.IsError() {
		if p.Dst.IsGroup() {
			return f.discardOf(d, p, Multicast)
		}
		return f.discardOf(d, p, ICMPType)
	}
	var q packet.Packet
	if p.Quoted(pkt, &q) != packet.OK || q.Later() || q.Src != p.Dst ||
		isICMP(q.Proto) && !q.IsEchoRequest() && !q.IsEchoReply() {
		return f.discardOf(d, p, ICMPUnrelated)
	}
	var k key
	k.of(opposite(d), &q)
	return f.follow(d, from, &k, p, false)
}

func opposite(d proto.Direction) proto.Direction {
	if d == proto.In {
		return proto.Out
	}
	return proto.In
}

// follow lets a packet that has no transport header of its own pass if its flow is alive. A fragment keeps the flow alive; an
// ICMP error about it does not.
func (f *Filter) follow(d proto.Direction, from proto.NodeID, k *key, p *packet.Packet, piece bool) Verdict {
	h := f.seed.hash(k)
	s, tag := &f.shards[h%shardCount], uint32(h>>32)
	s.mu.Lock()
	defer s.mu.Unlock()
	w := weigh(p, 1)
	v := visit{f, s, f.current.Load(), d, from, *k, tag, tick(f.clock.Load()), w}
	fl := v.review(s.find(k, tag))
	switch {
	case v.by.Program == nil:
		return f.discardOf(d, p, Closed)
	case fl == nil && piece:
		return f.discardOf(d, p, FragmentUnknown)
	case fl == nil:
		return f.discardOf(d, p, ICMPUnrelated)
	case from != 0 && from != fl.peer.id:
		return v.deny(Spoofed, nil)
	case fl.state == dead:
		return f.discardOf(d, p, Revoked)
	case !piece && !v.speaksFor(fl, p.Src):
		return f.discardOf(d, p, ICMPUnrelated)
	}
	fl.sent[sender(d)].plus(w)
	if piece {
		fl.expires = v.now + idleFor(fl.class, fl.state)
	}
	s.passed[d].plus(w)
	return Verdict{Pass: true, rule: fl.rule}
}

// speaksFor reports whether src is on the sender's side of a flow: an address of the flow's peer or behind it or, for packets
// out, any local address.
func (v *visit) speaksFor(fl *flow, src packet.Addr) bool {
	if v.d == proto.Out {
		_, ours := v.by.local.class(src)
		return ours
	}
	node, known := v.by.find(src)
	return known && v.by.peers[node] == fl.peer
}
