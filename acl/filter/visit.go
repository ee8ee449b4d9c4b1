package filter

import (
	"github.com/redoubt-mesh/redoubt/acl/packet"
	"github.com/redoubt-mesh/redoubt/proto"
)

// visit is the slow path of one packet, with its flow's shard locked. The packet itself is passed alongside so that it can
// stay on the stack.
type visit struct {
	f    *Filter
	s    *shard
	by   *enforced // loaded under the lock, so never older than what last judged the flow
	d    proto.Direction
	from proto.NodeID
	key  key
	tag  uint32
	now  tick
	w    Traffic
}

// visit is separate from flow so that the fast path does not pay for its stack frame.
func (f *Filter) visit(r *run, d proto.Direction, from proto.NodeID, k *key, p *packet.Packet, w Traffic) Verdict {
	v := visit{f, r.s, f.current.Load(), d, from, *k, r.tag, tick(f.clock.Load()), w}
	verdict := v.judge(r.fl, p)
	r.release()
	return verdict
}

// judge decides about the packet; fl is its flow, or nil.
func (v *visit) judge(fl *flow, p *packet.Packet) Verdict {
	switch fl = v.review(fl); {
	case fl == nil:
		return v.open(nil, p)
	case fl.state == dead:
		return v.deny(Revoked, fl.rule)
	case v.from != 0 && v.from != fl.peer.id:
		return v.deny(Spoofed, nil)
	case isOpening(p) && (fl.state == closing || v.d != fl.opened):
		return v.open(fl, p)
	}
	return v.pass(fl, p)
}

// review brings a flow up to date: it ends a flow that was silent for too long, and judges it again if the policy changed. A
// flow that died stays dead, even if a later policy would permit it.
func (v *visit) review(fl *flow) *flow {
	switch {
	case fl == nil || fl.state == dead:
		return fl
	case v.now >= fl.expires:
		v.s.end(fl, idleReason(fl), v.now)
		return nil
	case fl.by == v.by:
		return fl
	}
	rule, at := v.by.permits(fl)
	if !rule.passes() {
		v.s.kill(fl, v.by, rule, v.now)
		return fl
	}
	watched := rule.action == proto.Monitor && fl.rule.action != proto.Monitor
	fl.by, fl.rule = v.by, rule
	if watched {
		v.watch(fl, at)
	}
	return fl
}

func idleReason(fl *flow) Reason {
	if fl.state == closing {
		return Finished
	}
	return Idle
}

// permits returns the rule that decides whether a flow may go on, and the services it is part of; nil if there is none.
func (e *enforced) permits(fl *flow) (*ruling, *services) {
	if e.Program == nil {
		return nil, nil
	}
	node, s, reason := e.ends(fl.opened, fl.local, fl.remote)
	if reason != Permitted || e.peers[node] != fl.peer {
		return nil, nil
	}
	return s.find(point(fl.proto(), fl.service(fl.opened))), s
}

// watch records that a flow passes only because a rule monitors what is not permitted, and why it would not pass.
func (v *visit) watch(fl *flow, s *services) {
	near, reason := s.lacks(point(fl.proto(), fl.service(fl.opened)))
	if e := v.s.record(WouldDeny, fl, reason, v.now); e != nil {
		e.near = near
	}
}

// open judges a packet that belongs to no flow, or that would open another flow in place of old.
func (v *visit) open(old *flow, p *packet.Packet) Verdict {
	node, s, reason := v.ends()
	if reason != Permitted {
		return v.deny(reason, nil)
	}
	if !opens(p) {
		return v.deny(NoFlow, nil)
	}
	rule, reason := s.judge(point(v.key.proto(), v.key.service(v.d)))
	if reason != Permitted {
		return v.deny(reason, rule)
	}
	if old != nil {
		if old.state != closing { // simultaneous open, and both sides may
			return v.pass(old, p)
		}
		v.s.end(old, Finished, v.now)
	}
	peer := v.by.peers[node]
	if reason := v.room(peer); reason != Permitted {
		return v.deny(reason, rule)
	}
	fl := v.s.insert(&v.key, v.tag)
	fl.by, fl.peer, fl.rule = v.by, peer, rule
	fl.state, fl.opened, fl.class, fl.started = opening, v.d, classOf(p.Proto), v.now
	v.s.started++
	if rule.action == proto.Monitor {
		v.watch(fl, s)
	} else {
		v.s.record(FlowStart, fl, Permitted, v.now)
	}
	return v.pass(fl, p)
}

// ends finds out which nodes the two sides of the packet are. It refuses unknown ones.
func (v *visit) ends() (node int, _ *services, _ Reason) {
	if v.by.Program == nil {
		return 0, nil, Closed
	}
	if v.d == proto.In && v.from != 0 && !v.by.owns(v.from, v.key.remote) {
		return 0, nil, Spoofed
	}
	return v.by.ends(v.d, v.key.local, v.key.remote)
}

// room makes sure that the table can hold one more flow with the peer, and counts it as the peer's.
func (v *visit) room(p *peer) Reason {
	if p.flows.Add(1) > v.f.perPeer && !v.s.reclaim(p, v.now) {
		p.flows.Add(-1)
		return PeerQuota
	}
	if v.s.live >= v.f.perShard && !v.s.reclaim(nil, v.now) && !v.s.reclaim(p, v.now) {
		p.flows.Add(-1)
		return TableFull
	}
	return Permitted
}

func (v *visit) pass(fl *flow, p *packet.Packet) Verdict {
	fl.touch(sender(v.d), p, v.w, v.now)
	v.s.passed[v.d].plus(v.w)
	return Verdict{Pass: true, rule: fl.rule}
}

// deny drops the packet. A multicast packet gets no record and no answer: every host sends them all the time. A packet from
// the host with a foreign source is not answered, since the answer would go to the owner of that address.
func (v *visit) deny(r Reason, near *ruling) Verdict {
	node, known := v.by.find(v.key.remote)
	var whose *peer
	if known && r != Spoofed {
		whose = v.by.peers[node]
	}
	v.f.drop(whose, r, 1)
	if r == Multicast {
		return Verdict{Reason: r}
	}
	if e := v.s.deny(v, r, near); e != nil && known {
		e.peer = &v.by.Program.peers[node]
	}
	refuse := v.d == proto.Out && r != ForeignSource && v.f.refusals.take()
	return Verdict{Reason: r, Refuse: refuse, rule: near}
}

// reclaim frees one entry, looking at a few of the shard's. With p nil it takes any expired flow; otherwise one of p's own:
// an expired flow first, then the one that would expire next, but never an open TCP connection.
func (s *shard) reclaim(p *peer, now tick) bool {
	const looks = 32
	var victim *flow
	for range min(looks, s.used) {
		s.hand = (s.hand + 1) % s.used
		fl := s.at(s.hand)
		switch {
		case fl.state == vacant || fl.state == dead || p != nil && fl.peer != p:
			continue
		case now >= fl.expires:
			s.end(fl, idleReason(fl), now)
			return true
		case p == nil || fl.class == tcpFlow && fl.state == open:
			continue
		case victim == nil || fl.expires < victim.expires:
			victim = fl
		}
	}
	if victim == nil {
		return false
	}
	s.end(victim, Replaced, now)
	return true
}

// end removes a flow from the table and records why.
func (s *shard) end(fl *flow, r Reason, now tick) {
	s.record(FlowEnd, fl, r, now)
	s.ended++
	s.remove(fl)
}

// kill marks a flow as no longer permitted, because of the rule deny if one denies it. It stays until Sweep has reset both
// ends.
func (s *shard) kill(fl *flow, by *enforced, deny *ruling, now tick) {
	fl.by = by
	if e := s.record(FlowEnd, fl, Revoked, now); e != nil {
		e.near = deny
	}
	fl.by, fl.state = nil, dead
}
