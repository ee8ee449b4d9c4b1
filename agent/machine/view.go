package machine

import (
	"fmt"
	"strings"
	"time"

	"github.com/redoubt-mesh/redoubt/proto"
	"github.com/redoubt-mesh/redoubt/proto/cert"
)

// State is what a node is doing.
type State string

// The states of a node.
const (
	StateDown      State = "down"
	StateEnrolling State = "enrolling"
	StatePending   State = "pending" // enrolment waits for an administrator's approval
	StateStarting  State = "starting"
	StateRunning   State = "running"
	StateExpired   State = "expired"
	StateRevoked   State = "revoked"
	StateLocked    State = "locked"
	// StateQuarantined means that the node is isolated, because two machines have its identity.
	StateQuarantined State = "quarantined"
)

// View is a snapshot of what people want to know about a Machine.
type View struct {
	State     State
	Node      *cert.Node // nil: not enrolled
	Mesh      proto.Mesh
	Version   proto.Version
	Connected bool
	URL       string
	LastHeard time.Time
	Peers     []PeerView
	Routing   RoutingView
	Problems  []string
	Pending   *PendingView // nil unless the state is StatePending
}

// PendingView is how administrators recognise a machine that waits for their approval.
type PendingView struct {
	Code, Name string
	Since      time.Time
}

// PeerView is a peer that may be used.
type PeerView struct {
	Node      *cert.Node
	Endpoints []proto.Endpoint
}

// State returns what the node is doing.
func (m *Machine) State() State {
	switch {
	case m.wanted.Revoked != nil:
		return StateRevoked
	case !m.wanted.Up:
		return StateDown
	case m.self == nil && m.enrolling && m.pending != nil:
		return StatePending
	case m.self == nil && m.enrolling:
		return StateEnrolling
	case m.self == nil:
		return StateDown
	case m.wanted.Locked != nil:
		return StateLocked
	case m.quarantine != "":
		return StateQuarantined
	case !m.selfLive:
		return StateExpired
	case m.path.up && m.netmap != nil:
		return StateRunning
	}
	return StateStarting
}

// View describes the machine.
func (m *Machine) View(now time.Time) View {
	v := View{
		State: m.State(), Version: m.version(), Connected: m.contact.open, URL: m.contact.url, LastHeard: m.contact.last,
		Problems: m.problems(now), Routing: m.routingView(),
	}
	if p := m.pending; p != nil {
		v.Pending = &PendingView{p.Code, p.Name, p.since}
	}
	if m.self != nil {
		v.Node, v.Mesh = m.self.Node, m.self.Record.Mesh
	}
	if m.wanted.Up && !m.barred() {
		for _, p := range m.roster.sorted() {
			if p.live != nil {
				v.Peers = append(v.Peers, PeerView{p.live.node, p.live.reach.Endpoints})
			}
		}
	}
	return v
}

// Relays returns the relays of the netmap.
func (m *Machine) Relays() []proto.Relay {
	if m.netmap == nil || m.barred() {
		return nil
	}
	return m.netmap.Relays
}

// Peer finds a peer that may be used.
func (m *Machine) Peer(match func(*cert.Node) bool) (*cert.Node, bool) {
	for _, p := range m.roster.peers {
		if p.live != nil && match(p.live.node) {
			return p.live.node, true
		}
	}
	return nil, false
}

// maxNamed is how many peers the problems name.
const maxNamed = 5

// problems lists what is wrong, and what to do about it.
func (m *Machine) problems(now time.Time) (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if r := m.wanted.Revoked; r != nil {
		add("at %s the coordinator said: %s", stamp(r.At), r.Message)
		return list
	}
	if m.refused != "" {
		add("enrolment was refused: %s", m.refused)
	} else if m.self == nil && !m.enrolling {
		add("%v", ErrNotEnrolled)
	}
	if m.diskFault != "" {
		add("%s: decisions do not survive a restart until this is fixed", m.diskFault)
	}
	if !m.wanted.Up {
		return list
	}
	if l := m.wanted.Locked; l != nil {
		add("since %s the coordinator says: %s", stamp(l.At), l.Message)
		return list
	}
	if p := m.pending; p != nil {
		add("since %s: %s", stamp(p.since), p.Message)
	}
	if m.path.fault != "" {
		add("the data path is not running: %s; retrying every %v", m.path.fault, retryPath)
	}
	if m.quarantine != "" {
		add("%s", m.quarantine)
	}
	m.contactProblems(now, add)
	for _, f := range []string{m.compileFault, m.netmapFault, m.keyFault} {
		if f != "" {
			add("%s", f)
		}
	}
	if len(m.missing) > 0 {
		add("the coordinator requires feature %s, which this agent (version %s) lacks: upgrade it; until then nothing passes",
			strings.Join(m.missing, ", "), m.cfg.Program)
	}
	m.peerProblems(now, add)
	m.routingProblems(add)
	return list
}

func (m *Machine) contactProblems(now time.Time, add func(string, ...any)) {
	if !m.contact.open && !m.contact.lostAt.IsZero() && (now.Sub(m.contact.lostAt) >= patience || m.contact.reason != "") {
		reason := m.contact.reason
		if reason == "" {
			reason = "no answer so far"
		}
		add("no coordinator since %s: %s; the agent keeps trying%s", stamp(m.contact.lostAt), reason, m.countdown(now))
	}
	m.termProblems(now, add)
	if m.self == nil {
		return
	}
	switch end := m.self.Node.NotAfter; {
	case !m.selfLive:
		add("this node's certificate is not valid now (only from %s to %s): nothing passes until it is renewed",
			stamp(m.self.Node.NotBefore), stamp(end))
	case !now.Before(end.Add(cert.Skew)):
		add("this node's certificate expired at %s; others trust it only for the grace period", stamp(end))
	}
	if m.renewFault != "" {
		add("the certificate was not renewed: %s%s", m.renewFault, m.ownLeft(now))
	}
}

// countdown says what expires without a coordinator, and when.
func (m *Machine) countdown(now time.Time) string {
	if m.self == nil {
		return ""
	}
	text := m.ownLeft(now)
	switch end := m.contact.grace(m.outage(), now).end(); {
	case now.Before(end):
		return text + fmt.Sprintf("; certificates that expire meanwhile are trusted for %v more, until %s", end.Sub(now).Round(time.Second), stamp(end))
	case m.outage() > 0 && !end.IsZero():
		return text + fmt.Sprintf("; expired certificates have not been trusted since %s", stamp(end))
	}
	return text + "; certificates that expire meanwhile are not trusted"
}

// ownLeft says for how long this node's certificate is good.
func (m *Machine) ownLeft(now time.Time) string {
	end := m.self.Node.NotAfter
	if !now.Before(end) {
		return ""
	}
	return fmt.Sprintf("; the current certificate is valid for %v more, until %s", end.Sub(now).Round(time.Second), stamp(end))
}

func (m *Machine) peerProblems(now time.Time, add func(string, ...any)) {
	if n := len(m.roster.kept); n > 0 {
		until := m.contact.grace(m.outage(), now).end()
		add("%d peers are trusted although their certificates have expired, since the coordinator is away, until %s at most (%v)",
			n, stamp(until), until.Sub(now).Round(time.Second))
	}
	named := 0
	for _, p := range m.roster.sorted() {
		if p.live != nil || m.contact.serves && p.ended(now) {
			continue // in contact, an expired certificate belongs to a machine that is off
		}
		if named++; named <= maxNamed {
			name := p.claim.ID.String()
			if p.node != nil {
				name = p.node.Name
			}
			add("peer %s is left out: %s", name, p.why)
		}
	}
	if named > maxNamed {
		add("%d more peers are left out", named-maxNamed)
	}
}
