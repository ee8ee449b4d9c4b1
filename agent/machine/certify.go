package machine

import (
	"time"

	"github.com/redoubt-mesh/redoubt/agent/identity"
	"github.com/redoubt-mesh/redoubt/agent/state"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// The outcomes of requests for certificates: the first one and its renewals.

func (m *Machine) enrolled(e Enrolled) {
	if !m.enrolling {
		return
	}
	m.enrolling, m.pending = false, nil
	// The identity goes first: once it is on the disk the secret is no longer needed; until then, it is.
	m.do(SaveIdentity{e.Self.Record})
	m.spend()
	m.do(Hang{})
	m.log("enrolled", "node", e.Self.Node.ID, "name", e.Self.Node.Name, "v4", e.Self.Node.Addrs.V4, "v6", e.Self.Node.Addrs.V6)
	m.using = e.Self.Key
	m.adopt(e.Self)
	m.offer() // leaves out routes that overlap with this mesh
	m.run()
}

// spend erases the secret of the join code.
func (m *Machine) spend() {
	if m.join == nil || m.join.Secret.IsZero() {
		return
	}
	m.join = &state.Join{URLs: m.join.URLs, Root: m.join.Root}
	m.do(SaveJoin{*m.join})
}

func (m *Machine) enrolFailed(e EnrolFailed) {
	if !m.enrolling {
		return
	}
	m.halt()
	m.refused = e.Reason
	m.wanted.Up, m.join = false, nil
	// The keys go as well: a coordinator that knows them from an enrolment whose reply was lost never accepts them again.
	m.do(SaveWanted{m.wanted}, Forget{})
	m.warn("enrolment refused", "reason", e.Reason)
}

// await waits for an approval, on a stream that stays open.
func (m *Machine) await(e Pending) {
	if !m.enrolling {
		return
	}
	m.contact.open, m.contact.url = true, e.URL
	since := m.now
	if p := m.pending; p != nil && p.Code == e.Code {
		since = p.since
	} else {
		m.log("waits for an administrator's approval", "code", e.Code, "name", e.Name)
	}
	m.pending = &approval{e, since}
}

// adopt takes an identity into use, and plans its renewal.
func (m *Machine) adopt(self *identity.Self) {
	var authorities [][]byte
	if m.netmap != nil {
		authorities = m.netmap.Authorities
	}
	if err := m.roster.trust(self, authorities); err != nil {
		m.netmapFault = err.Error()
	}
	m.self = self
	n := self.Node
	life := n.NotAfter.Sub(n.NotBefore)
	m.renewal = renewal{due: n.NotBefore.Add(time.Duration((0.45 + 0.1*m.cfg.Rand.Float64()) * float64(life)))}
	if self.Key.IsZero() {
		m.renewal.due = n.NotBefore // without its keys nothing passes until it is renewed
	}
	m.spread()
}

func (m *Machine) renewed(self *identity.Self) {
	if m.self == nil {
		return
	}
	if err := self.Follows(m.self); err != nil {
		m.renewFailed("the coordinator sent something else: " + err.Error())
		m.do(Redial{Reason: m.renewFault})
		return
	}
	before := m.self
	must := m.renewal.must
	m.renewFault = ""
	m.do(SaveIdentity{self.Record})
	m.adopt(self)
	if must && m.now.Before(self.Node.NotAfter.Add(cert.Skew)) {
		m.serve()
	} else {
		m.renewal.must = must // it was issued long ago and has expired as well
	}
	m.log("certificate renewed", "expires", stamp(self.Node.NotAfter), "sequence", self.Node.Sequence)
	m.do(Attach{Self: self, Applied: m.lasting()})
	m.turn()
	if before.Node.Addrs != self.Node.Addrs {
		m.closeAll()
		m.startPath()
		return
	}
	m.enforce(m.settle(), !sameIdentity(before.Node.Identity, self.Node.Identity))
}

func (m *Machine) renewFailed(reason string) {
	m.renewal.asking = false
	m.renewFault = reason
	m.renewal.due = m.now.Add(retryRenew + time.Duration(m.cfg.Rand.Int64N(int64(retryRenew))))
	m.warn("certificate not renewed", "reason", reason)
}
