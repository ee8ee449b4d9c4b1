package machine

import (
	"bytes"
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// entry is a peer that may be used. It is immutable.
type entry struct {
	node  *cert.Node
	keys  []key.NodePublic
	reach proto.Reach
}

// peer is a peer of the netmap.
type peer struct {
	claim  proto.Peer
	node   *cert.Node // nil: the certificate does not hold
	live   *entry     // nil: the peer may not be used
	why    string     // why live is nil
	until  time.Time  // when to judge again; zero: never by itself
	former former
	index  int // in the heap, from 1; 0: not in it
}

// ended reports whether the peer's certificate has expired.
func (p *peer) ended(now time.Time) bool {
	return p.node != nil && !now.Before(p.node.NotAfter.Add(cert.Skew))
}

// move is how a peer changed.
type move struct {
	id            proto.NodeID
	before, after *entry
}

// roster holds the peers of the netmap, and which of them may be used. Its work is proportional to what changed.
type roster struct {
	self     *identity.Self
	verifier *cert.Verifier
	presumed map[cert.Signature]struct{} // signatures that need no verification

	peers     map[proto.NodeID]*peer
	sequences map[proto.NodeID]state.Sequence
	addrs     map[netip.Addr]proto.NodeID     // of peers in use
	keys      map[key.NodePublic]proto.NodeID // of peers in use
	deadlines deadlines
	dirty     map[proto.NodeID]*entry   // to be judged; the value is what was in use before
	kept      map[proto.NodeID]struct{} // in use only by grace
	clashing  map[proto.NodeID]struct{} // not in use because another peer has an address or a key
	out       map[proto.NodeID]struct{} // not in use
	routers   map[proto.NodeID]struct{} // peers that serve routes, in use or not
	behind    map[proto.NodeID]struct{} // peers that use another key by now if they are in contact, which we are not
	heard     time.Time                 // when the coordinator was last heard
	untold    map[proto.NodeID]struct{} // peers whose sequence number the netmap's certificates may not show
	barred    map[proto.NodeID]uint64   // peers whose certificates are refused, up to this number
	raised    bool                      // untold has grown since it was saved
}

func newRoster(sequences map[proto.NodeID]state.Sequence) *roster {
	r := &roster{sequences: map[proto.NodeID]state.Sequence{}, untold: map[proto.NodeID]struct{}{}}
	for id, s := range sequences {
		r.sequences[id], r.untold[id] = s, struct{}{}
	}
	r.clear()
	return r
}

// clear forgets all peers, but not the sequence numbers seen.
func (r *roster) clear() {
	r.peers = map[proto.NodeID]*peer{}
	r.addrs = map[netip.Addr]proto.NodeID{}
	r.keys = map[key.NodePublic]proto.NodeID{}
	r.deadlines = nil
	r.dirty = map[proto.NodeID]*entry{}
	r.kept = map[proto.NodeID]struct{}{}
	r.clashing = map[proto.NodeID]struct{}{}
	r.out = map[proto.NodeID]struct{}{}
	r.routers = map[proto.NodeID]struct{}{}
	r.barred = map[proto.NodeID]uint64{}
	r.behind = map[proto.NodeID]struct{}{}
}

// trust sets our identity, and the intermediates that issued peers' certificates. Certificates that did not hold before are
// verified again.
func (r *roster) trust(self *identity.Self, authorities [][]byte) error {
	fresh, err := self.Trust()
	if err != nil {
		return err
	}
	if err := fresh.AddIntermediates(authorities); err != nil {
		return fmt.Errorf("intermediate certificates of the netmap: %w", err)
	}
	again := maps.Keys(r.out)
	if r.self != nil && !slices.EqualFunc(r.self.Record.Roots, self.Record.Roots, bytes.Equal) {
		again = maps.Keys(r.peers) // what held under another root need not hold under this one
	}
	r.self, r.verifier = self, fresh
	r.presume(r.presumed)
	for _, id := range slices.Collect(again) {
		r.touch(id)
		r.verify(r.peers[id])
	}
	return nil
}

// presume sets which signatures need no verification.
func (r *roster) presume(good map[cert.Signature]struct{}) {
	r.presumed = good
	if r.verifier != nil {
		r.verifier.Presume(good)
	}
}

// checkedSignatures returns the signatures of the certificates that hold, apart from their validity period.
func (r *roster) checkedSignatures() (good []cert.Signature) {
	for _, p := range r.peers {
		if p.node != nil {
			good = append(good, p.node.Signed)
		}
	}
	return good
}

// touch makes settle judge a peer.
func (r *roster) touch(id proto.NodeID) {
	if _, ok := r.dirty[id]; ok {
		return
	}
	var before *entry
	if p := r.peers[id]; p != nil {
		before = p.live
	}
	r.dirty[id] = before
}

// set applies what a netmap says of peers.
func (r *roster) set(claims []*proto.Peer) {
	var fresh []*peer
	for _, c := range claims {
		if p, same := r.claim(*c); !same {
			fresh = append(fresh, p)
		}
	}
	ders := make([][]byte, len(fresh))
	for i, p := range fresh {
		ders[i] = p.claim.Certificate
	}
	for i, c := range identity.Certificates(r.verifier, ders) {
		r.checked(fresh[i], c)
	}
}

// claim applies what a netmap says of a peer, and reports whether its certificate is the same as before, and holds.
func (r *roster) claim(claim proto.Peer) (p *peer, same bool) {
	r.touch(claim.ID)
	p = r.peers[claim.ID]
	if p == nil {
		p = &peer{}
		r.peers[claim.ID] = p
	}
	same = p.node != nil && bytes.Equal(p.claim.Certificate, claim.Certificate)
	p.claim = claim
	if len(claim.Routes) > 0 {
		r.routers[claim.ID] = struct{}{}
	} else {
		delete(r.routers, claim.ID)
	}
	return p, same
}

func (r *roster) setReach(id proto.NodeID, reach proto.Reach) {
	if p := r.peers[id]; p != nil {
		r.touch(id)
		p.claim.Reach = reach
	}
}

func (r *roster) remove(id proto.NodeID) {
	p := r.peers[id]
	if p == nil {
		return
	}
	r.touch(id)
	r.release(id, p)
	r.unschedule(p)
	delete(r.peers, id)
	delete(r.out, id)
	delete(r.routers, id)
	delete(r.behind, id)
	r.tellNoMore(id)
}

// tellNoMore notes that the netmap no longer shows a sequence number that was seen.
func (r *roster) tellNoMore(id proto.NodeID) {
	if _, seen := r.sequences[id]; seen {
		r.untold[id] = struct{}{}
		r.raised = true
	}
}

// verify checks a certificate, except for its validity period.
func (r *roster) verify(p *peer) {
	n, err := identity.Certificate(r.verifier, p.claim.Certificate)
	r.checked(p, identity.Checked{Node: n, Err: err})
}

// checked applies the result of checking a peer's certificate.
func (r *roster) checked(p *peer, c identity.Checked) {
	p.node = nil
	n, err := c.Node, c.Err
	if err == nil {
		err = r.acceptable(p.claim.ID, n)
	}
	if err != nil {
		p.why = err.Error()
		r.tellNoMore(p.claim.ID)
		return
	}
	n.Raw = p.claim.Certificate // the same bytes, which the netmap keeps anyway
	p.node = n
	r.sequences[n.ID] = state.Sequence{Seen: n.Sequence, Until: n.NotAfter}
}

func (r *roster) acceptable(id proto.NodeID, n *cert.Node) error {
	switch seen := r.sequences[n.ID]; {
	case n.ID != id:
		return fmt.Errorf("its certificate belongs to %v", n.ID)
	case n.Sequence <= r.barred[n.ID]:
		return errors.New("it was revoked, or is locked")
	case n.Sequence < seen.Seen:
		return fmt.Errorf("its certificate is number %d, but number %d was seen", n.Sequence, seen.Seen)
	case !r.self.Record.Mesh.V4.Contains(n.Addrs.V4) || !r.self.Record.Mesh.V6.Contains(n.Addrs.V6):
		return fmt.Errorf("its addresses %v and %v are not in the mesh's ranges", n.Addrs.V4, n.Addrs.V6)
	}
	return nil
}

// settle judges the peers that were touched or are due, and returns what changed.
func (r *roster) settle(now time.Time, g grace) []move {
	for len(r.deadlines) > 0 && !r.deadlines[0].until.After(now) {
		p := r.deadlines[0]
		r.touch(p.claim.ID)
		r.unschedule(p)
	}
	if len(r.dirty) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(r.dirty))
	for _, id := range ids {
		if p := r.peers[id]; p != nil {
			r.release(id, p)
		}
	}
	// Peers that clashed before may have room now, and must be judged after all others.
	late := slices.Sorted(maps.Keys(r.clashing))
	for _, id := range late {
		r.touch(id)
	}
	for pass, list := range [][]proto.NodeID{ids, late} {
		for _, id := range list {
			if p := r.peers[id]; p != nil && (pass == 0 || p.live == nil) {
				r.judge(id, p, now, g)
			}
		}
	}
	return r.moves()
}

// moves compares what was in use before with what is in use now.
func (r *roster) moves() []move {
	var moves []move
	for _, id := range slices.Sorted(maps.Keys(r.dirty)) {
		m := move{id: id, before: r.dirty[id]}
		if p := r.peers[id]; p != nil {
			m.after = p.live
		}
		if m.before != nil || m.after != nil {
			moves = append(moves, m)
		}
	}
	clear(r.dirty)
	return moves
}

// release takes a peer out of use.
func (r *roster) release(id proto.NodeID, p *peer) {
	delete(r.kept, id)
	delete(r.clashing, id)
	if p.live == nil {
		return
	}
	for _, a := range p.live.node.Addrs.Slice() {
		delete(r.addrs, a)
	}
	for _, k := range p.live.keys {
		delete(r.keys, k)
	}
	p.live = nil
	r.out[id] = struct{}{}
}

// judge decides whether a peer that is not in use may be.
func (r *roster) judge(id proto.NodeID, p *peer, now time.Time, g grace) {
	r.unschedule(p)
	r.out[id] = struct{}{}
	delete(r.clashing, id)
	if p.node == nil {
		return
	}
	begin, until := p.node.NotBefore.Add(-cert.Skew), p.node.NotAfter.Add(cert.Skew)
	at := now
	switch {
	case now.Before(begin):
		p.why = "its certificate is not valid before " + stamp(p.node.NotBefore)
		r.schedule(p, begin)
		return
	case now.Before(until):
	default:
		l, ok := g.covers(begin, until, now)
		if !ok {
			p.why = "its certificate expired at " + stamp(p.node.NotAfter)
			return
		}
		at, until = l.at, l.until
		r.kept[id] = struct{}{}
	}
	e := &entry{node: p.node, reach: p.claim.Reach}
	var next time.Time
	if e.keys, next = r.keysOf(id, p, now, at); len(e.keys) == 0 {
		p.why = "none of its keys is valid now"
		delete(r.kept, id)
		r.schedule(p, next)
		return
	}
	if who, taken := r.taken(e); taken {
		p.why = fmt.Sprintf("%v has its address or its key", who)
		r.clashing[id] = struct{}{}
		delete(r.kept, id)
		return
	}
	for _, a := range e.node.Addrs.Slice() {
		r.addrs[a] = id
	}
	for _, k := range e.keys {
		r.keys[k] = id
	}
	delete(r.out, id)
	p.live, p.why, p.former = e, "", p.former.after(p.node, r.dirty[id] != nil, now)
	p.former.first = e.keys[0]
	if _, byGrace := r.kept[id]; !byGrace && !next.IsZero() && next.Before(until) {
		until = next
	}
	r.schedule(p, until)
}

func (r *roster) taken(e *entry) (proto.NodeID, bool) {
	self := r.self.Node
	for _, a := range e.node.Addrs.Slice() {
		if self.Addrs.Has(a) {
			return self.ID, true
		}
		if id, ok := r.addrs[a]; ok {
			return id, true
		}
	}
	for _, k := range e.keys {
		if slices.ContainsFunc(self.Keys, func(own cert.NodeKey) bool { return own.Public == k }) {
			return self.ID, true
		}
		if id, ok := r.keys[k]; ok {
			return id, true
		}
	}
	return 0, false
}

// regrace makes settle judge the peers for which a different grace may make a difference.
func (r *roster) regrace() {
	for _, some := range []map[proto.NodeID]struct{}{r.kept, r.out} {
		for id := range some {
			r.touch(id)
		}
	}
}

// next returns when settle has something to do by itself; zero: never.
func (r *roster) next() time.Time {
	if len(r.deadlines) == 0 {
		return time.Time{}
	}
	return r.deadlines[0].until
}

// floors returns the sequence numbers to save: those of certificates that might still be shown to us, and that the netmap on the
// disk does not show. Stored means that this is the netmap in force.
func (r *roster) floors(now time.Time, grace time.Duration, stored bool) map[proto.NodeID]state.Sequence {
	r.raised = false
	floors := map[proto.NodeID]state.Sequence{}
	for id := range r.untold {
		s, p := r.sequences[id], r.peers[id]
		switch {
		case p != nil && p.node != nil && stored:
			delete(r.untold, id)
		case p == nil && now.After(s.Until.Add(grace+2*cert.Skew)):
			delete(r.untold, id)
			delete(r.sequences, id)
		default:
			floors[id] = s
		}
	}
	return floors
}

// sorted lists the peers by ID.
func (r *roster) sorted() []*peer {
	return slices.SortedFunc(maps.Values(r.peers), func(a, b *peer) int { return cmp.Compare(a.claim.ID, b.claim.ID) })
}

func (r *roster) schedule(p *peer, at time.Time) {
	if at.IsZero() {
		return
	}
	p.until = at
	heap.Push(&r.deadlines, p)
}

func (r *roster) unschedule(p *peer) {
	if p.index > 0 {
		heap.Remove(&r.deadlines, p.index-1)
	}
	p.until = time.Time{}
}

// deadlines is a heap of peers by until.
type deadlines []*peer

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].until.Before(d[j].until) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i+1, j+1
}

func (d *deadlines) Push(x any) {
	p := x.(*peer)
	*d = append(*d, p)
	p.index = len(*d)
}

func (d *deadlines) Pop() any {
	old := *d
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	p.index = 0
	return p
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
