package machine

import (
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Node keys take turns. A certificate names the key in use and, from the first renewal on, the one that takes over at a moment
// that it names as well. By then every peer that is in contact has had the certificate for long:
//
//	certificate n      ├── A ──────────┬── B ─────────────┤
//	certificate n+1                    │   ├── B ──────────┬── C ─────────────┤
//	                   issued          │   renewed         │
//	                              all turn from A to B     all turn from B to C
//
// At that moment the node begins to use the next key, and its peers begin to call it by that. Either side does so only as far as
// it knows of the coordinator: one that has not heard of it since goes on as before, and so do all when the coordinator is away.
// Both keys are good meanwhile, and a key that is out of the certificate is good for drain more, so that what is under way
// arrives.

// drain is how long a peer's key is good after its certificate has ceased to name it: as long as sessions last.
const drain = 180 * time.Second

// maxPeerKeys is how many keys of a peer are good at the same time: those of its certificate, and those that drain.
const maxPeerKeys = 4

// spread puts off a renewal that was due while it could not be asked for: a fleet that comes back at the same time, or a
// coordinator, would have to do all of them at once.
func (m *Machine) spread() {
	left := m.self.Node.NotAfter.Sub(m.now)
	if m.now.Before(m.renewal.due) || left <= 0 {
		return
	}
	most := min(left/2, m.self.Node.NotAfter.Sub(m.self.Node.NotBefore)/10)
	m.renewal.due = m.now.Add(time.Duration(m.cfg.Rand.Float64() * float64(most)))
}

// turnsAt is when the node's next key takes over; zero where that is not up to time alone.
func (m *Machine) turnsAt() time.Time {
	keys := m.self.Node.Keys
	if len(keys) < 2 || keys[0].Public != m.using || !m.contact.serves {
		return time.Time{}
	}
	at := keys[1].NotBefore
	// In a contact that is younger than the certificate the peers may be as late as we are.
	if since := m.contact.since; since.After(m.self.Node.NotBefore) && at.Before(since.Add(Settle)) {
		at = since.Add(Settle)
	}
	return at
}

// turn puts the next key to use when its time has come, and at once where the certificate has ceased to name the one in use.
func (m *Machine) turn() {
	keys := m.self.Node.Keys
	to := m.using
	switch at := m.turnsAt(); {
	case !slices.ContainsFunc(keys, func(k cert.NodeKey) bool { return k.Public == m.using }):
		to = keys[0].Public
	case !at.IsZero() && !m.now.Before(at):
		to = keys[1].Public
	}
	if to != m.using {
		m.using, m.keyFault = to, ""
		m.do(Turn{to})
		m.log("node key changed", "key", to)
	}
}

// isolate keeps this node apart from all others, or ends that where there is no reason.
func (m *Machine) isolate(why string) {
	was := m.quarantine
	if was == "" && why != "" {
		m.closeAll()
		m.do(RemovePeers{m.engineIDs()})
		m.warn("this node is in quarantine", "reason", why)
	}
	m.quarantine = why
	if was == "" || why != "" {
		return
	}
	m.log("the quarantine is over")
	if m.path.up {
		if peers := m.enginePeers(); len(peers) > 0 {
			m.do(SetPeers{Peers: peers, Again: true})
		}
		m.install(nil, nil)
	}
}

// former is the certificate that a peer was in use with last, and which keys that were in use it does not name.
type former struct {
	of      *cert.Node
	first   key.NodePublic // that it was called by
	retired []retired
}

// retired is a key that a peer's certificate has ceased to name.
type retired struct {
	Public key.NodePublic
	until  time.Time
}

// keysOf are the keys that a peer may be spoken with, the one to use first, and when that changes by itself next. Whether they
// are over is judged at a time that may be in the past, where the peer is in use by grace; whether they have begun never is: a
// key whose turn came in an outage is one that the peer may use.
func (r *roster) keysOf(id proto.NodeID, p *peer, now, at time.Time) (out []key.NodePublic, next time.Time) {
	sooner := func(t time.Time) {
		if t.After(at) && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	delete(r.behind, id)
	for _, k := range p.node.Keys {
		sooner(k.NotBefore.Add(-cert.Skew))
		sooner(k.NotAfter.Add(cert.Skew))
		if now.Before(k.NotBefore.Add(-cert.Skew)) || !at.Before(k.NotAfter.Add(cert.Skew)) {
			continue
		}
		switch {
		case !r.heard.Before(k.NotBefore), p.former.of == p.node && p.former.first == k.Public:
			// What it was called by in contact it is called by after that, though the last word came a little before its turn.
			out = slices.Insert(out, 0, k.Public)
			continue
		case !now.Before(k.NotBefore):
			r.behind[id] = struct{}{}
		default:
			sooner(k.NotBefore)
		}
		out = append(out, k.Public)
	}
	for _, k := range p.former.after(p.node, r.dirty[id] != nil, now).retired {
		if len(out) > 0 && len(out) < maxPeerKeys {
			out = append(out, k.Public)
			sooner(k.until)
		}
	}
	return out, next
}

// after is what is remembered once a certificate is in use. The keys that it does not name and that the one before it named are
// retired, the newest first, if the peer was in use until now, be it by grace; of those that were retired before, some have drained.
func (f former) after(n *cert.Node, inUse bool, now time.Time) former {
	named := func(k key.NodePublic) bool {
		return slices.ContainsFunc(n.Keys, func(x cert.NodeKey) bool { return x.Public == k })
	}
	next := former{of: n}
	if f.of != nil && f.of != n && inUse {
		for _, old := range f.of.Keys {
			if !named(old.Public) && !now.Before(old.NotBefore) {
				next.retired = slices.Insert(next.retired, 0, retired{old.Public, now.Add(drain)})
			}
		}
	}
	for _, k := range f.retired {
		if now.Before(k.until) && !named(k.Public) {
			next.retired = append(next.retired, k)
		}
	}
	return next
}

// reorder makes settle judge those whose next key may be in use by now, of which we know since we are in contact again.
func (r *roster) reorder() {
	for id := range r.behind {
		r.touch(id)
	}
}
