package machine

import (
	"slices"
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
	"github.com/redoubt-mesh/redoubt/proto/key"
)

// Node keys take turns. A certificate names the key in use and, from the first renewal on, the key that takes over, with the
// time when it does. Well before that time every peer in contact has the certificate:
//
//	certificate n      ├── A ──────────┬── B ─────────────┤
//	certificate n+1                    │   ├── B ──────────┬── C ─────────────┤
//	                   issued          │   renewed         │
//	                              all turn from A to B     all turn from B to C
//
// At that time the node begins to use the next key, and its peers begin to address it by that key. Either side does so only
// as far as it has heard from the coordinator: a side that has not heard from it since continues as before, and so do all
// when the coordinator is away. Both keys are good meanwhile, and a key that the certificate no longer names is good for
// another drain period, so that what is in flight arrives.

// drain is how long a peer's key is good after its certificate has ceased to name it: as long as sessions last.
const drain = 180 * time.Second

// maxPeerKeys is how many keys of a peer are good at the same time: those of its certificate, and those that drain.
const maxPeerKeys = 4

// spread postpones a renewal that fell due while it could not be requested: otherwise a fleet that comes back at the same
// time, or a coordinator that does, would have to handle all renewals at once.
func (m *Machine) spread() {
	left := m.self.Node.NotAfter.Sub(m.now)
	if m.now.Before(m.renewal.due) || left <= 0 {
		return
	}
	most := min(left/2, m.self.Node.NotAfter.Sub(m.self.Node.NotBefore)/10)
	m.renewal.due = m.now.Add(time.Duration(m.cfg.Rand.Float64() * float64(most)))
}

// turnsAt returns when the node's next key takes over; zero if that does not depend on time alone.
func (m *Machine) turnsAt() time.Time {
	keys := m.self.Node.Keys
	if len(keys) < 2 || keys[0].Public != m.using || !m.contact.serves {
		return time.Time{}
	}
	at := keys[1].NotBefore
	// In a contact that is younger than the certificate, peers may be as late as we are.
	if since := m.contact.since; since.After(m.self.Node.NotBefore) && at.Before(since.Add(Settle)) {
		at = since.Add(Settle)
	}
	return at
}

// turn starts using the next key when its time has come, or at once if the certificate no longer names the one in use.
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

// keysRead goes on with the present certificate.
func (m *Machine) keysRead(held []key.NodePublic) {
	if m.self == nil || !m.self.Key.IsZero() {
		return
	}
	self, err := identity.Check(m.self.Record, m.self.Node.Device, held...)
	if err != nil {
		m.keyFault = err.Error()
		m.warn("the node keys were read and are of no use", "reason", err)
		return // the next certificate names one of them
	}
	m.using, m.keyFault = held[0], ""
	m.log("the node keys were read")
	m.adopt(self)
	if m.path.wanted && !m.path.up {
		m.startPath()
	}
}

// isolate isolates this node from all others, or ends that if why is empty.
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
		m.open()
	}
}

// former is the certificate with which a peer was last in use, and the keys formerly in use that it does not name.
type former struct {
	of      *cert.Node
	first   key.NodePublic // by which we addressed the peer
	retired []retired
}

// retired is a key that a peer's certificate no longer names.
type retired struct {
	Public key.NodePublic
	until  time.Time
}

// keysOf returns the keys that may be used with a peer, the preferred one first, and when that next changes by itself.
// Whether keys have expired is judged at the time at, which is in the past if the peer is in use by grace; whether they have
// begun is judged at now: a key whose turn came during an outage is one that the peer may use.
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
			// A peer is addressed after contact by the key used in contact, even if the last word came a little before that
			// key's turn.
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

// after returns what to remember once a certificate is in use. If the peer was in use until now, even by grace, the keys
// that the previous certificate names and this one does not are retired, the newest first; keys retired earlier are kept
// until they have drained.
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

// reorder makes settle judge the peers whose next key may be in use by now, which we know since contact has returned.
func (r *roster) reorder() {
	for id := range r.behind {
		r.touch(id)
	}
}
